"""From a call's arguments to a program: shapes checked, places found, plan chosen and lowered.

All that depends on the arguments alone is done here, once per shape; the communicator keeps the result.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from collectives.buffers import ArrayView, check_op, empty, view
from collectives.calls import COLLECTIVE_NUMBERS, REPRODUCIBLE, Request
from collectives.choose import Chooser
from collectives.lower import ArrayLayout, lower
from collectives.plan import COLLECTIVES, NATIVE, Plan, algorithms, plan
from collectives.verify import verify
from transports.base import CPU, Device
from transports.failures import Names
from transports.program import DTYPES, OPS, Action, Call, Kind, Native, Place, Program, build

__all__ = [
    "Operands",
    "check_apart",
    "device_of",
    "make_program",
    "not_taken",
    "operands",
    "overlap",
    "total_bytes",
    "would_be_overwritten",
]

_REDUCING = frozenset({"all_reduce", "reduce", "reduce_scatter", "scan", "exscan"})
_ALIGN_BYTES = 64
_proof = lru_cache(maxsize=256)(verify)


class Operands(NamedTuple):
    """One array of a call. Rank-local: `input` or `result` is None where this rank gives or gets nothing."""

    input: ArrayView | None
    result: ArrayView | None
    blocks: tuple[int, ...]  # elements of each block of the plan
    model: ArrayView  # dtype
    shape: tuple[int, ...]  # of the result
    make: Callable[[], Any] | None  # makes the result when no `out` was given
    copied: bool = False  # `input` is a copy made for this call alone


def operands(request: Request, x: Any, out: Any, rank: int, size: int) -> Operands:
    """Checks one array and its `out`. Raises ValueError or TypeError; nothing has been sent yet."""
    name, root = request.collective, request.root
    spec = COLLECTIVES[name]
    if spec.rooted and not 0 <= root < size:
        raise ValueError(f"root={root} is not a rank: this communicator has ranks 0 to {size - 1}")
    gives = len(spec.inputs(rank, size, root)) > 0
    gets = len(spec.outputs(rank, size, root)) > 0
    if name == "scatter" and not gives:
        if out is None:
            raise ValueError(f"rank {rank} is not the root: scatter needs out= to know the shape and dtype of its part")
        x = out
    given = view(x)
    blocks, shape = _shapes(request, given, rank, size, out)
    if name in _REDUCING:
        check_op(request.op, given)
    if name == "exscan" and not gets:  # nobody promises rank 0 anything, but it has a result like the others
        gets = True
        new = _zeros(x, shape)
    else:
        new = empty(x, shape)
    if not gets:
        return Operands(given, None, blocks, given, shape, None)
    if out is None:
        return Operands(given if gives else None, None, blocks, given, shape, new)
    result = view(out, out=True)
    if result.shape != shape or result.dtype_name != given.dtype_name:
        raise ValueError(
            f"out has shape {result.shape} and dtype {result.dtype_name}, but the result of {name} has shape "
            f"{shape} and dtype {given.dtype_name}"
        )
    if result.device != given.device:
        raise ValueError(f"x is on {given.device}, but out on {result.device}: both must be on one device")
    return Operands(given if gives else None, result, blocks, given, shape, None)


def device_of(arrays: list[Operands]) -> Device:
    """The device that all arrays of a call are on. Raises ValueError when they are on several."""
    devices = sorted({a.model.device for a in arrays}) or [CPU]
    if len(devices) > 1:
        raise ValueError(f"arrays of one list are on several devices: {', '.join(map(str, devices))}")
    return devices[0]


def not_taken(device: Device, takes: frozenset[str], transport: str) -> TypeError:
    """The error that the transport takes no arrays on this kind of device, which says what does."""
    how = "copy it to a device that is taken"
    if device.kind == "cpu":
        how = 'copy it to the GPU, or connect with transport="auto"'
    elif device.kind == "cuda":
        how = "copy it to the CPU (x.cpu() of a tensor, cupy.asnumpy(x) of a CuPy array)"
    return TypeError(f"an array on {device}: this transport ({transport}) takes {', '.join(sorted(takes))} only; {how}")


def _zeros(like: Any, shape: tuple[int, ...]) -> Callable[[], Any]:
    new = empty(like, shape)

    def zeros() -> Any:
        array = new()
        array[...] = 0
        return array

    return zeros


def _shapes(request: Request, x: ArrayView, rank: int, size: int, out: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The elements of every block, and the shape of the result on a rank that gets one."""
    name, sizes = request.collective, request.sizes
    if name in ("all_reduce", "reduce", "broadcast", "barrier", "scan", "exscan"):
        return (x.elements,), x.shape
    rows, rest = (x.shape[0], x.shape[1:]) if x.shape else (1, ())
    row = x.elements // rows if rows else _product(rest)
    if name in ("all_gather", "gather"):
        rows_of = _checked(request, sizes, size, rows, rank) or (rows,) * size
        return tuple(n * row for n in rows_of), (sum(rows_of), *rest)
    if name == "all_to_all":
        if sizes is None:
            part = _even(name, rows, size)
            return (part * row,) * (2 * size), x.shape
        if len(sizes) != 2 * size or min(sizes) < 0 or sum(sizes[:size]) != rows:
            raise ValueError(
                f"send_sizes and recv_sizes must have {size} sizes each, and send_sizes add up to the {rows} rows of x"
            )
        return tuple(n * row for n in sizes), (sum(sizes[size:]), *rest)
    scattered_here = name == "reduce_scatter" or rank == request.root
    if scattered_here:
        if sizes is None:
            sizes = (_even(name, rows, size),) * size
        elif len(sizes) != size or min(sizes) < 0 or sum(sizes) != rows:
            raise ValueError(f"sizes={sizes} must be {size} sizes that add up to the {rows} rows of x")
    else:
        sizes = _checked(request, sizes, size, rows, rank) or (rows,) * size
    return tuple(n * row for n in sizes), (sizes[rank], *rest)


