"""Who holds a trial: one process of one boot of one machine.

Clocks of different machines need not agree and process ids are reused, so a holder is named by what
cannot come back: the kernel's boot id, the PID namespace, the process id and the process's start
time. An observer on the same boot and in the same PID namespace can tell at once whether the holder
has died; anybody else has to watch the holder's lease.
"""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

_PROC = Path("/proc")
_FIELDS = 5


@dataclass(frozen=True, slots=True)
class Holder:
    """One process, named so that no other process ever has the same name.

    Attributes:
        host: Host name; for people, and so that a cloned machine is not taken for its original.
        boot_id: The kernel's random id of this boot, "" where there is none (not Linux).
        pid_namespace: Inode of the PID namespace, "" where there is none.
        pid: Process id within the namespace.
        started: Start of the process in clock ticks after boot, 0 where it is unknown.
    """

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: int

    def to_str(self) -> str:
        """Return the holder as one short line of text (about 80 characters) without spaces."""
        parts = (self.host, self.boot_id, self.pid_namespace, str(self.pid), str(self.started))
        return ":".join(quote(part, safe="") for part in parts)

    @classmethod
    def from_str(cls, text: str) -> Holder:
        """Read what :meth:`to_str` wrote.

        Raises:
            ValueError: ``text`` is not a holder.
        """
        parts = [unquote(part) for part in text.split(":")]
        if len(parts) != _FIELDS:
            raise ValueError(f"{text!r} does not name a holder")
        host, boot_id, namespace, pid, started = parts
        return cls(host, boot_id, namespace, int(pid), int(started))

    def is_dead(self) -> bool | None:
        """Say whether this process is gone.

        Returns:
            True or False when the caller shares the holder's boot and PID namespace, None when it
            cannot know, or may not look at that process: then only the holder's lease tells.
        """
        mine = current_holder()
        if not self.boot_id or not self.started or not mine.started:
            # A process id alone comes back: in containers to every first process.
            return False if self == mine else None
        if (self.host, self.boot_id, self.pid_namespace) != (
            mine.host,
            mine.boot_id,
            mine.pid_namespace,
        ):
            return None
        return _is_gone(self.pid, self.started)

    @property
    def label(self) -> str:
        """The holder as people say it: ``host:pid``."""
        return f"{self.host}:{self.pid}"


def current_holder() -> Holder:
    """Return the holder that the calling process is (a forked child is another one)."""
    return _holder_of(os.getpid())


@functools.lru_cache(maxsize=4)
def _holder_of(pid: int) -> Holder:
    return Holder(
        host=socket.gethostname(),
        boot_id=_read(_PROC / "sys/kernel/random/boot_id"),
        pid_namespace=_namespace(),
        pid=pid,
        started=(_start_time(_read(_PROC / str(pid) / "stat")) or 0) if _is_own_proc(pid) else 0,
    )


if hasattr(os, "register_at_fork"):  # a process id may have come back
    os.register_at_fork(after_in_child=_holder_of.cache_clear)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _is_own_proc(pid: int) -> bool:
    """Whether ``/proc`` shows this PID namespace.

    A container may have the outer one's, in which the same number is another process.
    """
    try:
        return str((_PROC / "self").readlink()) == str(pid)
    except OSError:
        return False


def _namespace() -> str:
    try:
        return str((_PROC / "self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        return ""


def _is_gone(pid: int, started: int) -> bool | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # or hidden: /proc may be mounted with hidepid
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return None
    except OSError:  # as when this process has too many files open
        return None
    return _start_time(stat) != started


def _start_time(stat: str) -> int | None:
    """Return a process's start in clock ticks after boot, None when it is gone.

    Args:
        stat: Its ``/proc/PID/stat``.
    """
    # The command's name may hold spaces and brackets; what follows its last bracket does not.
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in "ZX":  # a zombie works no more
        return None
    return int(fields[19])
