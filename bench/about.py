"""What the figures of a run depend on beside the command line: versions, processor, cores, system."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def about(packages: Sequence[str]) -> dict[str, Any]:
    """JSON types: `versions` of this package, Python, numpy and those of `packages` that are installed; `cpu`; `cores`
    of the machine and `usable_cores` of this process; `system`."""
    versions = {"treering": _version("treering"), "python": platform.python_version()}
    versions |= {name: _version(name) for name in ("numpy", *packages)}
    return {
        "versions": {name: version for name, version in versions.items() if version},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
