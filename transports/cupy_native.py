"""NCCL's own collectives through CuPy: what `algorithm="native"` means on the `cupy` transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transports.grouped import Layer
from transports.program import DTYPE_NAMES, OP_NAMES, Native, Place, Program

__all__ = ["NATIVES", "refusal", "run_native"]

NATIVES = frozenset({"all_reduce", "reduce", "reduce_scatter", "all_gather", "broadcast"})
_REDUCING = frozenset({"all_reduce", "reduce", "reduce_scatter"})
_TYPES = {  # ncclDataType_t
    "int8": 0, "uint8": 1, "int32": 2, "uint32": 3, "int64": 4, "uint64": 5, "float16": 6, "float32": 7, "float64": 8,
    "bfloat16": 9,
}  # fmt: skip
_OPS = {"sum": 0, "prod": 1, "max": 2, "min": 3}  # ncclRedOp_t
_BYTES = _TYPES["uint8"]


def refusal(native: Native) -> str:
    """Why NCCL has no such call; empty when it has. The same on every rank."""
    name, dtype, op = native.collective, DTYPE_NAMES[native.dtype], OP_NAMES[native.op]
    if native.device_kind == "cpu":
        return "NCCL takes arrays on a GPU only"
    if name not in NATIVES:
        return f"NCCL has no {name} of its own"
    if name in ("reduce_scatter", "all_gather") and len(set(native.blocks)) > 1:
        return f"NCCL's {name} has parts of one size only"
    if name in _REDUCING and dtype not in _TYPES:
        return f"NCCL has no arithmetic for {dtype}"
    if name in _REDUCING and op not in _OPS:
        return f"NCCL has no op={op!r}"
    return ""


class _Operands(NamedTuple):
    """Addresses of an array's bytes; 0 where this rank gives or gets nothing."""

    input: int
    output: int
    input_bytes: int
    output_bytes: int


def run_native(
    comm: Any, layer: Layer, stream: Any, program: Program, addresses: Sequence[int], rank: int, size: int
) -> None:
    """Hands every array of a call to NCCL; returns before it has happened."""
    for native in program.native:
        given = _operands(native, addresses, rank, size)
        if not sum(native.blocks):
            continue
        _call(comm, native, _apart(layer, native, given, rank), stream.ptr)
        if native.mean and given.output:
            layer.divide(native.dtype, given.output, given.output, given.output_bytes, program.divisor)


def _operands(native: Native, addresses: Sequence[int], rank: int, size: int) -> _Operands:
    def at(place: Place | None) -> int:
        return 0 if place is None else addresses[place.buffer] + place.offset_bytes

    gives, gets = native.elements(rank, size)
    return _Operands(at(native.input), at(native.output), gives * native.item_bytes, gets * native.item_bytes)


def _apart(layer: Layer, native: Native, x: _Operands, rank: int) -> _Operands:
    """The operands, with a copy of the input where the result lies over it in a way that NCCL does not allow."""
    if not x.input or not x.output:
        return x
    if x.input >= x.output + x.output_bytes or x.output >= x.input + x.input_bytes:
        return x
    place = {"all_gather": rank * x.input_bytes, "reduce_scatter": -rank * x.output_bytes}.get(native.collective, 0)
    if x.input == x.output + place:
        return x
    copy = layer.staging(x.input_bytes)
    layer.copy(x.input, copy, x.input_bytes)
    return x._replace(input=copy)


def _call(comm: Any, native: Native, x: _Operands, stream: int) -> None:
    name, root = native.collective, native.root
    if name in _REDUCING:
        dtype, op = _TYPES[DTYPE_NAMES[native.dtype]], _OPS[OP_NAMES[native.op]]
        if name == "all_reduce":
            comm.allReduce(x.input, x.output, native.blocks[0], dtype, op, stream)
        elif name == "reduce":  # what is not the root has no place for a result, and NCCL looks at none
            comm.reduce(x.input, x.output or x.input, native.blocks[0], dtype, op, root, stream)
        else:
            comm.reduceScatter(x.input, x.output, native.blocks[0], dtype, op, stream)
    elif name == "broadcast":
        comm.broadcast(x.input or x.output, x.output or x.input, x.input_bytes, _BYTES, root, stream)
    else:
        comm.allGather(x.input, x.output, x.input_bytes, _BYTES, stream)
