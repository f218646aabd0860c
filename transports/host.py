"""Which host, and which process on it: names that tell two hosts, two containers and two processes apart."""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["ProcessId", "host_id", "is_running", "this_process"]


class ProcessId(NamedTuple):
    """A process that can be recognised later: `started` (clock ticks since boot) tells it from a reuse of its
    pid.
    """

    host: str
    pid: int
    started: str
    space: str  # where the pid means something: boot and pid namespace


def host_id() -> str:
    """Equal for two processes exactly when they can reach each other's abstract Unix sockets and memory.

    Linux: the boot (a host that was not restarted since), the host's name, and the network namespace
    (containers have their own). Elsewhere: the host's name.
    """
    return ":".join([_boot_id(), socket.gethostname(), _namespace("net")])


def this_process() -> ProcessId:
    pid = os.getpid()
    return ProcessId(socket.gethostname(), pid, _started(pid), _pid_space())


def is_running(process: ProcessId) -> bool:
    """False only when the process is known to have ended; one on another host, or hidden from here, counts as
    running.
    """
    if process.space != _pid_space():
        return True
    if not process.started:
        try:
            os.kill(process.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    return _started(process.pid) == process.started


def _started(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The name in parentheses may hold anything, so count from its end: state is the first field, starttime
    # the 20th.
    fields = stat[stat.rindex(")") + 1 :].split()
    return "" if fields[0] in "ZX" else fields[19]


def _pid_space() -> str:
    return f"{_boot_id()}:{_namespace('pid')}"


@lru_cache(maxsize=1)
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _namespace(kind: str) -> str:
    try:
        return str(os.stat(f"/proc/self/ns/{kind}").st_ino)
    except OSError:
        return ""
