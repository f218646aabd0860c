"""What a measurement of this machine holds for: its processor, the cores a process may use, and its network cards."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path
from typing import Any

from topology.sysfs import nodes, numa_of_cpus, read

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
    for line in read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return platform.machine()


def _numa_node(root: Path, cores: set[int]) -> int | None:
    node = numa_of_cpus(",".join(map(str, cores)), nodes(root))
    return None if node < 0 else node


def _nics(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for nic in sorted((root / "sys/class/net").glob("*")):
        if (nic / "device").exists() or (nic / "bonding").exists():
            found[nic.name] = f"{read(nic / 'speed') or '?'} Mbit/s, MTU {read(nic / 'mtu') or '?'}"
    return found
