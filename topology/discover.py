"""The cluster that a running job is on: each rank reads its machine, all exchange what they read.

Ranks are grouped by host. What cannot be read is taken to be usual, until it is measured:

    between ranks of a host     1 us, 10 GB/s
    between hosts               30 us; the fastest NIC that says its speed, 10 Gbit/s where none does
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from topology.cluster import Cluster, Device
from topology.gpus import SWITCH, Gpu, NvLink, gpus
from topology.graphs import Wire, graph
from topology.presets import Level, tree
from topology.sysfs import Nic, Node, hostname, nics, nodes, numa_of_cpus, process_cpus

__all__ = ["Facts", "discover", "facts", "this_machine"]

HOST_LATENCY_S = 1e-6
HOST_BYTES_PER_S = 10e9
NETWORK_LATENCY_S = 30e-6
NETWORK_BYTES_PER_S = 1.25e9
PCI_LATENCY_S = 0.5e-6  # from a GPU to its CPU
PCI_BYTES_PER_S = 24e9
NUMA_LATENCY_S = 1e-6  # from one NUMA node to another
NUMA_BYTES_PER_S = 20e9
NVLINK_LATENCY_S = 0.3e-6

_MOST_NEAR = 64  # above so many ranks nobody reads how each is connected to every NIC


class Communicator(Protocol):
    """What `discover` needs of a communicator; that of `collectives` has it."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def hosts(self) -> tuple[tuple[int, ...], ...]: ...
    def all_gather(self, x: Any, /) -> Any: ...


@dataclass(frozen=True)
class Facts:
    """What one process found out about its machine and itself. `numa` is -1 where it may run on several nodes."""

    host: str
    cpus: str
    numa: int
    nodes: tuple[Node, ...]
    nics: tuple[Nic, ...]
    gpus: tuple[Gpu, ...]


def facts(root: str | Path = "/", nvml: Any = None) -> Facts:
    """Reads /sys and /proc below `root`, and the GPUs; leaves out what is not there. Takes milliseconds."""
    root = Path(root)
    found, cpus = nodes(root), process_cpus(root)
    # Where there is one node, all devices are at it, though Linux says -1.
    only = found[0].number if len(found) == 1 else -1
    return Facts(
        hostname(root),
        cpus,
        numa_of_cpus(cpus, found),
        tuple(found),
        tuple(replace(nic, numa=max(nic.numa, only)) for nic in nics(root)),
        tuple(replace(gpu, numa=max(gpu.numa, only)) for gpu in gpus(root, nvml)),
    )


def discover(comm: Communicator, *, root: str | Path = "/") -> Cluster:
    """The cluster that the ranks of a communicator are on, equal on every rank. All ranks call it.

    Groups are hosts, in the communicator's numbering. What was found is in `devices`: hosts, NUMA nodes with their
    CPUs, NICs with speed and MTU, GPUs with their NVLinks, and each rank's CPUs.
    """
    mine = np.frombuffer(json.dumps(asdict(facts(root))).encode(), np.uint8)
    lengths = np.asarray(comm.all_gather(np.array([mine.size], np.int64).view(np.uint8))).view(np.int64)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: mine.size] = mine
    table = np.asarray(comm.all_gather(padded)).reshape(comm.size, -1)
    every = [_from_json(row[:length].tobytes()) for row, length in zip(table, lengths.tolist(), strict=True)]
    return _cluster(every, comm.hosts)


def this_machine(root: str | Path = "/", nvml: Any = None) -> Cluster:
    """This machine alone: its GPUs as ranks, connected by NVLink or over the CPUs; without GPUs, this process."""
    found = facts(root, nvml)
    if not found.gpus:
        return _cluster([found], ((0,),))
    buses = [gpu.bus for gpu in found.gpus]
    wires: dict[tuple[str, str], Wire] = {}
    for gpu in found.gpus:
        host = f"numa {max(gpu.numa, 0)}"
        wires[gpu.bus, host] = Wire(gpu.bus, host, PCI_LATENCY_S, PCI_BYTES_PER_S, kind="PHB")
        for link in gpu.links:
            if link.target == SWITCH or link.target in buses:
                kind = f"NV{link.count}"
                ways = [(gpu.bus, link.target), (link.target, gpu.bus)]
                for way in ways if link.target == SWITCH else ways[:1]:
                    wires[way] = Wire(*way, NVLINK_LATENCY_S, link.bytes_per_s, True, kind)
    used = sorted({max(gpu.numa, 0) for gpu in found.gpus})
    for place, one in enumerate(used):
        for other in used[:place]:
            ends = f"numa {one}", f"numa {other}"
            wires[ends] = Wire(*ends, NUMA_LATENCY_S, NUMA_BYTES_PER_S, kind="SYS")
    cluster = graph(buses, list(wires.values()), groups=(tuple(range(len(buses))),), levels=["host"])
    near = [[_near(found.host, gpu.numa, found.host, nic.numa) for gpu in found.gpus] for nic in found.nics]
    devices = [*_host_devices(found, "", near), *(_gpu_device(f"GPU{n}", gpu) for n, gpu in enumerate(found.gpus))]
    return cluster.described(found.host, devices)


