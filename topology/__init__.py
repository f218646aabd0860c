"""What the machines look like: ranks, the links between them, what the links share, and how ranks are grouped.

cluster.py defines `Cluster`, which prices and simulations are made on; presets.py makes the usual ones from the
families in trees.py, tori.py and fabrics.py; graphs.py takes any graph; files.py reads and writes JSON, nccl_xml.py
reads what NCCL dumps; discover.py looks at a running job, with sysfs.py and gpus.py; matrix.py and picture.py show a
cluster. Imports numpy and nothing else of ours; everything above may import it.
"""

from __future__ import annotations

from topology import presets
from topology.cluster import Cluster, Device, Groups, Link
from topology.discover import discover, this_machine
from topology.files import parse_preset
from topology.graphs import Wire, graph
from topology.nccl_xml import from_nccl_xml, load
from topology.presets import Level

__all__ = [
    "Cluster",
    "Device",
    "Groups",
    "Level",
    "Link",
    "Wire",
    "discover",
    "from_nccl_xml",
    "graph",
    "load",
    "parse_preset",
    "presets",
    "this_machine",
]
