"""Arrays on GPUs over a transport that takes arrays of the CPU only: through page-locked memory of the host.

A call is cut into pieces, each of which is a call of its own: the k-th part of every block. While piece k is on the
wire, piece k + 1 comes down from the GPU and piece k - 1 goes back up:

    down      0   1   2   3
    wire          0   1   2   3
    up                0   1   2   3

How many pieces there are depends on what all ranks know, the bytes of the whole call, so that all of them make the same
calls. An all-to-all with sizes is one piece: what it moves in all is known to no rank.

[Note: order with the caller's stream] A call reads its input after all that the caller's current stream was given
before, and what that stream is given after the call comes after the result. The host waits for copies from the GPU, as
it sends them itself; nothing waits for a whole GPU. A call in the background begins after the stream on which it was
started, and its result is there for every stream once it has been waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from collectives.buffers import ArrayView, scratch
from collectives.calls import Request
from collectives.gpu import Event, Gpu, Memory, Stream, gpu_of
from collectives.plan import COLLECTIVES
from collectives.resolve import Operands, total_bytes, would_be_overwritten
from transports.background import Background
from transports.base import CPU, Buffer, Device, Started, Transport
from transports.errors import CollectiveError

__all__ = ["PIECE_BYTES", "StagedCall", "Staging"]

PIECE_BYTES = 4 << 20  # a piece's share of the bytes of a call: some hundred times what starting a copy costs
_ALIGN_BYTES = 64
_RESULTS_AT = 1 << 60  # beyond every address of an input
_log = logging.getLogger("treering")
_said: set[str] = set()

Compile = Callable[[Request, list[Operands]], tuple[Any, Any]]
"""Makes what the transport runs of a call on host arrays, and the scratch memory for it (a numpy array)."""


class _Cut(NamedTuple):
    """Bytes that are in one place on the GPU as well as in the host's memory."""

    array: Memory
    array_at: int
    host_at: int
    nbytes: int


class _Piece(NamedTuple):
    compiled: Any
    scratch: Any
    down: list[_Cut]
    up: list[_Cut]
    inputs: list[int | None]  # of each array where it begins in the host's memory; None where there is nothing
    outputs: list[int | None]


class StagedCall(NamedTuple):
    """A call cut into pieces."""

    line: _Line
    pieces: list[_Piece]
    moved: list[tuple[Memory, Memory, int]]  # inputs that the result would overwrite: (array, copy, bytes)
    in_bytes: int  # of the host's memory that a piece takes
    out_bytes: int


