# pyright: basic, reportMissingImports=false
"""What the ranks tell each other once a round, in a few bytes: which parameters had gradients, and what went wrong.

A round is a backward, or several under `no_sync`, whose gradients are reduced together. All ranks reduce all buckets
in every round, whatever they have computed, so no rank waits in vain for another; afterwards they compare notes. That
a parameter is unused on some ranks is no error. That a rank ran no backward at all, or one more than the others, or
one that ended early, is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from collectives.exchange import gather_json
from collectives.zero.faults import from_to, while_doing
from collectives.zero.layout import BucketLayout, Parameter
from transports.errors import MismatchError

__all__ = ["HEADER", "Note", "agree", "check_alike"]

HEADER = 5
"""Numbers before the marks: round, backwards, the bucket that was not complete, the order of gathers, overflow."""
NOTHING = -1


class Note(NamedTuple):
    """What one rank says of a round."""

    round: int
    backwards: int  # that ran, under no_sync or not
    incomplete: int  # the first bucket of a backward that ended early, or -1
    gathers: int  # a checksum of which buckets were gathered, in which order
    overflow: int  # whether its gradients have infinities or NaNs


def agree(comm: Any, note: Note, used: np.ndarray[Any, Any], layouts: list[BucketLayout]) -> np.ndarray[Any, Any]:
    """Which parameters had a gradient, by rank: bool, (ranks, parameters). Raises MismatchError, on every rank alike.

    `used` is a bool for each parameter, of this rank.
    """
    marks = np.packbits(used)
    mine = np.concatenate([np.array(note, np.int64).view(np.uint8), marks])
    with while_doing("comparing with the others which gradients there are in", from_to(layouts)):
        every = comm.all_gather(mine[None, :]) if comm.size > 1 else mine[None, :]
    heads = np.ascontiguousarray(every[:, : 8 * HEADER]).view(np.int64)
    notes = [Note(*map(int, row)) for row in heads]
    for rank, said in enumerate(notes):
        if said.incomplete != NOTHING:
            raise MismatchError(
                f"the backward of rank {rank} ended early, perhaps with an exception: gradients of "
                f"{layouts[said.incomplete]} never came"
            )
    usual = max(notes, key=lambda n: n.backwards)
    for rank, said in enumerate(notes):
        if said.backwards != usual.backwards:
            raise MismatchError(
                f"rank {rank} ran {_times(said.backwards)} before this reduction of gradients, but rank "
                f"{notes.index(usual)} ran {_times(usual.backwards)}: the gradients of {layouts[0]} and all others "
                f"do not belong together"
            )
        if said.gathers != usual.gathers:
            raise MismatchError(
                f"rank {rank} and rank {notes.index(usual)} gathered other parameters, or in another order: the "
                f"ranks must run the same modules in the same order"
            )
    bits = np.unpackbits(np.ascontiguousarray(every[:, 8 * HEADER :]), axis=1)
    return bits[:, : used.size].astype(bool)


def check_alike(comm: Any, parameters: list[Parameter], settings: dict[str, Any]) -> None:
    """Raises MismatchError on every rank when the ranks have other parameters, another order, or other settings."""
    if comm.size == 1:
        return
    mine = [[p.name, list(p.shape), str(p.dtype), p.group] for p in parameters]
    every = gather_json(comm, {"parameters": mine, "settings": {k: repr(v) for k, v in settings.items()}})
    first = every[0]
    for rank, other in enumerate(every):
        for name, value in first["settings"].items():
            if other["settings"][name] != value:
                raise MismatchError(
                    f"rank {rank} was given {name}={other['settings'][name]}, but rank 0 {name}={value}"
                )
        for number, (a, b) in enumerate(zip(first["parameters"], other["parameters"], strict=False)):
            if a != b:
                raise MismatchError(
                    f"parameter {number} is {_parameter(b)} on rank {rank}, but {_parameter(a)} on rank 0: all ranks "
                    f"must have the same parameters in the same order"
                )
        if len(first["parameters"]) != len(other["parameters"]):
            longer, shorter = (rank, 0) if len(other["parameters"]) > len(first["parameters"]) else (0, rank)
            extra = every[longer]["parameters"][len(every[shorter]["parameters"])]
            raise MismatchError(f"rank {longer} has parameter {_parameter(extra)}, which rank {shorter} has not")


def _parameter(p: list[Any]) -> str:
    return f"{p[0]!r} {tuple(p[1])} {p[2].removeprefix('torch.')}" + ("" if p[3] >= 0 else " (not trained)")


def _times(count: int) -> str:
    none = "no backward, or one that ended before its first gradient,"
    return none if count == 0 else "1 backward" if count == 1 else f"{count} backwards"
