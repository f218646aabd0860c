"""What an emulated cluster consists of, checked, and the commands for `ip` and `tc` that make it. Nothing is run here.

    eth0 of a host ==== port of its switch          a veth pair; both ends shaped, so each direction has the link's rate
    rack0 ==== core ==== rack1                      with racks: a switch each, joined by shaped uplinks

All switches are bridges in one namespace, the hosts have one each. Links are shaped by a token bucket (tc-tbf(8)). Its
rate counts whole Ethernet frames, so of a link with the MTU of 9000 bytes (jumbo frames, as in clusters) 8948 of 9014
bytes are TCP payload, 99.3 %. The bucket holds what the link carries in a millisecond: enough that a timer which is a
little late loses nothing, and no more than that gets through at once. What does not fit waits in a queue that is long
enough that TCP need not lose frames to find the rate, and between hosts TCP has the congestion control that reacts to
nothing but loss (Reno, RFC 5681), whatever this machine's default is: so figures tell of links and algorithms.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from .rates import check_rate, spell_rate

Placement = Literal["contiguous", "round_robin"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)

INTERFACE = "eth0"
NETWORK = "10.0.0.0/24"
CONGESTION_CONTROL = "reno"
MTU_BYTES = 9000
BURST_S = 0.001
QUEUE_S = 0.2
MIN_QUEUE_BYTES = 1 << 20
MAX_HOSTS = 250  # in one network of 254 addresses
MAX_RANKS = 1024


class Layout(NamedTuple):
    """Hosts and links; rates in bytes per second and direction, of Ethernet frames."""

    hosts: int
    ranks_per_host: int
    link_bytes_per_s: float
    racks: int = 1
    uplink_bytes_per_s: float | None = None
    placement: Placement = "contiguous"

    def check(self) -> None:
        """Raises ValueError that says what cannot be, before anything is made."""
        if not 1 <= self.hosts <= MAX_HOSTS:
            raise ValueError(f"{self.hosts} hosts: there may be 1 to {MAX_HOSTS}")
        if self.ranks_per_host < 1 or self.size > MAX_RANKS:
            raise ValueError(f"{self.ranks_per_host} ranks on each of {self.hosts} hosts: 1 to {MAX_RANKS} in all")
        if not 1 <= self.racks <= self.hosts:
            raise ValueError(f"{self.racks} racks for {self.hosts} hosts: every rack has at least one host")
        if (self.racks > 1) != (self.uplink_bytes_per_s is not None):
            raise ValueError(
                "several racks are joined by uplinks: give a number of racks above 1 and the uplinks' rate"
            )
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement {self.placement!r} is not known; there are {', '.join(PLACEMENTS)}")
        check_rate(self.link_bytes_per_s, "link")
        if self.uplink_bytes_per_s is not None:
            check_rate(self.uplink_bytes_per_s, "uplink")

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self.hosts * self.ranks_per_host

    def host_of(self, rank: int) -> int:
        """contiguous: ranks 0, 1, ... fill host 0 first; round_robin: rank r is on host r mod hosts."""
        return rank // self.ranks_per_host if self.placement == "contiguous" else rank % self.hosts

    def rack_of(self, host: int) -> int:
        """Neighbours share a rack; racks differ by one host at most."""
        return host * self.racks // self.hosts

    def host_name(self, host: int) -> str:
        """Hosts with other links have other names, so that what was measured between them is not mixed up."""
        name = f"host{host}-{spell_rate(self.link_bytes_per_s)}"
        if self.uplink_bytes_per_s is not None:
            name += f"-{self.racks}x{spell_rate(self.uplink_bytes_per_s)}"
        return name

    def address(self, host: int) -> str:
        """Means something inside the cluster only, so every cluster has the same ones."""
        return f"10.0.0.{host + 1}"

    def __str__(self) -> str:
        text = f"{self.hosts} hosts x {self.ranks_per_host} ranks, {self.placement}"
        if self.uplink_bytes_per_s is not None:
            text += f", {self.racks} racks, uplinks {spell_rate(self.uplink_bytes_per_s)}"
        return f"{text}, links {spell_rate(self.link_bytes_per_s)}, MTU {MTU_BYTES}"


def switch_links(layout: Layout, host_tasks: list[int]) -> str:
    """For `ip -batch` in the switches' namespace; `host_tasks` are the ids of tasks in the hosts' namespaces."""
    lines = [_switch(f"rack{rack}") for rack in range(layout.racks)]
    for host, task in enumerate(host_tasks):
        lines.append(_cable(f"port{host}", f"{INTERFACE} netns {task}"))
        lines.append(f"link set port{host} master rack{layout.rack_of(host)} up")
    if layout.racks > 1:
        lines.append(_switch("core"))
        for rack in range(layout.racks):
            lines.append(_cable(f"up{rack}", f"down{rack}"))
            lines += [f"link set up{rack} master rack{rack} up", f"link set down{rack} master core up"]
    return "\n".join(lines)


def switch_shaping(layout: Layout) -> str:
    """For `tc -batch` in the switches' namespace."""
    lines = [_shape(f"port{host}", layout.link_bytes_per_s) for host in range(layout.hosts)]
    if layout.uplink_bytes_per_s is not None:
        ends = [end for rack in range(layout.racks) for end in (f"up{rack}", f"down{rack}")]
        lines += [_shape(end, layout.uplink_bytes_per_s) for end in ends]
    return "\n".join(lines)


def host_links(layout: Layout, host: int) -> str:
    """For `ip -batch` in a host's namespace."""
    address = layout.address(host)
    return "\n".join(
        [
            "link set lo up",
            f"link set {INTERFACE} up",
            f"addr add {address}/24 dev {INTERFACE} noprefixroute",
            f"route add {NETWORK} dev {INTERFACE} src {address} congctl {CONGESTION_CONTROL}",
        ]
    )


def host_shaping(layout: Layout) -> str:
    """For `tc -batch` in a host's namespace."""
    return _shape(INTERFACE, layout.link_bytes_per_s)


def _switch(name: str) -> str:
    return f"link add {name} mtu {MTU_BYTES} type bridge\nlink set {name} addrgenmode none up"


def _cable(end: str, other_end: str) -> str:
    return f"link add {end} mtu {MTU_BYTES} type veth peer mtu {MTU_BYTES} name {other_end}"


def _shape(device: str, bytes_per_s: float) -> str:
    burst_bytes = max(bytes_per_s * BURST_S, 2 * MTU_BYTES)
    queue_bytes = max(bytes_per_s * QUEUE_S, MIN_QUEUE_BYTES)
    bits_per_s = bytes_per_s * 8
    return f"qdisc add dev {device} root tbf rate {bits_per_s:.0f}bit burst {burst_bytes:.0f}b limit {queue_bytes:.0f}b"
