"""What people build on torch.distributed, on treering and on Gloo: the same numbers, to the bit where sums are exact.

With two ranks every sum has two terms, so the order cannot matter and results must be equal to the bit; with four,
Gloo and treering add in different orders, and floats are compared closely.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.backend.conftest import run

pytestmark = pytest.mark.timeout(120)


def model(seed: int = 0, width: int = 13) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def batch(rank: int, step: int) -> torch.Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(100 * step + rank))


def parameters_of(module: nn.Module) -> list[Any]:
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.parameters()]
    return [p.detach().float().tolist() for p in full]


def steps(module: nn.Module, optimizer: Any, rank: int, count: int = 3) -> None:
    for step in range(count):
        module(batch(rank, step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def ddp(rank: int, size: int, options: dict[str, Any]) -> Any:
    wrapped = nn.parallel.DistributedDataParallel(model(), **options)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
    steps(wrapped, optimizer, rank)
    if not options.get("static_graph"):
        with wrapped.no_sync():
            wrapped(batch(rank, 7)).sum().backward()
        wrapped(batch(rank, 8)).sum().backward()
        optimizer.step()
    return parameters_of(wrapped)


def ddp_join(rank: int, size: int) -> Any:
    wrapped = nn.parallel.DistributedDataParallel(model())
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
    with wrapped.join():
        steps(wrapped, optimizer, rank, 2 + rank)
    return parameters_of(wrapped)


def ddp_sparse(rank: int, size: int) -> Any:
    torch.manual_seed(0)
    wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Embedding(11, 4, sparse=True), nn.Linear(4, 2)))
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
    for step in range(3):
        wrapped(torch.tensor([rank, step, 5])).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return parameters_of(wrapped)


def ddp_hook(rank: int, size: int) -> Any:
    from collections import abc  # noqa: F401

    from collectives.torch_backend import ddp_hook as hook

    wrapped = nn.parallel.DistributedDataParallel(model())
    comm = getattr(dist.group.WORLD, "communicator", None)
    if comm is not None:
        wrapped.register_comm_hook(comm, hook)
    steps(wrapped, torch.optim.SGD(wrapped.parameters(), 0.1), rank)
    return parameters_of(wrapped)


def fsdp(rank: int, size: int, kind: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from collectives.torch_backend import AllGather, ReduceScatter

    module, options = model(), {}
    if kind == "bf16":
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shape = (2, 2) if kind == "hsdp" else (size,)
    options["mesh"] = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    for layer in (module[0], module[2]):
        fully_shard(layer, **options)
    fully_shard(module, **options)
    comm = getattr(dist.group.WORLD, "communicator", None)
    if kind == "doors" and comm is not None:
        module.set_custom_all_gather(AllGather(comm))
        module.set_custom_reduce_scatter(ReduceScatter(comm))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for step in range(3):
        module(batch(rank, step)).float().square().mean().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return parameters_of(module)


def zero_redundancy(rank: int, size: int) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    wrapped = nn.parallel.DistributedDataParallel(model())
    optimizer = ZeroRedundancyOptimizer(wrapped.parameters(), torch.optim.Adam, lr=0.01)
    steps(wrapped, optimizer, rank)
    optimizer.consolidate_state_dict(0)
    return parameters_of(wrapped)


def tensor_parallel(rank: int, size: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (size,))
    module = parallelize_module(model(width=12), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    module(batch(0, 0)).sum().backward()
    uneven = distribute_tensor(torch.arange(10.0), mesh, [Shard(0)]).redistribute(placements=[Replicate()])
    return [
        module[0].weight.grad.full_tensor().tolist(),
        module[2].weight.grad.full_tensor().tolist(),
        uneven.to_local().tolist(),
    ]


def pipeline(rank: int, size: int) -> Any:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    whole = model()
    part = nn.Sequential(*list(whole)[:2]) if rank == 0 else nn.Sequential(*list(whole)[2:])
    stage = PipelineStage(part, rank, size, torch.device("cpu"), input_args=(torch.zeros(5, 7 if rank == 0 else 13),))
    schedule = Schedule1F1B(stage, 4, loss_fn=lambda out, target: (out - target).square().mean())
    x = torch.cat([batch(0, s) for s in range(4)])
    losses: list[torch.Tensor] = []
    if rank == 0:
        schedule.step(x)
    else:
        schedule.step(target=torch.ones(20, 3), losses=losses)
    return [[p.grad.tolist() for p in part.parameters()], [float(loss) for loss in losses]]


def checkpoint(rank: int, size: int) -> Any:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.fsdp import fully_shard

    box = [tempfile.mkdtemp(prefix="treering-dcp-") if rank == 0 else None]
    dist.broadcast_object_list(box, 0)
    module = model()
    fully_shard(module)
    saved = copy.deepcopy(parameters_of(module))
    dcp.save(module.state_dict(), checkpoint_id=box[0])
    other = model(seed=9)
    fully_shard(other)
    state = other.state_dict()
    dcp.load(state, checkpoint_id=box[0])
    other.load_state_dict(state)
    loaded = parameters_of(other)
    assert loaded == saved
    dist.barrier()
    if rank == 0:
        import shutil

        shutil.rmtree(box[0])
    return loaded


def functional(rank: int, size: int) -> Any:
    import torch.distributed._functional_collectives as funcol
    import torch.distributed.nn.functional as differentiable

    x = batch(rank, 0).requires_grad_()
    y = differentiable.all_reduce(x * 2)
    parts = differentiable.all_gather(x)
    z = differentiable.reduce_scatter(torch.empty(5, 7), [x * (r + 1) for r in range(size)])
    (y.sum() + sum((p * p).sum() for p in parts) + z.sum()).backward()
    w = funcol.all_gather_tensor(x.detach(), 0, dist.group.WORLD)
    v = funcol.reduce_scatter_tensor(w, "sum", 0, dist.group.WORLD)
    u = funcol.all_to_all_single(w.clone(), None, None, dist.group.WORLD)
    return [t.detach().tolist() for t in (y, z, x.grad, w, v + 0, u + 0)]


EXACT: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "ddp": (ddp, ({},)),
    "ddp_bucket_view": (ddp, ({"gradient_as_bucket_view": True, "bucket_cap_mb": 0.0001},)),
    "ddp_static_graph": (ddp, ({"static_graph": True},)),
    "ddp_join": (ddp_join, ()),
    "ddp_sparse": (ddp_sparse, ()),
    "ddp_hook": (ddp_hook, ()),
    "fsdp": (fsdp, ("fp32",)),
    "fsdp_bf16": (fsdp, ("bf16",)),
    "fsdp_doors": (fsdp, ("doors",)),
    "zero_redundancy": (zero_redundancy, ()),
    "tensor_parallel": (tensor_parallel, ()),
    "pipeline": (pipeline, ()),
    "checkpoint": (checkpoint, ()),
    "functional": (functional, ()),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_same_bits_as_gloo(name: str) -> None:
    body, arguments = EXACT[name]
    ours = run(2, body, *arguments)
    assert ours == run(2, body, *arguments, backend="gloo")


def test_hsdp_on_a_mesh_of_two_by_two() -> None:
    ours, theirs = run(4, fsdp, "hsdp"), run(4, fsdp, "hsdp", backend="gloo")
    for mine, other in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(other))
    assert all(each == ours[0] for each in ours)