def _cluster(every: Sequence[Facts], hosts: Sequence[Sequence[int]]) -> Cluster:
    speeds: list[float] = []
    devices: list[Device] = []
    home = {rank: place for place, ranks in enumerate(hosts) for rank in ranks}
    several = len(hosts) > 1
    for place, ranks in enumerate(hosts):
        found = every[ranks[0]]
        speeds.append(max((n.bits_per_s / 8 for n in found.nics if n.bits_per_s), default=NETWORK_BYTES_PER_S))
        prefix = f"{found.host} " if several else ""
        numbers = ", ".join(map(str, ranks[:16])) + (", ..." if len(ranks) > 16 else "")
        devices.append(Device(found.host, f"rank{'s' * (len(ranks) > 1)} {numbers}"))

        def near(numa: int, here: int = place) -> list[str]:
            if len(every) > _MOST_NEAR:
                return []
            return [_near(str(home[rank]), other.numa, str(here), numa) for rank, other in enumerate(every)]

        devices += _host_devices(found, prefix, [near(nic.numa) for nic in found.nics])
        devices += [_gpu_device(f"{prefix}GPU{number}", gpu, near(gpu.numa)) for number, gpu in enumerate(found.gpus)]
    for rank, found in enumerate(every):
        node = f", NUMA {found.numa}" if found.numa >= 0 else ""
        devices.append(Device(f"rank {rank}", f"{found.host}, CPUs {found.cpus or 'unknown'}{node}"))
    level = Level("host", (NETWORK_LATENCY_S - HOST_LATENCY_S) / 2, speeds)
    groups = tuple(map(tuple, hosts))
    made = tree(groups, [level], latency_s=HOST_LATENCY_S / 2, bandwidth_bytes_per_s=HOST_BYTES_PER_S)
    names = list(dict.fromkeys(every[ranks[0]].host for ranks in hosts))
    return made.described(", ".join(names[:4]) + (", ..." if len(names) > 4 else ""), devices)


def _host_devices(found: Facts, prefix: str, near: Sequence[Sequence[str]]) -> list[Device]:
    devices = [Device(f"{prefix}NUMA {node.number}", f"CPUs {node.cpus or 'none'}") for node in found.nodes]
    for nic, words in zip(found.nics, near, strict=True):
        speed = f"{nic.bits_per_s / 1e9:g} Gbit/s" if nic.bits_per_s else "speed unknown"
        node = f", NUMA {nic.numa}" if nic.numa >= 0 else ""
        devices.append(Device(f"{prefix}{nic.name}", f"NIC, {speed}, MTU {nic.mtu_bytes}{node}", tuple(words)))
    return devices


def _gpu_device(name: str, gpu: Gpu, near: Sequence[str] = ()) -> Device:
    links = "".join(f", {link.count} NVLinks to {link.target}" for link in gpu.links)
    node = f", NUMA {gpu.numa}" if gpu.numa >= 0 else ""
    return Device(name, f"{gpu.name}, PCI {gpu.bus}{node}{links}", tuple(near))


def _near(host: str, numa: int, other_host: str, other_numa: int) -> str:
    if host != other_host:
        return "NET"
    return "-" if min(numa, other_numa) < 0 else "NODE" if numa == other_numa else "SYS"


def _from_json(text: bytes) -> Facts:
    given = json.loads(text)
    return Facts(
        given["host"],
        given["cpus"],
        given["numa"],
        tuple(Node(**node) for node in given["nodes"]),
        tuple(Nic(**nic) for nic in given["nics"]),
        tuple(Gpu(g["name"], g["bus"], g["numa"], tuple(NvLink(**n) for n in g["links"])) for g in given["gpus"]),
    )
