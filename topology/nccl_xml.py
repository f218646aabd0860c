"""The topology that NCCL dumps as XML, when NCCL_TOPO_DUMP_FILE names a file, as a cluster of its GPUs.

    <system version="1">
      <cpu numaid="0" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="143">
        <pci busid="0000:16:00.0" class="0x060400" link_speed="32.0 GT/s PCIe" link_width="16">
          <pci busid="0000:18:00.0" class="0x030200" link_speed="32.0 GT/s PCIe" link_width="16">
            <gpu dev="0" sm="90" rank="0" gdr="1"> <nvlink target="0000:07:00.0" count="18" tclass="0x068000"/> </gpu>
          </pci>
          <pci busid="0000:19:00.0" class="0x020000" link_speed="32.0 GT/s PCIe" link_width="16">
            <nic> <net name="mlx5_0" dev="0" speed="400000" port="1"/> </nic>
          </pci> ...

A device hangs below its parent by the link its `pci` element describes; `nvlink` counts links to another GPU, to a
switch (class 0x0680..) or to the CPU. Bandwidths of NVLink by compute capability, of PCI by GT/s and width, and between
CPUs by vendor and model are what NCCL reckons with (nccl/src/graph/topo.h and topo.cc). The file says nothing of
latencies: the ones here are of the usual order, and make messages prefer NVLink to PCI.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

from topology.cluster import Cluster, Device
from topology.files import parse_preset
from topology.graphs import Wire, graph
from topology.matrix import connection

__all__ = ["from_nccl_xml", "load"]

NVLINK_LATENCY_S = 0.3e-6
PCI_LATENCY_S = 0.5e-6
CPU_LATENCY_S = 1e-6  # between two CPUs
NETWORK_LATENCY_S = 1e-6  # between a NIC and its port

_NVLINK_BYTES_PER_S = ((100, 40.1e9), (90, 20.6e9), (87, 20e9), (86, 12e9), (70, 20e9), (60, 18e9))  # from this sm on
_DEEPEST = 100
_GPU_CLASS, _SWITCH_CLASS, _CPU_CLASS = "0x03", "0x0680", "0x068001"


def from_nccl_xml(given: str | Path) -> Cluster:
    """The GPUs of a dump, given as a path or as the text itself, in the order of their NCCL ranks.

    Where no GPU has a rank, all count, by their `dev`; otherwise those without are left out, as in NCCL. NICs and CPUs
    are vertices on the way, and devices of the cluster. Raises ValueError that names the line, and OSError.
    """
    if isinstance(given, str) and given.lstrip().startswith("<"):
        text, name = given, "XML"
    else:
        text, name = Path(given).read_text(encoding="utf-8"), str(given)
    return _System(_parse(text, name)).cluster(Path(name).stem)


def load(given: str | Path) -> Cluster:
    """What a person names a cluster by: a preset as text, such as "hosts(4, 8)", a JSON file, or a dump of NCCL's.

    Raises ValueError that names the line, and OSError.
    """
    if re.fullmatch(r"\s*\w+\s*\(.*\)\s*", str(given), re.DOTALL) and not os.path.exists(given):
        return parse_preset(str(given))
    if Path(given).read_text(encoding="utf-8").lstrip().startswith("<"):
        return from_nccl_xml(Path(given))
    return Cluster.load(given)


@dataclass
class _Element:
    tag: str
    attributes: dict[str, str]
    where: str
    inside: list[_Element] = field(default_factory=lambda: list[_Element]())

    def fail(self, what: str) -> NoReturn:
        raise ValueError(f"{self.where}: <{self.tag}>: {what}")

    def text(self, key: str) -> str:
        if key not in self.attributes:
            self.fail(f"the attribute {key!r} is missing")
        return self.attributes[key]

    def number(self, key: str, otherwise: int | None = None) -> int:
        text = self.text(key) if otherwise is None else self.attributes.get(key, str(otherwise))
        try:
            return int(text, 0)
        except ValueError:
            self.fail(f"{key}={text!r} must be a whole number")

    def all(self, tag: str) -> Iterator[_Element]:
        return (element for element in self.inside if element.tag == tag)


def _parse(text: str, name: str) -> _Element:
    parser = expat.ParserCreate()
    document = _Element("", {}, f"{name}:1")
    open_elements = [document]

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = _Element(tag, attributes, f"{name}:{parser.CurrentLineNumber}")
        if len(open_elements) > _DEEPEST:
            element.fail("nested too deeply")
        open_elements[-1].inside.append(element)
        open_elements.append(element)

    def end(tag: str) -> None:
        open_elements.pop()

    def refuse(*_: Any) -> None:
        raise ValueError(f"{name}:{parser.CurrentLineNumber}: a topology has no DOCTYPE and no entities of its own")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise ValueError(f"{name}:{error.lineno}: this is not XML: {expat.ErrorString(error.code)}") from None
    system = document.inside[0]
    if system.tag != "system":
        raise ValueError(f"{system.where}: expected <system>, not <{system.tag}>: NCCL_TOPO_DUMP_FILE writes that")
    return system


class _System:
    def __init__(self, system: _Element) -> None:
        self._system = system
        self._wires: dict[tuple[str, str], Wire] = {}  # but for NVLinks
        self._nvlinks: dict[tuple[str, str], Wire] = {}
        self._gpus: list[tuple[_Element, str, str]] = []  # the element, its bus, its CPU
        self._nics: list[tuple[_Element, str]] = []  # the net element, its vertex
        self._used: list[tuple[_Element, str, str]] = []  # of these the ranks, in order
        self._hosts: dict[str, int] = {}
        self._cpus: list[tuple[_Element, str, int]] = []  # the element, its vertex, its host

    def cluster(self, name: str) -> Cluster:
        for cpu in self._system.all("cpu"):
            host = self._hosts.setdefault(cpu.attributes.get("host_hash", ""), len(self._hosts))
            vertex = f"cpu {host}.{cpu.number('numaid')}"
            for other, far, home in self._cpus:
                if home == host:
                    self._wire(vertex, far, CPU_LATENCY_S, min(_cpu_bytes_per_s(cpu), _cpu_bytes_per_s(other)), "SYS")
            self._cpus.append((cpu, vertex, host))
            self._below(cpu, vertex, vertex, host)
        ranked = [gpu for gpu in self._gpus if "rank" in gpu[0].attributes]
        key = "rank" if ranked else "dev"
        gpus = sorted(ranked or self._gpus, key=lambda gpu: gpu[0].number(key))
        if not gpus:
            self._system.fail("there is no <gpu>")
        for (one, _, _), (other, _, _) in itertools.pairwise(gpus):
            if one.number(key) == other.number(key):
                other.fail(f"{key}={other.number(key)} is there twice, first at {one.where}")
        self._used = gpus
        for gpu, bus, cpu in gpus:
            for link in gpu.all("nvlink"):
                self._nvlink(gpu, bus, cpu, link)
        groups: dict[str, list[int]] = {}
        for rank, (_, _, cpu) in enumerate(gpus):
            groups.setdefault(cpu.partition(".")[0], []).append(rank)
        hosts = tuple(map(tuple, groups.values()))
        ranks = [f"gpu {bus}" for _, bus, _ in gpus]
        wires = {**self._wires, **self._nvlinks}  # a GPU right below a CPU that it has NVLinks to takes those
        found = graph(ranks, list(wires.values()), groups=hosts, levels=["host"])
        return found.described(name, self._devices(ranks))

    def _below(self, parent: _Element, vertex: str, cpu: str, host: int) -> None:
        """Everything that hangs below a CPU or a PCI switch."""
        for nic in parent.all("nic"):
            self._nic(nic, vertex, host)
        for pci in parent.all("pci"):
            bus = _bus(pci.text("busid"), host)
            bandwidth = _pci_bytes_per_s(pci)
            kind = "PHB" if vertex == cpu else "PCI"
            gpus, nics = list(pci.all("gpu")), list(pci.all("nic"))
            for gpu in gpus:
                self._gpus.append((gpu, bus, cpu))
                self._wire(f"gpu {bus}", vertex, PCI_LATENCY_S, bandwidth, kind)
            if nics:
                self._wire(f"nic {bus}", vertex, PCI_LATENCY_S, bandwidth, kind)
                for nic in nics:
                    self._nic(nic, f"nic {bus}", host)
            if not gpus and not nics and pci.inside:
                self._wire(f"pci {bus}", vertex, PCI_LATENCY_S, bandwidth, kind)
                self._below(pci, f"pci {bus}", cpu, host)

    def _nic(self, nic: _Element, vertex: str, host: int) -> None:
        for net in nic.all("net"):
            port = f"net {host}.{net.attributes.get('name', net.attributes.get('dev', '?'))}"
            speed_mbit_per_s = net.number("speed", 0)
            if speed_mbit_per_s <= 0:
                speed_mbit_per_s = 10000  # what NCCL takes it for when a NIC does not say
            self._wire(port, vertex, NETWORK_LATENCY_S, speed_mbit_per_s * 1e6 / 8, "NIC")
            self._nics.append((net, port))

    def _nvlink(self, gpu: _Element, bus: str, cpu: str, link: _Element) -> None:
        sm = gpu.number("sm", 80)
        each = next((rate for since, rate in _NVLINK_BYTES_PER_S if sm >= since), 20e9)
        count = link.number("count")
        if count < 1:
            link.fail(f"count={count} must be at least 1")
        target = _bus(link.text("target"), int(cpu[4:].partition(".")[0]))
        known = {known for _, known, _ in self._gpus}
        tclass = link.attributes.get("tclass", _GPU_CLASS if target in known else _SWITCH_CLASS)
        if tclass.startswith(_GPU_CLASS):
            if target in known:  # a GPU that is not in the file is on none of its paths
                self._nvwire(f"gpu {bus}", f"gpu {target}", count, each)
        else:
            # All switches are one, as in NCCL: a GPU has as many links to each of them.
            other = cpu if tclass == _CPU_CLASS else "nvswitch"
            self._nvwire(f"gpu {bus}", other, count, each)
            self._nvwire(other, f"gpu {bus}", count, each)

    def _nvwire(self, source: str, target: str, count: int, each: float) -> None:
        before = self._nvlinks.get((source, target))
        count += int(before.kind[2:]) if before else 0
        self._nvlinks[source, target] = Wire(source, target, NVLINK_LATENCY_S, count * each, True, f"NV{count}")

    def _wire(self, source: str, target: str, latency_s: float, bandwidth_bytes_per_s: float, kind: str) -> None:
        self._wires[source, target] = Wire(source, target, latency_s, bandwidth_bytes_per_s, False, kind)

    def _devices(self, ranks: list[str]) -> list[Device]:
        """CPUs and GPUs as they are, and NICs with the way from each GPU."""
        several = len(self._hosts) > 1
        devices = [
            Device(f"CPU {vertex[4:] if several else cpu.number('numaid')}", _about(cpu, "arch", "vendor", "affinity"))
            for cpu, vertex, _ in self._cpus
        ]
        devices += [
            Device(f"GPU{rank}", f"{vertex[4:]}, {_about(gpu, 'sm', 'dev')}")
            for rank, (vertex, (gpu, _, _)) in enumerate(zip(ranks, self._used, strict=True))
        ]
        # A GPU can also reach a NIC over NVLink and another GPU; how near it is says the way over PCI.
        wires = list(self._wires.values())
        for net, port in self._nics:
            host = port.partition(".")[0][4:]
            local = [vertex for vertex, gpu in zip(ranks, self._used, strict=True) if gpu[2].startswith(f"cpu {host}.")]
            reachable = graph([port, *local], wires)
            near = tuple(
                connection(reachable, local.index(vertex) + 1, 0) if vertex in local else "NET" for vertex in ranks
            )
            speed = net.number("speed", 0)
            about = f"NIC, {speed / 1000:g} Gbit/s" if speed > 0 else "NIC that does not say its speed"
            devices.append(Device(port[4:] if several else port[4:].partition(".")[2], about, near))
        return devices


def _about(element: _Element, *keys: str) -> str:
    return ", ".join(f"{key} {element.attributes[key]}" for key in keys if key in element.attributes)


def _bus(text: str, host: int) -> str:
    return (f"{host}." if host else "") + text.lower()


def _pci_bytes_per_s(pci: _Element) -> float:
    """Three quarters of the signalling rate reach a device, three fifths before the third generation."""
    speed, width = pci.attributes.get("link_speed", ""), pci.number("link_width", 16) or 16
    match = re.match(r"([\d.]+) *GT/s", speed)
    giga = float(match[1]) if match else 8.0  # where a virtual machine does not say
    return giga * (0.75 if giga >= 8 else 0.6) * width / 8 * 1e9


def _cpu_bytes_per_s(cpu: _Element) -> float:
    vendor, family, model = cpu.attributes.get("vendor"), cpu.number("familyid", 0), cpu.number("modelid", 0)
    if vendor == "GenuineIntel":
        newest = model >= 0xCF or 0xAD <= model <= 0xAF  # model numbers do not follow the years
        return 6e9 if family != 6 or model < 0x55 else 40e9 if newest else 22e9 if model >= 0x8F else 10e9
    if vendor == "AuthenticAMD":
        return 32e9 if family == 26 else 24e9 if family == 25 else 16e9
    return {"arm64": 6e9, "ppc64": 32e9}.get(cpu.attributes.get("arch", ""), 16e9)
