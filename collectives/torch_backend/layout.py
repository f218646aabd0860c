# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""torch's tensors as the communicator takes them: contiguous, and one array where torch has a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["Finish", "all_writable", "check_dense", "gathered_into", "joined", "put_back", "together", "writable"]

Finish = Callable[[], None] | None


def check_dense(call: str, tensors: Sequence[torch.Tensor]) -> None:
    """Raises TypeError for what is no plain tensor in CPU memory, and for dtypes that differ."""
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{call} takes tensors, not a {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{call} of a sparse tensor ({tensor.layout}) has no meaning here: pass x.to_dense()")
        if tensor.device.type != "cpu":
            raise TypeError(f"{call} of a tensor on {tensor.device}: treering takes tensors on the CPU, pass x.cpu()")
        if tensor.dtype != tensors[0].dtype:
            raise TypeError(f"{call} of tensors of different dtypes: {tensors[0].dtype} and {tensor.dtype}")


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The elements of all tensors after each other, flat; a view where they lie so in memory already."""
    return _as_one(tensors) if _adjacent(tensors) else torch.cat([t.reshape(-1) for t in tensors])


def gathered_into(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Finish]:
    """A flat tensor for the elements of all tensors, and what puts them there once it is filled."""
    if _adjacent(tensors):
        return _as_one(tensors), None
    flat = tensors[0].new_empty(sum(t.numel() for t in tensors))

    def finish() -> None:
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            put_back(tensor, part)

    return flat, finish


def writable(tensor: torch.Tensor, *, keep: bool = True) -> tuple[torch.Tensor, Finish]:
    """A contiguous tensor to work on in place of this one, and what puts the result back; `keep`: with its elements."""
    if tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
        return tensor, None
    work = (
        tensor.clone(memory_format=torch.contiguous_format)
        if keep
        else torch.empty_like(tensor, memory_format=torch.contiguous_format)
    )
    if keep:
        work = work.resolve_conj().resolve_neg().contiguous()
    return work, lambda: put_back(tensor, work)


def all_writable(tensors: Sequence[torch.Tensor], *, keep: bool) -> tuple[list[torch.Tensor], Finish]:
    """`writable` of each."""
    pairs = [writable(tensor, keep=keep) for tensor in tensors]
    return [target for target, _ in pairs], together([finish for _, finish in pairs])


def together(finishes: Sequence[Finish]) -> Finish:
    """One for all."""
    needed = [finish for finish in finishes if finish is not None]
    if not needed:
        return None

    def finish() -> None:
        for one in needed:
            one()

    return finish


def put_back(tensor: torch.Tensor, part: torch.Tensor) -> None:
    """Fills a tensor, without autograd knowing."""
    with torch.no_grad():
        tensor.copy_(part.view(tensor.shape))


def _adjacent(tensors: Sequence[torch.Tensor]) -> bool:
    first = tensors[0]
    if not all(t.is_contiguous() and not t.is_conj() and not t.is_neg() for t in tensors):
        return False
    end = first.data_ptr()
    storage = first.untyped_storage().data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != end or tensor.untyped_storage().data_ptr() != storage:
            return False
        end += tensor.numel() * tensor.element_size()
    return True


def _as_one(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    first = tensors[0].detach()
    return first.as_strided((sum(t.numel() for t in tensors),), (1,))
