"""GPUs and their NVLinks, where nvidia-ml-py (the extra `topology`) and NVIDIA's driver are."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topology.sysfs import numa_of_pci

__all__ = ["SWITCH", "Gpu", "NvLink", "gpus"]

SWITCH = "nvswitch"

_MOST_LINKS = 36


@dataclass(frozen=True)
class NvLink:
    """The links to one GPU, by its PCI bus, or to all switches together (SWITCH)."""

    target: str
    count: int
    bytes_per_s: float


@dataclass(frozen=True)
class Gpu:
    name: str
    bus: str  # as /sys has it: 0000:18:00.0
    numa: int
    links: tuple[NvLink, ...]


def gpus(root: Path, nvml: Any = None) -> list[Gpu]:
    """The GPUs in NVML's order; none where the library or the driver is missing. `nvml` stands in for pynvml."""
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [_gpu(handle, root, nvml) for handle in handles]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def _gpu(handle: Any, root: Path, nvml: Any) -> Gpu:
    bus = _bus(nvml.nvmlDeviceGetPciInfo(handle).busId)
    counts: dict[str, int] = {}
    rates: dict[str, float] = {}
    for link in range(_MOST_LINKS):
        try:
            if not nvml.nvmlDeviceGetNvLinkState(handle, link):
                continue
            if nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
                target = SWITCH
            else:
                target = _bus(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId)
            version = int(nvml.nvmlDeviceGetNvLinkVersion(handle, link))
        except nvml.NVMLError:  # this GPU has no such link
            continue
        counts[target] = counts.get(target, 0) + 1
        rates[target] = rates.get(target, 0.0) + _link_bytes_per_s(version)
    links = tuple(NvLink(target, count, rates[target]) for target, count in sorted(counts.items()))
    return Gpu(_text(nvml.nvmlDeviceGetName(handle)), bus, numa_of_pci(bus, root), links)


def _link_bytes_per_s(version: int) -> float:
    """Of one link, each way, by NVML's number of the version: 1 for NVLink 1, 2 to 6 for 2 to 4, 7 for NVLink 5."""
    return 20e9 if version == 1 else 25e9 if version < 7 else 50e9


def _bus(given: str | bytes) -> str:
    """A PCI bus as /sys writes it; NVML gives the domain eight digits."""
    domain, _, rest = _text(given).lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def _text(given: str | bytes) -> str:
    return given.decode() if isinstance(given, bytes) else given
