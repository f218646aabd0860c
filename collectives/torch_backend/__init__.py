# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""A backend for torch.distributed: importing this registers "treering", and everything on c10d runs on it unchanged.

    import collectives.torch_backend
    torch.distributed.init_process_group("treering")

process_group.py is what torch calls, with its calls in reductions.py and moves.py over group.py; work.py what an
asynchronous call returns; join.py how the ranks of a group come together; layout.py turns torch's lists of tensors into
single ones; messages.py sends and receives; sparse.py sums sparse tensors; monitored.py is a barrier that names who is
missing; errors.py has the exceptions; doors.py the two ways into FSDP2 and DDP that need no backend. The only part of
`collectives`, beside zero/, that imports torch.
"""

from __future__ import annotations

import torch.distributed as dist

from collectives.torch_backend.doors import AllGather, ReduceScatter, ddp_hook
from collectives.torch_backend.join import Options, create
from collectives.torch_backend.process_group import ProcessGroup

__all__ = ["AllGather", "Options", "ProcessGroup", "ReduceScatter", "ddp_hook"]

# `devices` is a list: torch would take a string letter by letter.
dist.Backend.register_backend("treering", create, extended_api=True, devices=["cpu"])