def _checked(
    request: Request, sizes: tuple[int, ...] | None, size: int, rows: int, rank: int
) -> tuple[int, ...] | None:
    if sizes is not None and (len(sizes) != size or min(sizes) < 0 or sizes[rank] != rows):
        raise ValueError(
            f"sizes={sizes} must be {size} sizes, of which sizes[{rank}] is the {rows} rows of this rank's array"
        )
    return sizes


def _even(name: str, rows: int, size: int) -> int:
    if rows % size:
        how = "send_sizes= and recv_sizes=" if name == "all_to_all" else "sizes="
        raise ValueError(f"{name} cannot split {rows} rows evenly over {size} ranks; give {how}")
    return rows // size


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def check_apart(arrays: list[Operands]) -> None:
    """Raises ValueError when a result in a list lies over another's arrays: they are worked on at the same time."""
    spans: list[tuple[int, int, bool]] = []  # begin, end, whether it is written
    for a in arrays:
        reads = [(a.input.address, a.input.address + a.input.nbytes, False)] if a.input and a.input.nbytes else []
        writes = [(a.result.address, a.result.address + a.result.nbytes, True)] if a.result and a.result.nbytes else []
        if reads and writes and a.input and a.result and overlap(a.input, a.result):
            spans.append((min(reads[0][0], writes[0][0]), max(reads[0][1], writes[0][1]), True))
        else:
            spans += reads + writes
    end_of_reads = end_of_writes = 0
    for begin, end, written in sorted(spans):
        if begin < (max(end_of_reads, end_of_writes) if written else end_of_writes):
            raise ValueError("arrays of one list share memory, and at least one of them is written")
        if written:
            end_of_writes = max(end_of_writes, end)
        else:
            end_of_reads = max(end_of_reads, end)


