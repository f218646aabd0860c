# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""How the ranks of a process group come together: through c10d's store, or as a part of the default group.

The default group's ranks exchange cards in the store that init_process_group made, under the rules of every treering
job (transports/endpoint.py): a secret from TREERING_SECRET or TREERING_SECRET_FILE where ranks are on several hosts,
and without one only this host is listened on. Later groups are sub-communicators: no store, no waiting.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from collectives.communicator import Communicator
from collectives.connect import connect
from collectives.torch_backend.errors import torch_errors
from collectives.torch_backend.process_group import ProcessGroup
from transports import launchers
from transports.launcher_stores import TorchStore

__all__ = ["Options", "create"]

# How often this process has made a group of a name: a second one must not meet what is left of the first, and every
# member has made as many.
_made: Counter[str] = Counter()


@dataclass(frozen=True)
class Options:
    """What may be given as `pg_options` to init_process_group; the arguments of `collectives.connect`.

    Groups made later go by those of the default group.
    """

    transport: str = "auto"
    lanes: int = 1
    ring_bytes: int = 256 << 10
    reproducible: bool = False
    address: str | None = None


def create(given: Any, options: Options | None) -> ProcessGroup:
    """The process group of this rank; torch calls it on every member, with its _DistributedBackendOptions.

    Raises torch's errors (errors.py), and ValueError or TypeError for options that make no sense.
    """
    if options is not None and not isinstance(options, Options):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"pg_options is a {type(options).__name__}: treering takes collectives.torch_backend.Options")
    rank, size, store, ranks = given.group_rank, given.group_size, given.store, list(given.global_ranks_in_group)
    name = f"{given.group_id}#{_made[given.group_id]}"
    _made[given.group_id] += 1
    timeout: timedelta = given.timeout
    with torch_errors():
        world = _default_group() if ranks else None
        if world is not None:
            communicator = world.communicator.subgroup(ranks, name=name)
        else:
            communicator = _join(rank, size, store, name, timeout.total_seconds(), options or Options())
        communicator.timeout_s = timeout.total_seconds()
        return ProcessGroup(rank, size, communicator, store)


def _default_group() -> ProcessGroup | None:
    group: Any = dist.GroupMember.WORLD
    return group if isinstance(group, ProcessGroup) else None


def _join(rank: int, size: int, store: Any, name: str, timeout_s: float, options: Options) -> Communicator:
    around = _launched(rank, size)
    # torchrun may give a restarted job the store of the one that failed: its job's name tells them apart.
    job = f"c10d:{name}" if around is None else f"c10d:{around.job}:{name}"
    launch = launchers.Launch(
        "given", rank, size, job, "torch.distributed",
        open_store=lambda meeting: TorchStore(lambda _: store, f"treering/{meeting}"),
    )  # fmt: skip
    if around is not None:
        launch = replace(launch, local_rank=around.local_rank, local_size=around.local_size, head=around.head)
    return connect(
        launch=launch, transport=options.transport, lanes=options.lanes, ring_bytes=options.ring_bytes,
        reproducible=options.reproducible, address=options.address, timeout_s=timeout_s, join_timeout_s=timeout_s,
    )  # fmt: skip


def _launched(rank: int, size: int) -> launchers.Launch | None:
    """What the launcher of these very ranks tells of hosts, if there is one."""
    try:
        found = launchers.detect()
    except ValueError:
        return None
    return found if (found.rank, found.size) == (rank, size) else None