class Staging:
    """The calls of one communicator, of arrays on a GPU or not: they go to the transport in the order in which they
    were made, though those on a GPU may still be on their way to it.

    `run`, `start`, `prepare` and `message` are as in transports/base.py, and take a StagedCall as well.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lines: dict[tuple[type[Gpu], Device], _Line] = {}
        self._background = Background("treering-staging")
        self._prepared = False  # whether there are functions that the transport runs by itself

    # ---------------------------------------------------------------- calls

    def stage(self, request: Request, arrays: list[Operands], results: list[Any], compile: Compile) -> StagedCall:
        """Cuts a call on arrays of one GPU. `results` are the views of what `make` made, None where there is none."""
        transport, name = self._transport, request.collective
        rank, size, root = transport.rank, transport.size, request.root if COLLECTIVES[name].rooted else 0
        uneven = name == "all_to_all" and request.sizes is not None
        count = 1 if uneven else max(-(-total_bytes(name, arrays, size) // PIECE_BYTES), 1)
        line = self._line(arrays[0].model)
        moved: list[tuple[Memory, Memory, int]] = []
        places: list[tuple[Memory | None, Memory | None]] = []
        gives, gets = COLLECTIVES[name].inputs(rank, size, root), COLLECTIVES[name].outputs(rank, size, root)
        for array, result in zip(arrays, results, strict=True):
            x = line.gpu.bytes_of(array.input) if array.input else None
            if array.input and x and count > 1 and would_be_overwritten(name, array, rank, size, root):
                copy = line.gpu.bytes_of(scratch(array.model, array.input.nbytes))
                moved.append((x, copy, array.input.nbytes))
                x = copy
            places.append((x, line.gpu.bytes_of(result) if result and len(gets) else None))
        cuts = [_cut(arrays, places, k, count, gives, gets) for k in range(count)]
        pieces: list[_Piece] = []
        for cut in cuts:
            parts = [
                _part(array, blocks, cut.inputs[i], cut.outputs[i], gives, gets)
                for i, (array, blocks) in enumerate(zip(arrays, cut.blocks, strict=True))
            ]
            sizes = request.sizes if request.sizes is None or uneven else cut.blocks[0]
            compiled, rest = compile(request._replace(x=None, out=None, sizes=sizes), parts)
            pieces.append(_Piece(compiled, rest, cut.down, cut.up, cut.inputs, cut.outputs))
        in_bytes, out_bytes = max(_end(cut.down) for cut in cuts), max(_end(cut.up) for cut in cuts)
        return StagedCall(line, pieces, moved, in_bytes, out_bytes)

    def run(self, compiled: Any, timeout_s: float, *buffers: Buffer) -> None:
        self.settle()
        if not isinstance(compiled, StagedCall):
            self._transport.run(compiled, timeout_s, *buffers)
            return
        line = compiled.line
        self._pieces(compiled, timeout_s, _begin(compiled))
        if line.last_up is not None:
            line.gpu.wait(line.gpu.current_stream(), line.last_up)

    def start(self, compiled: Any, timeout_s: float, *buffers: Buffer) -> Started:
        """As the transport's. A call on a GPU is waited for at once where there are functions that were prepared on
        arrays of the CPU: the transport runs these without asking what else was started."""
        if isinstance(compiled, StagedCall):
            job = self._background.start(partial(self._in_background, compiled, timeout_s, _begin(compiled)))
            if self._prepared:
                self.settle()
            return job
        if self._background.busy:
            return self._background.start(partial(self._transport.run, compiled, timeout_s, *buffers))
        return self._transport.start(compiled, timeout_s, *buffers)

    def prepare(self, compiled: Any, timeout_s: float, result: Any, keep: Any, *buffers: Buffer) -> Callable[[], Any]:
        if not isinstance(compiled, StagedCall):
            self.settle()
            self._prepared = True
            return self._transport.prepare(compiled, timeout_s, result, keep, *buffers)

        def call() -> Any:
            self.run(compiled, timeout_s)
            return (result, keep)[0]

        return call

    def message(self, sends: bool, peer: int, dtype: int, data: ArrayView, timeout_s: float) -> None:
        """Sends or receives an array in one piece, so that the other end may be on a device of another kind."""
        self.settle()
        count, nbytes, to_itself = data.elements, data.nbytes, data.device.kind in self._transport.devices
        if to_itself:
            self._transport.message(sends, peer, dtype, count, nbytes, timeout_s, data.address, data.device)
            return
        line = self._line(data)
        gpu, memory = line.gpu, line.gpu.bytes_of(data)
        line.reserve(nbytes if sends else 0, 0 if sends else nbytes)
        host = line.host_in[0] if sends else line.free_out(0)
        gpu.wait(line.down if sends else line.up, gpu.record(gpu.current_stream()))
        if sends:
            gpu.copy(line.down, memory, 0, host, 0, nbytes)
            gpu.synchronize(gpu.record(line.down))
        self._transport.message(sends, peer, dtype, count, nbytes, timeout_s, host.address)
        if not sends:
            gpu.copy(line.up, host, 0, memory, 0, nbytes)
            gpu.wait(gpu.current_stream(), line.went_up(0))

    # ---------------------------------------------------------------- in between

    @property
    def busy(self) -> bool:
        """Whether calls are under way of which the transport does not know yet."""
        return self._background.busy

    def settle(self) -> None:
        """Returns once the transport knows of all calls made so far."""
        self._background.settle()

    def forked(self) -> None:
        """In a forked child: the GPU and the thread are the parent's."""
        self._background = Background("treering-staging")
        self._lines.clear()

    def close(self) -> None:
        """After the transport was closed: waits until nothing touches any array."""
        self._background.close()
        for line in self._lines.values():
            line.quiet()
        self._lines.clear()

    def _line(self, like: ArrayView) -> _Line:
        gpu = gpu_of(like)
        key = type(gpu), like.device
        if key not in self._lines:
            if not _said:
                _said.add("staged")
                _log.warning(
                    "arrays on %s go through pinned memory of the host, as this transport (%s) takes arrays of the "
                    "CPU only; one that takes them is faster: connect(transport=...)",
                    like.device, self._transport.describe(),
                )  # fmt: skip
            self._lines[key] = _Line(gpu)
        return self._lines[key]

    def _in_background(self, call: StagedCall, timeout_s: float, ready: Event) -> None:
        self._pieces(call, timeout_s, ready)
        if call.line.last_up is not None:
            call.line.gpu.synchronize(call.line.last_up)

    def _pieces(self, call: StagedCall, timeout_s: float, ready: Event) -> None:
        line, gpu = call.line, call.line.gpu
        try:
            line.reserve(call.in_bytes, call.out_bytes)
            gpu.wait(line.down, ready)  # and nothing goes up before the first piece came down
            coming = line.bring_down(0, call.pieces[0].down)
            for k, piece in enumerate(call.pieces):
                came = coming
                if k + 1 < len(call.pieces):
                    coming = line.bring_down(k + 1, call.pieces[k + 1].down)
                gpu.synchronize(came)
                given, got = line.host_in[k % 2], line.free_out(k)
                buffers: list[int] = []
                for x, out in zip(piece.inputs, piece.outputs, strict=True):
                    buffers += [0 if x is None else given.address + x, 0 if out is None else got.address + out]
                self._transport.run(piece.compiled, timeout_s, *buffers, piece.scratch.ctypes.data)
                for array, array_at, host_at, nbytes in piece.up:
                    gpu.copy(line.up, got, host_at, array, array_at, nbytes)
                line.went_up(k)
        except BaseException as error:
            if not isinstance(error, CollectiveError):
                self._transport.close()  # the other ranks must not wait for pieces that will not come
            line.quiet()
            raise


