"""A network namespace without a name: it exists as long as somebody is in it, so nothing of it can be left behind.

A sleeping thread of this process is in it from the beginning, and `command` starts programs in it. When the thread
ends, at the latest with this process and however that dies, and the programs have, the kernel removes the namespace and
with it every link that reaches into it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

CLONE_NEWNET = 0x40000000
TOOLS = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
END_S = 10.0

# /sys shows the network of whoever mounted it, and a host has a name of its own; $0 is that name.
ENTER = (
    'umount --lazy /sys 2> /dev/null; mount -t sysfs sysfs /sys && echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
)


class EmulationError(RuntimeError):
    """The cluster cannot be made here; the message says what is missing and how to get it, or what a tool said."""


def what_is_missing() -> str | None:
    """Why this machine cannot emulate a cluster, and what to do about it; None when nothing is known to be missing."""
    if sys.platform != "linux":
        return f"emulated clusters are made of Linux network namespaces, and this is {sys.platform}"
    packages = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if packages:
        names = " ".join(packages)
        return f"emulated clusters need {names}, which is not installed: `apt-get install {names}`"
    if os.geteuid() != 0:
        return "emulated clusters need root, to make network namespaces: run it as root, for instance with sudo"
    return None


class Namespace:
    """One network namespace, private to this process and what it starts there, until `close`."""

    def __init__(self, host: str) -> None:
        """Raises EmulationError when the kernel does not allow it."""
        self.host = host
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._hold, name=f"treering-{host}", daemon=True)
        self._entered = threading.Event()
        self._errno = 0
        self.task = 0
        self._thread.start()
        self._entered.wait()
        if self._errno:
            self._thread.join()
            raise EmulationError(
                f"no network namespace can be made here: {os.strerror(self._errno)}; in a container, it needs "
                "CAP_SYS_ADMIN and CAP_NET_ADMIN (docker run --privileged)"
            )
        self.path = f"/proc/{os.getpid()}/task/{self.task}/ns/net"
        self.identity = _identity(self.path)

    def _hold(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:  # of this thread alone
            self._errno = ctypes.get_errno()
        self.task = threading.get_native_id()
        self._entered.set()
        if not self._errno:
            self._leave.wait()

    def batch(self, tool: str, lines: str) -> None:
        """Runs `ip` or `tc` inside, with these lines. Raises EmulationError with what it said."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", tool, "-batch", "-"],
            input=lines,
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            raise EmulationError(f"{tool} failed for {self.host}: {done.stderr.strip()}; it was told:\n{lines}")

    def command(self) -> list[str]:
        """The beginning of a command line that runs the rest of it inside, as the same process."""
        return ["nsenter", f"--net={self.path}", "unshare", "--mount", "--uts", "sh", "-c", ENTER, self.host]

    def close(self) -> None:
        """Gives the namespace up; whoever runs in it keeps it. Safe to call twice."""
        self._leave.set()
        self._thread.join()


def end_programs(namespaces: Collection[Namespace]) -> None:
    """Kills every process inside and returns when none is left. Raises EmulationError when one does not end."""
    identities = {namespace.identity for namespace in namespaces}
    deadline = time.monotonic() + END_S
    while left := _kill_all(identities):
        if time.monotonic() > deadline:
            raise EmulationError(f"processes {left} of the emulated cluster do not end")
        time.sleep(0.001)


def _kill_all(identities: Collection[tuple[int, int]]) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        # A process that has ended, or is about to, has no namespace any more. The descriptor comes first, so that the
        # signal cannot reach another process which got the number meanwhile.
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(int(entry.name))
                try:
                    if _identity(f"{entry}/ns/net") in identities:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        found.append(int(entry.name))
                finally:
                    os.close(pidfd)
    return found


def _identity(path: str) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_dev, state.st_ino
