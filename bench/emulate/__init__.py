"""Clusters emulated on one machine, for real traffic: hosts are network namespaces, links are shaped by the kernel.

`python -m bench cluster --hosts 4 --link 200mbit all_reduce` measures in one (`command.py`); tests and programs of your
own use `EmulatedCluster`. Linux only, as root, with iproute2. Nothing here imports `collectives` or `transports`.
"""

from .cluster import EmulatedCluster
from .layout import PLACEMENTS, Layout
from .namespace import EmulationError, what_is_missing

__all__ = ["PLACEMENTS", "EmulatedCluster", "EmulationError", "Layout", "what_is_missing"]
