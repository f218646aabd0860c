"""What the ranks of the tests on a GPU do: `python -m tests.gpu.programs NAME TRANSPORT STORE RANK SIZE`."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

import collectives as cc

_MIB = 1 << 20


def torch_streams(comm: cc.Communicator) -> None:
    """A slow producer before, a consumer after, on a stream of the caller's, and nothing waits but for the result."""
    torch: Any = importlib.import_module("torch")
    n, size = 5 * _MIB + 3, comm.size
    big = torch.ones(4096, 4096, device="cuda")
    for lap in range(3):
        with torch.cuda.stream(torch.cuda.Stream()):
            slow = big
            for _ in range(20):
                slow = slow @ big / 4096  # all ones again, after a while
            x = torch.empty(n, device="cuda")
            x.copy_(torch.arange(n, device="cuda") % 1000 * slow[0, 0] + comm.rank)
            total = comm.all_reduce(x)
            doubled = total * 2  # the consumer
            x.fill_(-1)  # once it has been read
            work = comm.all_reduce_async(doubled)
            wanted = 2 * (torch.arange(n, device="cuda") % 1000 * size + size * (size - 1) // 2)
            assert torch.equal(doubled, wanted), lap
            assert torch.equal(work.wait(60), wanted * size), lap
            call = comm.prepare.all_reduce(doubled, out=doubled, op="max")
            assert torch.equal(call(), wanted), lap


def torch_dtypes(comm: cc.Communicator) -> None:
    """Every collective in f16, bf16 and f32, against the same calls on the CPU."""
    torch: Any = importlib.import_module("torch")
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.int32):
        x = (torch.arange(6 * comm.size * 1000).reshape(6 * comm.size, 1000) % 7 + comm.rank).to(dtype)
        calls: list[tuple[str, dict[str, Any]]] = [
            ("all_reduce", {}), ("all_reduce", {"op": "max"}), ("reduce_scatter", {}), ("all_gather", {}),
            ("broadcast", {"root": comm.size - 1}), ("all_to_all", {}), ("scan", {}), ("reduce", {}), ("gather", {}),
        ]  # fmt: skip
        for name, options in calls:
            mine = getattr(comm, name)(x.cuda(), **options)
            wanted = getattr(comm, name)(x, **options)
            assert (mine is None) == (wanted is None)
            assert mine is None or (mine.is_cuda and torch.equal(mine.cpu(), wanted)), (name, dtype)


def cupy_streams(comm: cc.Communicator) -> None:
    """The same on CuPy's current stream, with every algorithm beside NCCL's own where the transport has it."""
    cupy: Any = importlib.import_module("cupy")
    n, size = 3 * _MIB + 5, comm.size
    algorithms = [*cc.algorithms("all_reduce"), *(["native"] if "NCCL" in comm.transport else [])]
    wanted = np.arange(n) % 1000 * size + size * (size - 1) // 2
    for algorithm in algorithms:
        with cupy.cuda.Stream(non_blocking=True):
            x = cupy.arange(n, dtype=cupy.float32) % 1000 + comm.rank
            try:
                total = comm.all_reduce(x, algorithm=algorithm)
            except ValueError:
                continue  # not for this number of ranks
            x.fill(-1)
            np.testing.assert_array_equal(cupy.asnumpy(total + 1) - 1, wanted, err_msg=algorithm)
    for dtype in ("float16", "float32", "int32", "complex64"):
        x = cupy.asarray((np.arange(5001) % 50).astype(dtype))
        assert bool((comm.all_reduce(x) == x * size).all()), dtype


def cupy_to_itself(comm: cc.Communicator) -> None:
    """One rank: NCCL sends to itself within a group, and CuPy's kernels have the bits of the reference."""
    cupy: Any = importlib.import_module("cupy")
    from tests.references import OPS, values
    from transports import arithmetic
    from transports.cupy_kernels import Kernels
    from transports.program import DTYPES
    from transports.program import OPS as NUMBERS

    nccl, stream = cupy.cuda.nccl, cupy.cuda.get_current_stream()
    alone = nccl.NcclCommunicator(1, nccl.get_unique_id(), 0)
    a, b = cupy.arange(1000, dtype=cupy.float32), cupy.zeros(1000, cupy.float32)
    nccl.groupStart()
    alone.send(a.data.ptr, a.nbytes, nccl.NCCL_UINT8, 0, stream.ptr)
    alone.recv(b.data.ptr, b.nbytes, nccl.NCCL_UINT8, 0, stream.ptr)
    nccl.groupEnd()
    assert bool((a == b).all())
    alone.destroy()
    kernels = Kernels(cupy)
    for dtype, (number, _) in DTYPES.items():
        for op in OPS(dtype) if dtype != "bytes" else ():
            if op == "mean":
                continue
            x, y = (values(dtype, (4103,), seed).view(np.uint8) for seed in (1, 2))
            out, left, right = cupy.empty(x.size, np.uint8), cupy.asarray(x), cupy.asarray(y)
            kernels.combine(stream, number, NUMBERS[op], left.data.ptr, right.data.ptr, out.data.ptr, x.size)
            wanted = arithmetic.combine(number, NUMBERS[op], x, y)
            np.testing.assert_array_equal(cupy.asnumpy(out), wanted, err_msg=f"{dtype} {op}")
    for algorithm in ("auto", "native"):
        x = cupy.arange(77, dtype=cupy.float32)
        np.testing.assert_array_equal(cupy.asnumpy(comm.all_reduce(x, algorithm=algorithm)), np.arange(77))


def main() -> None:
    name, transport, store, rank, size = sys.argv[1:]
    if name.startswith("torch"):
        torch: Any = importlib.import_module("torch")
        torch.cuda.set_device(int(rank) % torch.cuda.device_count())
    else:
        cupy: Any = importlib.import_module("cupy")
        cupy.cuda.Device(int(rank) % cupy.cuda.runtime.getDeviceCount()).use()
    with cc.connect(store=store, rank=int(rank), size=int(size), transport=transport) as comm:
        globals()[name](comm)


if __name__ == "__main__":
    main()