def make_program(
    request: Request,
    arrays: list[Operands],
    rank: int,
    size: int,
    chooser: Chooser,
    names: Names,
    lanes: int,
    grouped: bool = False,
) -> Program:
    """The program of a call on these arrays (one, or a list's). Proves the plan first where that is needed.

    Buffers of the program: for array i, 2i is its input and 2i + 1 its result; the last one is scratch.
    """
    name = request.collective
    root = request.root if COLLECTIVES[name].rooted else 0
    algorithm = _algorithm(request, arrays, total_bytes(name, arrays, size), root, chooser)
    if algorithm == NATIVE:
        return _native_program(request, arrays, rank, size, root, names)
    the_plan = _plan(request, algorithm, size, root, chooser)
    actions: list[Action] = []
    scratch_buffer, scratch_bytes = 2 * len(arrays), 0
    for i, array in enumerate(arrays):
        layout = _layout(request, array, i, Place(scratch_buffer, scratch_bytes))
        if array.input is not None and would_be_overwritten(name, array, rank, size, root):
            nbytes, copy = array.input.nbytes, layout.scratch
            actions.append(Action(Kind.COPY, nbytes, a=layout.input, out=copy))
            scratch_bytes += -(-nbytes // _ALIGN_BYTES) * _ALIGN_BYTES
            layout = layout._replace(input=copy, scratch=Place(scratch_buffer, scratch_bytes))
        more, used = lower(the_plan, rank, layout, stripes=lanes, grouped=grouped)
        actions += more
        scratch_bytes += used
    call = _fingerprint(request, arrays, size, root, names.algorithm(the_plan.algorithm))
    return build(
        actions, call, buffers=scratch_buffer + 1, scratch_bytes=scratch_bytes,
        divisor=_contributors(name, rank, size, root) if request.op == "mean" else 1,
    )  # fmt: skip


def _algorithm(request: Request, arrays: list[Operands], nbytes: int, root: int, chooser: Chooser) -> str:
    """The name of the algorithm of a call. Raises ValueError for a native one that there is not."""
    name, algorithm = request.collective, request.algorithm.removeprefix(REPRODUCIBLE)
    reproducible, wanted = algorithm != request.algorithm, algorithm == NATIVE
    if algorithm == "auto":
        algorithm = chooser.choose(name, nbytes, reproducible)
    if algorithm != NATIVE:
        return algorithm
    refusals = [chooser.refuses(_native(request, array, i, root)) for i, array in enumerate(arrays)]
    trouble = next(filter(None, refusals), "its order is its own" if reproducible else "")
    if trouble and wanted:
        raise ValueError(f"algorithm='native' is not to be had for this {name}: {trouble}")
    return chooser.choose(name, nbytes, reproducible, native=False) if trouble else NATIVE


def _native_program(request: Request, arrays: list[Operands], rank: int, size: int, root: int, names: Names) -> Program:
    """The program that hands a call to the layer below the transport."""
    name = request.collective
    call = _fingerprint(request, arrays, size, root, names.algorithm(NATIVE))
    natives = tuple(_native(request, array, i, root) for i, array in enumerate(arrays))
    divisor = _contributors(name, rank, size, root) if request.op == "mean" else 1
    return replace(build((), call, buffers=2 * len(arrays) + 1, divisor=divisor), native=natives)


def _native(request: Request, array: Operands, index: int, root: int) -> Native:
    layout = _layout(request, array, index, Place(0, 0))
    takes = layout.input if array.input is not None else None
    gives = layout.output if array.result is not None or array.make is not None else None
    return Native(
        request.collective, layout.dtype, layout.item_bytes, layout.op, layout.mean, root, layout.blocks, takes, gives,
        array.model.device.kind,
    )  # fmt: skip


def _plan(request: Request, algorithm: str, size: int, root: int, chooser: Chooser) -> Plan:
    """The plan of a call. A user's own is proved before it runs, and a named one that must be canonical as well."""
    name, wanted = request.collective, request.algorithm.removeprefix(REPRODUCIBLE)
    reproducible, chosen = wanted != request.algorithm, wanted == "auto"

    def planned(algorithm: str) -> Plan:
        return plan(name, algorithm, size, root, chooser.hosts)

    def canonical(algorithm: str) -> bool:
        try:
            return _proof(planned(algorithm)).order == "canonical"
        except ValueError:  # wrong, or not for this number of ranks or these hosts
            return False

    the_plan = planned(algorithm)
    if not the_plan.builtin:
        _proof(the_plan)
    if reproducible and not chosen and not canonical(algorithm):
        raise ValueError(
            f"reproducible=True needs an algorithm that combines the ranks in the canonical order, which {name} "
            f"{algorithm!r} does not on {size} ranks; these do: {', '.join(filter(canonical, algorithms(name)))}"
        )
    return the_plan


def _contributors(collective: str, rank: int, size: int, root: int) -> int:
    """How many ranks' data are in this rank's result, where it has one."""
    spec = COLLECTIVES[collective]
    return max((spec.promise(rank, b, size, root)[0].bit_count() for b in spec.outputs(rank, size, root)), default=1)


def total_bytes(collective: str, arrays: list[Operands], size: int) -> int:
    """Size of the arrays that a call is about; the same on every rank, but for an all_to_all with sizes."""
    return sum(_whole(collective, a.blocks, size) * a.model.item_bytes for a in arrays)


def _whole(collective: str, blocks: tuple[int, ...], size: int) -> int:
    """Elements of the array a collective is about: half the blocks of all_to_all are what comes back."""
    return sum(blocks[:size]) if collective == "all_to_all" else sum(blocks)


def _layout(request: Request, array: Operands, index: int, scratch: Place) -> ArrayLayout:
    model = array.model
    dtype, item_bytes, blocks = DTYPES[model.dtype][0], model.item_bytes, array.blocks
    if model.dtype == "bytes":
        blocks, item_bytes = tuple(n * item_bytes for n in blocks), 1
    mine, result = Place(2 * index, 0), Place(2 * index + 1, 0)
    if array.input is not None and array.result is not None:
        mine, result = _places(array.input, array.result, mine, result)
    op = "sum" if request.op == "mean" else request.op
    return ArrayLayout(blocks, item_bytes, dtype, OPS[op], request.op == "mean", mine, result, scratch)


def _places(x: ArrayView, out: ArrayView, mine: Place, result: Place) -> tuple[Place, Place]:
    """The two places as offsets in one buffer where the arrays share memory."""
    if not overlap(x, out):
        return mine, result
    if x.address >= out.address and x.nbytes <= out.nbytes:
        return Place(result.buffer, x.address - out.address), result
    return mine, Place(mine.buffer, out.address - x.address)


def would_be_overwritten(collective: str, array: Operands, rank: int, size: int, root: int) -> bool:
    """Whether the result lies over the input where a plan does not expect it, so that a copy must be worked on.

    Plans work in place where each block of the result takes the place of the same block of the input; all_to_all has
    no such blocks.
    """
    x, out = array.input, array.result
    if x is None or out is None or not overlap(x, out):
        return False
    spec = COLLECTIVES[collective]
    begins = [0]
    for n in array.blocks:
        begins.append(begins[-1] + n * array.model.item_bytes)
    place_of_x = begins[spec.inputs(rank, size, root).start]
    place_of_out = begins[spec.outputs(rank, size, root).start]
    return collective == "all_to_all" or out.address - x.address != place_of_out - place_of_x


def overlap(x: ArrayView, out: ArrayView) -> bool:
    """Whether two arrays share memory."""
    return x.address < out.address + out.nbytes and out.address < x.address + x.nbytes


def _fingerprint(request: Request, arrays: list[Operands], size: int, root: int, algorithm: int) -> Call:
    """What all ranks must agree on. `extra` covers uneven sizes and the parts of a list."""
    name = request.collective
    parts = [(a.model.dtype_name, _whole(name, a.blocks, size)) for a in arrays]
    if name == "all_to_all" and request.sizes is not None:
        parts = [(dtype, 0) for dtype, _ in parts]  # every rank has sizes of its own
    uneven = None if name == "all_to_all" else request.sizes
    extra = zlib.crc32(repr((parts, uneven)).encode()) if len(arrays) > 1 or uneven else 0
    op = OPS.get(request.op, len(OPS)) if name in _REDUCING else 0
    dtype = DTYPES[arrays[0].model.dtype][0] if arrays else 0
    count = sum(n for _, n in parts)
    if dtype == DTYPES["bytes"][0]:
        count *= arrays[0].model.item_bytes
    return Call(COLLECTIVE_NUMBERS[name], dtype, op, root if COLLECTIVES[name].rooted else -1, count, algorithm, extra)
