# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""The sum of sparse tensors, as the gradients of embeddings are: gather everybody's entries and add those that meet."""

from __future__ import annotations

import torch

from collectives.communicator import Communicator

__all__ = ["sum_sparse"]


def sum_sparse(comm: Communicator, tensor: torch.Tensor) -> None:
    """Replaces a COO tensor by the sum of those of all ranks, which have the same shape and dtype."""
    mine = tensor.coalesce()
    indices, values = mine.indices(), mine.values()
    counts = [int(n) for n in comm.all_gather(torch.tensor([indices.shape[1]]))]
    columns = comm.all_gather(indices.t().contiguous(), sizes=counts)
    entries = comm.all_gather(values.contiguous(), sizes=counts)
    total = torch.sparse_coo_tensor(columns.t().contiguous(), entries, tensor.shape).coalesce()
    with torch.no_grad():
        tensor.copy_(total)
