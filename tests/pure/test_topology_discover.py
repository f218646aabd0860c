"""What a job finds out about its machines, on made-up ones: the same cluster on every rank."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from topology import Cluster, discover, this_machine
from topology.discover import facts
from topology.gpus import SWITCH, gpus
from topology.matrix import connection, show


def machine(root: Path, name: str, *, nodes: dict[int, str], cpus: str, nics: dict[str, dict[str, object]]) -> Path:
    """A made-up /sys and /proc."""

    def write(path: str, text: object) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n")

    write("proc/sys/kernel/hostname", name)
    write("proc/self/status", f"Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}")
    for number, inside in nodes.items():
        write(f"sys/devices/system/node/node{number}/cpulist", inside)
    write("sys/class/net/bonding_masters", "")  # a file among the interfaces
    for nic, values in nics.items():
        for key, value in ({"type": 1, "operstate": "up", "mtu": 1500} | values).items():
            write(f"sys/class/net/{nic}/{key}", value)
    return root


def big(root: Path, name: str, cpus: str = "0-7") -> Path:
    return machine(
        root,
        name,
        nodes={0: "0-3,8-11", 1: "4-7,12-15"},
        cpus=cpus,
        nics={
            "lo": {"type": 772, "operstate": "unknown"},
            "eth0": {"speed": 10000, "mtu": 9000, "device/numa_node": 0},
            "eth1": {"speed": 25000, "device/numa_node": 1},
            "eth2": {"speed": 100000, "operstate": "down", "device/numa_node": 1},
            "veth7": {"speed": 400000},  # no hardware behind it: what it says is not believed
        },
    )


def small(root: Path, name: str) -> Path:
    return machine(root, name, nodes={0: "0-1"}, cpus="1", nics={"ens3": {"speed": -1, "device/vendor": "0x1af4"}})


class Comm:
    """A communicator of threads, just as far as discovery needs one."""

    def __init__(self, rank: int, hosts: tuple[tuple[int, ...], ...], table: dict[int, Any], meet: Any) -> None:
        self.rank, self.size, self.hosts = rank, sum(map(len, hosts)), hosts
        self._table, self._meet = table, meet

    def all_gather(self, x: np.ndarray) -> np.ndarray:
        assert x.dtype == np.uint8
        self._table[self.rank] = x
        self._meet.wait(10)
        result = np.concatenate([self._table[rank] for rank in range(self.size)])
        self._meet.wait(10)
        return result


def discover_all(roots: list[Path], hosts: tuple[tuple[int, ...], ...]) -> list[Cluster]:
    table: dict[int, Any] = {}
    found: dict[int, Cluster] = {}
    meet = threading.Barrier(len(roots))

    def run(rank: int) -> None:
        found[rank] = discover(Comm(rank, hosts, table, meet), root=roots[rank])

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(roots))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[rank] for rank in range(len(roots))]


def test_every_rank_finds_the_same_cluster_in_the_communicators_numbering(tmp_path: Path) -> None:
    roots = [
        big(tmp_path / "0", "alpha", cpus="0-3"),
        small(tmp_path / "1", "beta"),
        big(tmp_path / "2", "alpha", cpus="4-7"),
    ]
    clusters = discover_all(roots, ((0, 2), (1,)))
    assert clusters[0] == clusters[1] == clusters[2]
    cluster = clusters[0]
    assert cluster.hosts == ((0, 2), (1,))
    assert cluster.levels == ("host",)
    assert cluster.name == "alpha, beta"
    assert Cluster.from_json(cluster.to_json()) == cluster
    # alpha has a NIC of 25 Gbit/s; beta's does not say, which counts as 10 Gbit/s.
    links = {link.name: link.bandwidth_bytes_per_s for link in cluster.links}
    assert (links["host0.up"], links["host1.up"]) == (25e9 / 8, 10e9 / 8)
    assert cluster.latency_s(0, 1) == pytest.approx(30e-6)
    assert cluster.latency_s(0, 2) == pytest.approx(1e-6)


def test_what_was_found_is_told(tmp_path: Path) -> None:
    roots = [big(tmp_path / "0", "alpha", "0-3"), small(tmp_path / "1", "beta"), big(tmp_path / "2", "alpha", "0-7")]
    cluster = discover_all(roots, ((0, 2), (1,)))[0]
    devices = {device.name: (device.about, device.near) for device in cluster.devices}
    assert devices == {
        "alpha": ("ranks 0, 2", ()),
        "alpha NUMA 0": ("CPUs 0-3,8-11", ()),
        "alpha NUMA 1": ("CPUs 4-7,12-15", ()),
        "alpha eth0": ("NIC, 10 Gbit/s, MTU 9000, NUMA 0", ("NODE", "NET", "-")),
        "alpha eth1": ("NIC, 25 Gbit/s, MTU 1500, NUMA 1", ("SYS", "NET", "-")),
        "alpha veth7": ("NIC, speed unknown, MTU 1500", ("-", "NET", "-")),
        "beta": ("rank 1", ()),
        "beta NUMA 0": ("CPUs 0-1", ()),
        "beta ens3": ("NIC, speed unknown, MTU 1500, NUMA 0", ("NET", "NODE", "NET")),
        "rank 0": ("alpha, CPUs 0-3, NUMA 0", ()),
        "rank 1": ("beta, CPUs 1, NUMA 0", ()),
        "rank 2": ("alpha, CPUs 0-7", ()),
    }
    text = show(cluster)
    assert "alpha eth1" in text
    assert "NIC, 25 Gbit/s" in text


def test_a_machine_that_says_nothing_is_one_rank_on_a_host(tmp_path: Path) -> None:
    cluster = this_machine(tmp_path)
    assert cluster.hosts == ((0,),)
    assert cluster.name == "localhost"
    assert facts(tmp_path).nodes == ()


def test_a_process_may_have_any_name(tmp_path: Path) -> None:
    root = small(tmp_path, "node")
    (root / "proc/self/status").write_bytes(b"Name:\tr\xc3\nCpus_allowed_list:\t1\n")  # cut within a letter
    assert facts(root).cpus == "1"


def test_this_machine_is_read_without_an_error() -> None:
    assert this_machine().size >= 1


class NVMLError(Exception):
    pass


def nvml(links: list[list[tuple[str, int]]]) -> Any:
    """Stands in for pynvml: for each GPU its links, each to a bus or to "switch", with NVML's number of its version."""

    def link(handle: int, number: int) -> tuple[str, int]:
        if number >= len(links[handle]):
            raise NVMLError("no such link")
        return links[handle][number]

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_NVLINK_DEVICE_TYPE_SWITCH=2,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(links),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: b"NVIDIA H100",
        nvmlDeviceGetPciInfo=lambda handle: SimpleNamespace(busId=f"00000000:{handle + 1}A:00.0"),
        nvmlDeviceGetNvLinkState=lambda handle, number: link(handle, number)[0] != "off",
        nvmlDeviceGetNvLinkRemoteDeviceType=lambda handle, number: 2 * (link(handle, number)[0] == "switch"),
        nvmlDeviceGetNvLinkRemotePciInfo=lambda handle, number: SimpleNamespace(busId=link(handle, number)[0]),
        nvmlDeviceGetNvLinkVersion=lambda handle, number: link(handle, number)[1],
    )


