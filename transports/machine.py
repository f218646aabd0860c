"""What a measurement of this machine holds for: its processor, the cores a process may use, and its network cards."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path
from typing import Any

__all__ = ["machine_facts"]


def machine_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Facts of this process's machine as JSON types; `root` is where /proc and /sys are found.

    host         its name
    cpu, cores   the processor's model, and how many cores the machine has
    available    how many of them this process may run on
    numa_node    the one node that has all of these, None where they are on several or nothing is known
    nics         {name: "25000 Mbit/s, MTU 9000"} of the network cards; virtual interfaces come and go, and are left out
    """
    available = os.sched_getaffinity(0)
    return {
        "host": socket.gethostname(),
        "cpu": _cpu_model(root),
        "cores": os.cpu_count() or 0,
        "available": len(available),
        "numa_node": _numa_node(root, available),
        "nics": _nics(root),
    }


def _cpu_model(root: Path) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return platform.machine()


def _numa_node(root: Path, cores: set[int]) -> int | None:
    for node in sorted((root / "sys/devices/system/node").glob("node[0-9]*")):
        if cores <= _cpu_list(_read(node / "cpulist")):
            return int(node.name[4:])
    return None


def _cpu_list(text: str) -> set[int]:
    """The numbers in the kernel's way of writing them: 0-3,8,10-11."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def _nics(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for nic in sorted((root / "sys/class/net").glob("*")):
        if (nic / "device").exists() or (nic / "bonding").exists():
            found[nic.name] = f"{_read(nic / 'speed').strip() or '?'} Mbit/s, MTU {_read(nic / 'mtu').strip() or '?'}"
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not there, or a card that is down and has no speed
        return ""