class _Line:
    """The way from one GPU to the host and back: a stream each way, and two pieces of memory for each to take turns."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.down: Stream = gpu.new_stream()
        self.up: Stream = gpu.new_stream()
        self.host_in = [gpu.pinned(_ALIGN_BYTES), gpu.pinned(_ALIGN_BYTES)]
        self._host_out = [gpu.pinned(_ALIGN_BYTES), gpu.pinned(_ALIGN_BYTES)]
        self._sizes = [_ALIGN_BYTES, _ALIGN_BYTES]
        self._went: list[Event | None] = [None, None]
        self.last_up: Event | None = None

    def reserve(self, in_bytes: int, out_bytes: int) -> None:
        """Has at least so much memory for a piece from now on. Nobody may be using what there is."""
        if in_bytes > self._sizes[0]:
            self._sizes[0] = 1 << (in_bytes - 1).bit_length()
            self.host_in = [self.gpu.pinned(self._sizes[0]) for _ in range(2)]
        if out_bytes > self._sizes[1]:
            self.quiet()
            self._sizes[1] = 1 << (out_bytes - 1).bit_length()
            self._host_out = [self.gpu.pinned(self._sizes[1]) for _ in range(2)]

    def bring_down(self, k: int, cuts: list[_Cut]) -> Event:
        """Copies piece k to the host, where nobody may be reading piece k - 2 any more. The event says that it came."""
        for array, array_at, host_at, nbytes in cuts:
            self.gpu.copy(self.down, array, array_at, self.host_in[k % 2], host_at, nbytes)
        return self.gpu.record(self.down)

    def free_out(self, k: int) -> Memory:
        """Memory for the result of piece k, once the last that was there has gone up."""
        went = self._went[k % 2]
        if went is not None:
            self.gpu.synchronize(went)
            self._went[k % 2] = None
        return self._host_out[k % 2]

    def went_up(self, k: int) -> Event:
        """The event that all copies to the GPU up to those of piece k have happened."""
        self._went[k % 2] = self.last_up = event = self.gpu.record(self.up)
        return event

    def quiet(self) -> None:
        """Returns once no copy is under way."""
        for stream in (self.down, self.up):
            self.gpu.synchronize(self.gpu.record(stream))


def _begin(call: StagedCall) -> Event:
    """The event after which the input may be read, and the result written."""
    gpu = call.line.gpu
    stream = gpu.current_stream()
    for array, copy, nbytes in call.moved:
        gpu.copy(stream, array, 0, copy, 0, nbytes)
    return gpu.record(stream)


class _Cuts(NamedTuple):
    """The k-th part of every block of every array."""

    blocks: list[tuple[int, ...]]  # elements of the parts, of each array
    down: list[_Cut]
    up: list[_Cut]
    inputs: list[int | None]
    outputs: list[int | None]


def _cut(
    arrays: list[Operands], places: list[tuple[Memory | None, Memory | None]], k: int, count: int, gives: range,
    gets: range,
) -> _Cuts:  # fmt: skip
    cuts = _Cuts([], [], [], [], [])
    for array, (x, out) in zip(arrays, places, strict=True):
        item_bytes = array.model.item_bytes
        spans = [(min(k * share, n), min((k + 1) * share, n)) for n in array.blocks for share in [-(-n // count)]]
        cuts.blocks.append(tuple(high - low for low, high in spans))
        for memory, which, found, begins in ((x, gives, cuts.down, cuts.inputs), (out, gets, cuts.up, cuts.outputs)):
            if memory is None:
                begins.append(None)
                continue
            at, host_at = 0, -(-_end(found) // _ALIGN_BYTES) * _ALIGN_BYTES
            begins.append(host_at)
            for block in which:
                low, high = spans[block]
                if nbytes := (high - low) * item_bytes:
                    found.append(_Cut(memory, at + low * item_bytes, host_at, nbytes))
                at, host_at = at + array.blocks[block] * item_bytes, host_at + nbytes
    return cuts


def _end(cuts: list[_Cut]) -> int:
    """How much of the host's memory they take."""
    return max((cut.host_at + cut.nbytes for cut in cuts), default=0)


def _part(
    array: Operands, blocks: tuple[int, ...], x: int | None, out: int | None, gives: range, gets: range
) -> Operands:
    """A part of an array in the host's memory, as a program sees it. Where that memory is turns out when it runs; what
    counts is that inputs and results are apart."""

    def at(address: int, which: range) -> ArrayView:
        return model._replace(address=address, shape=(sum(blocks[block] for block in which),))

    model = array.model._replace(array=None, device=CPU, copied=False)
    given = None if x is None else at(x, gives)
    got = None if out is None else at(_RESULTS_AT + out, gets)
    return Operands(given, got, blocks, model, (), None)