def test_gpus_behind_a_switch(tmp_path: Path) -> None:
    big(tmp_path, "dgx")
    for gpu, node in ((0, 0), (1, 0), (2, 1)):
        path = tmp_path / f"sys/bus/pci/devices/0000:{gpu + 1}a:00.0"
        path.mkdir(parents=True)
        (path / "numa_node").write_text(f"{node}\n")
    cluster = this_machine(tmp_path, nvml([[("switch", 6)] * 17 + [("off", 0)]] * 3))
    assert connection(cluster, 0, 2) == "NV17"
    assert cluster.bandwidth_bytes_per_s(0, 2) == 17 * 25e9
    devices = {device.name: device for device in cluster.devices}
    assert devices["GPU2"].about == "NVIDIA H100, PCI 0000:3a:00.0, NUMA 1, 17 NVLinks to nvswitch"
    assert devices["eth1"].near == ("SYS", "SYS", "NODE")


def test_gpus_linked_to_each_other_and_over_the_cpus(tmp_path: Path) -> None:
    big(tmp_path, "box")
    links = [[("00000000:2A:00.0", 7)] * 2, [("00000000:1A:00.0", 7)] * 2, []]
    cluster = this_machine(tmp_path, nvml(links))
    assert connection(cluster, 0, 1) == connection(cluster, 1, 0) == "NV2"
    assert cluster.bandwidth_bytes_per_s(0, 1) == 2 * 50e9
    assert connection(cluster, 0, 2) == "PHB"


def test_without_a_driver_there_are_no_gpus(tmp_path: Path) -> None:
    def fail() -> None:
        raise NVMLError("driver not loaded")

    assert gpus(tmp_path, SimpleNamespace(NVMLError=NVMLError, nvmlInit=fail)) == []
    assert gpus(tmp_path, nvml([])) == []
    (gpu,) = gpus(tmp_path, nvml([[("switch", 6)]]))
    assert (gpu.links[0].target, gpu.numa) == (SWITCH, -1)
