"""What a process can read about its machine from /sys and /proc: host, NUMA nodes, CPUs, NICs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Nic", "Node", "hostname", "nics", "nodes", "numa_of_cpus", "numa_of_pci", "process_cpus", "read"]

_ETHERNET, _INFINIBAND = 1, 32  # of /sys/class/net/*/type, from linux/if_arp.h


@dataclass(frozen=True)
class Node:
    """A NUMA node and its CPUs, as Linux writes sets of them: "0-3,8"."""

    number: int
    cpus: str


@dataclass(frozen=True)
class Nic:
    """A network interface that is up. `bits_per_s` is None where it does not say, `numa` is -1."""

    name: str
    bits_per_s: float | None
    mtu_bytes: int
    numa: int


def hostname(root: Path) -> str:
    return read(root / "proc/sys/kernel/hostname") or "localhost"


def nodes(root: Path) -> list[Node]:
    """The NUMA nodes, by number; none where the kernel does not say."""
    found: list[Node] = []
    for path in (root / "sys/devices/system/node").glob("node[0-9]*"):
        found.append(Node(int(path.name[4:]), read(path / "cpulist")))
    return sorted(found, key=lambda node: node.number)


def process_cpus(root: Path) -> str:
    """The CPUs that this process may run on."""
    for line in read(root / "proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            return value.strip()
    return ""


def numa_of_cpus(cpus: str, nodes: Iterable[Node]) -> int:
    """The NUMA node that has all these CPUs; -1 where they are of several."""
    wanted = _cpu_set(cpus)
    return next((node.number for node in nodes if wanted and wanted <= _cpu_set(node.cpus)), -1)


def numa_of_pci(bus: str, root: Path) -> int:
    """The NUMA node of a PCI device such as 0000:18:00.0; -1 where Linux does not say."""
    return _number(read(root / "sys/bus/pci/devices" / bus / "numa_node"), -1)


def nics(root: Path) -> list[Nic]:
    """The interfaces that are up, Ethernet or InfiniBand, by name.

    A speed counts only where there is hardware: veth, bridges and their like report 10 Gbit/s whatever they do, and
    virtual machines' NICs report -1.
    """
    found: list[Nic] = []
    for path in sorted((root / "sys/class/net").glob("*")):
        if _number(read(path / "type"), 0) not in (_ETHERNET, _INFINIBAND) or read(path / "operstate") != "up":
            continue
        mbit_per_s = _number(read(path / "speed"), -1) if (path / "device").exists() else -1
        bits_per_s = mbit_per_s * 1e6 if mbit_per_s > 0 else None
        numa = _number(read(path / "device/numa_node"), -1)
        found.append(Nic(path.name, bits_per_s, _number(read(path / "mtu"), 0), numa))
    return found


def _cpu_set(cpus: str) -> set[int]:
    found = set[int]()
    for part in filter(None, cpus.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def read(path: Path) -> str:
    """A file of a virtual file system, "" where there is none or it does not answer, as `speed` of what is down."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()  # names may be anything
    except OSError:
        return ""


def _number(text: str, otherwise: int) -> int:
    try:
        return int(text)
    except ValueError:
        return otherwise
