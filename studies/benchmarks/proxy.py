"""What a proxy carries: many light workers on one study, through it and straight to the database.

    python studies/benchmarks/proxy.py [--workers 48 200] [--length 30] [--no-write]

Each worker is a thread that asks for a trial, suggests 7 parameters, reports 3 values, sets 4
attributes, sleeps and tells, through a storage of its own. Four processes hold the
threads. The database is PostgreSQL (from pip), the proxy `biotune proxy`. CPU is that of the
servers' processes by the kernel's count; connections are those that PostgreSQL shows. Unless told
not to, it writes docs/benchmarks/proxy.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna

from biotune_optuna.page.parts import Heading, Markdown, Part, Table, Text, markdown
from biotune_optuna.storage.open import open_storage

sys.path.append(str(Path(__file__).parents[2]))
from tests.kit.postgres import Postgres

DOC = Path(__file__).parents[2] / "docs" / "benchmarks" / "proxy.md"
PROCESSES = 4
TICKS = os.sysconf("SC_CLK_TCK")


def trial_of(study: optuna.Study, length: float) -> float:
    """One trial; how long asking took, in seconds."""
    began = time.monotonic()
    trial = study.ask()
    asked = time.monotonic() - began
    for name in "abcdefg":
        trial.suggest_float(name, 0, 1)
    for step in range(3):
        trial.report(0.5, step)
    for name in "wxyz":
        trial.set_user_attr(name, 1)
    time.sleep(length)
    study.tell(trial, 0.5)
    return asked


def work(url: str, threads: int, ready: Any, length: float, results: Any) -> None:
    """Be so many workers for so long."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler
    studies = [
        optuna.load_study(study_name="s", storage=open_storage(url), sampler=sampler())
        for _ in range(threads)
    ]
    asks: list[float] = []
    ready.wait()
    end = time.monotonic() + 3 * length

    def loop(place: int, study: optuna.Study) -> None:
        time.sleep(length * place / threads)  # they do not all begin in one moment
        while time.monotonic() < end:
            asks.append(trial_of(study, length))

    running = [threading.Thread(target=loop, args=pair) for pair in enumerate(studies)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    results.put(asks)


def cpu_of(pids: list[int]) -> float:
    """Seconds of CPU that processes have used, those that they have waited for included."""
    used = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        used += sum(map(int, fields[11:15]))
    return used / TICKS


def below(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def measure(server: Postgres, workers: int, length: float, *, proxied: bool) -> dict[str, Any]:
    """Run so many workers; what came through and what it cost the servers."""
    name = f"db{workers}{proxied}"
    url = server.create_database(name)
    optuna.create_study(study_name="s", storage=open_storage(url))
    postmaster = int((server.folder / "postmaster.pid").read_text().split()[0])
    proxy, place = None, url
    if proxied:
        command = [sys.executable, "-m", "biotune_optuna", "proxy", "--port", "0"]
        proxy = subprocess.Popen(
            command, env=os.environ | {"BIOTUNE_STORAGE": url}, stderr=subprocess.PIPE, text=True
        )
        assert proxy.stderr is not None
        found = next(filter(None, (re.search(r"grpc://\S+\d", line) for line in proxy.stderr)))
        place = found[0]
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(PROCESSES + 1), context.Queue()
    each = workers // PROCESSES
    children = [
        context.Process(target=work, args=(place, each, ready, length, results))
        for _ in range(PROCESSES)
    ]
    for child in children:
        child.start()
    ready.wait(300)
    time.sleep(length)  # until each has begun
    count = "SELECT count(*) FROM trials WHERE state = 'COMPLETE'"
    ((earlier,),) = server.sql(count, name)
    before = cpu_of(below(postmaster)), cpu_of([proxy.pid] if proxy else [])
    began = time.monotonic()
    time.sleep(1.5 * length)
    took = time.monotonic() - began
    database = cpu_of(below(postmaster)) - before[0]
    own = cpu_of([proxy.pid] if proxy else []) - before[1]
    ((done,),) = server.sql(count, name)
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    ((connections,),) = server.sql(query, name)
    connections -= 1  # this one
    asks = [ask for _ in children for ask in results.get(timeout=300)]
    for child in children:
        child.join()
    if proxy is not None:
        proxy.terminate()
        proxy.wait(30)
    return {
        "workers": workers,
        "through": "proxy" if proxied else "nothing",
        "trials": (done - earlier) / took,
        "ask": statistics.median(asks),
        "database": database / took,
        "proxy": own / took,
        "connections": connections,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[200])
    parser.add_argument("--length", type=float, default=30.0, help="of a trial, in seconds")
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    server = Postgres()
    server.sql("ALTER SYSTEM SET max_connections = 600")
    server.restart()
    try:
        rows = []
        for workers in args.workers:
            for proxied in (True, False):
                rows.append(measure(server, workers, args.length, proxied=proxied))
                print(rows[-1], flush=True)
    finally:
        server.close()
    text = page(rows, args.length)
    print(text)
    if not args.no_write:
        DOC.write_text(text)


def page(rows: list[dict[str, Any]], length: float) -> str:
    """The page: throughput, CPU and connections, through a proxy and without."""
    parts: list[Part] = [
        Heading("Many workers through a proxy", level=1),
        Text(
            "Light workers, one trial after the other: each asks, suggests 7 parameters, reports 3 "
            f"values, sets 4 attributes, sleeps {length:g} s and tells. They, the proxy and "
            f"PostgreSQL shared {os.cpu_count()} cores with other programs. CPU is in cores."
        ),
        Markdown("Made by `python studies/benchmarks/proxy.py`; see its first lines."),
        Table(
            [
                "workers",
                "through",
                "trials a second",
                "median ask, s",
                "PostgreSQL, CPU",
                "proxy, CPU",
                "connections",
            ],
            [
                [
                    str(row["workers"]),
                    row["through"],
                    f"{row['trials']:.1f}",
                    f"{row['ask']:.2f}",
                    f"{row['database']:.2f}",
                    f"{row['proxy']:.2f}" if row["through"] == "proxy" else "",
                    str(row["connections"]),
                ]
                for row in rows
            ],
        ),
    ]
    return markdown(parts)


if __name__ == "__main__":
    main()
