"""`EmulatedCluster`: makes the hosts and links of a layout, runs programs as their ranks, and removes everything.

    with EmulatedCluster(hosts=4, ranks_per_host=2, link_bytes_per_s=25e6) as cluster:
        status = cluster.run([sys.executable, "train.py"])

It belongs to one process and cannot outlive it: see namespace.py. Several may exist at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from ..local import run_ranks
from .layout import INTERFACE, MTU_BYTES, Layout, Placement, host_links, host_shaping, switch_links, switch_shaping
from .namespace import EmulationError, Namespace, end_programs, what_is_missing
from .surroundings import Surroundings


class EmulatedCluster:
    """Hosts in network namespaces, joined by shaped links, until `close`.

    hosts, ranks_per_host    how many; ranks are numbered over the hosts by `placement`
    link_bytes_per_s         of every host's link, in each direction, counted in Ethernet frames
    racks, uplink_bytes_per_s   more than one: hosts are divided over that many switches, which such links join to a
                             switch in their middle
    placement                "contiguous": rank 0, 1, ... on host 0 first; "round_robin": rank r on host r mod hosts

    Raises ValueError for what cannot be, before anything is made, and EmulationError where root or a tool is missing.
    """

    def __init__(
        self,
        hosts: int,
        ranks_per_host: int = 1,
        *,
        link_bytes_per_s: float,
        racks: int = 1,
        uplink_bytes_per_s: float | None = None,
        placement: Placement = "contiguous",
    ) -> None:
        self.layout = Layout(hosts, ranks_per_host, link_bytes_per_s, racks, uplink_bytes_per_s, placement)
        self.layout.check()
        missing = what_is_missing()
        if missing:
            raise EmulationError(missing)
        self._secret = secrets.token_hex(32)
        self._namespaces: list[Namespace] = []
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        for name in ("switches", *map(self.layout.host_name, range(self.layout.hosts))):
            self._namespaces.append(Namespace(name))
        switches, *hosts = self._namespaces
        switches.batch("ip", switch_links(self.layout, [host.task for host in hosts]))
        switches.batch("tc", switch_shaping(self.layout))
        for number, host in enumerate(hosts):
            host.batch("ip", host_links(self.layout, number))
            host.batch("tc", host_shaping(self.layout))

    def __enter__(self) -> EmulatedCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EmulatedCluster of {self.layout}>"

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self.layout.size

    @property
    def identities(self) -> tuple[tuple[int, int], ...]:
        """Device and inode of the namespaces: the switches', then each host's. os.stat("/proc/PID/ns/net") has them."""
        return tuple(namespace.identity for namespace in self._namespaces)

    def command_on(self, host: int) -> list[str]:
        """The beginning of a command line whose rest runs on that host, as the process that is started."""
        return self._namespaces[1 + host].command()

    def command(self, rank: int) -> list[str]:
        """The same for the host of a rank."""
        return self.command_on(self.layout.host_of(rank))

    def environment(self, rank: int, directory: str) -> dict[str, str]:
        """What `collectives.connect` needs to be that rank: a new `directory` for each job, and the job's secret."""
        return {
            "TREERING_STORE": f"file://{directory}",
            "TREERING_RANK": str(rank),
            "TREERING_SIZE": str(self.size),
            "TREERING_SECRET": self._secret,
            "TREERING_ADDRESS": INTERFACE,
        }

    def run(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        """Runs the command line as every rank, with `environment` added to this process's, and waits for them.

        The exit status is 0 when all ranks ended well, otherwise that of the first which did not; it ends the others.
        """
        return run_ranks(
            self.size,
            lambda rank: [*self.command(rank), *argv],
            lambda rank, directory: {**(environment or {}), **self.environment(rank, directory)},
        )

    def surroundings(self) -> Surroundings:
        """What a measuring rank reports of the cluster, and needs to start others' ranks beside its own."""
        layout = self.layout
        return Surroundings(
            text=f"emulated cluster: {layout}",
            config={**layout._asdict(), "mtu_bytes": MTU_BYTES},
            commands=[self.command(rank) for rank in range(self.size)],
            environment={"GLOO_SOCKET_IFNAME": INTERFACE},
        )

    def close(self) -> None:
        """Kills what runs on the hosts and removes them. Safe to call twice."""
        namespaces, self._namespaces = self._namespaces, []
        try:
            end_programs(namespaces)
        finally:
            for namespace in namespaces:
                namespace.close()
