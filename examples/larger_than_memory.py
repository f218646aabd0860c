"""A model whose training takes more memory than there is, with what nobody needs just now in files.

    python examples/larger_than_memory.py                       # ends with an error: out of memory
    python examples/larger_than_memory.py --offload /nvme       # trains
    torchrun --nproc-per-node 2 examples/larger_than_memory.py --offload /nvme

With AdamW in float32 a parameter takes 16 bytes: the value, its gradient, and two of the optimizer. The process limits
itself to `--limit-mib` of address space more than torch alone takes, so that everything counts: also shared memory,
stacks, and what is only reserved. The model is made on the meta device, so it is never whole anywhere.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import resource
from pathlib import Path

import torch
from torch import nn

import collectives as cc
from collectives.zero import Offload, ZeroOptimizer

MIB = 1 << 20
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of malloc.h


def address_space() -> int:
    """Bytes, of this process."""
    found = re.search(r"VmSize:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def warm_up() -> None:
    """Afterwards torch has all that it takes for itself, such as threads and modules imported late."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)  # large blocks go back to the system when they are freed
    libc.mallopt(M_ARENA_MAX, 1)  # or each thread reserves 64 MiB of addresses
    layer = nn.Linear(64, 64)
    layer(torch.randn(8, 64)).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offload", metavar="DIRECTORY", help="where to keep files, on a fast disk")
    parser.add_argument("--limit-mib", type=int, default=200, help="memory for each rank (200)")
    parser.add_argument("--layers", type=int, default=32, help="of 4 MiB of parameters (32)")
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with cc.connect() as comm:
        warm_up()
        limit = address_space() + given.limit_mib * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        torch.manual_seed(0)
        with torch.device("meta"):
            model = nn.Sequential(*(nn.Sequential(nn.Linear(1024, 1024), nn.Tanh()) for _ in range(given.layers)))
        needed = 16 * sum(p.numel() for p in model.parameters()) / comm.size
        if comm.rank == 0:
            print(f"parameters, gradients and optimizer: {needed / MIB:.0f} MiB a rank; limit: {given.limit_mib} MiB")
        where = given.offload and Offload(given.offload, given.offload, given.offload, buffer_bytes=8 * MIB)
        opt = ZeroOptimizer(model, torch.optim.AdamW, stage=3, comm=comm, offload=where, prefetch_bytes=8 * MIB)
        for step in range(given.steps):
            generator = torch.Generator().manual_seed(step * comm.size + comm.rank)
            loss = (model(torch.randn(8, 1024, generator=generator)) - 1).square().mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
            mean = comm.all_reduce(loss.detach().reshape(1), op="mean").item()
            if comm.rank == 0:
                print(f"step {step}  loss {mean:.6f}", flush=True)
        if comm.rank == 0:
            print({kind: f"{nbytes / MIB:.0f} MiB" for kind, nbytes in opt.memory().items()})
        opt.close(gather=False)


if __name__ == "__main__":
    main()
