"""An emulated cluster as its makers know it: what "auto" goes by there, and predictions are made on."""

from __future__ import annotations

import os

from topology import Groups

from .layout import Layout

PAYLOAD = 8948 / 9014  # of the bytes of a full frame: what is left of it without the headers of Ethernet, IP and TCP
# Ranks of a host are processes of this machine; what links them is not the bottleneck, so rough figures do.
HOST_LATENCY_S, HOST_BYTES_PER_S, HOST_MEMORY_BYTES_PER_S = 1e-6, 8e9, 16e9
LINK_LATENCY_S = 5e-6  # of one veth pair and its switch
MESSAGE_S = 8e-6  # of a processor, at either end; the ranks of all hosts share those of this machine


def spelled(layout: Layout) -> str:
    """The cluster with the ranks, links and rates of a layout, as `topology.load` reads it."""
    hosts: list[Groups] = [
        tuple(rank for rank in range(layout.size) if layout.host_of(rank) == host) for host in range(layout.hosts)
    ]
    host_level = {
        "name": "host",
        "latency_s": LINK_LATENCY_S,
        "bandwidth_bytes_per_s": layout.link_bytes_per_s * PAYLOAD,
        "inside_bytes_per_s": HOST_MEMORY_BYTES_PER_S,
    }
    levels, groups = [host_level], tuple(hosts)
    if layout.uplink_bytes_per_s is not None:
        uplink_bytes_per_s = layout.uplink_bytes_per_s * PAYLOAD
        rack_level = {"name": "rack", "latency_s": LINK_LATENCY_S / 2, "bandwidth_bytes_per_s": uplink_bytes_per_s}
        racks: list[list[Groups]] = [[] for _ in range(layout.racks)]
        for number, host in enumerate(hosts):
            racks[layout.rack_of(number)].append(host)
        levels, groups = [rack_level, host_level], tuple(map(tuple, racks))
    crowding = max(1.0, layout.size / (os.cpu_count() or 1))
    port = f"latency_s={HOST_LATENCY_S / 2}, bandwidth_bytes_per_s={HOST_BYTES_PER_S}"
    return f"tree({groups}, {levels}, {port}, overhead_s={MESSAGE_S * crowding})"
