"""torch.distributed as a transport: plans on the messages of its process groups, Gloo for arrays in CPU memory and NCCL
for those on a GPU; and the collectives of these groups as "native".

Beside a process group there is a communicator of the engine, over which the ranks agree on each call before its data
moves: a small program on it carries the call's fingerprint to the neighbours. So mismatches, ranks that do not come and
ranks that died are found there, and told in the same words as on the engine. `send` and `recv` go over it as well. The
process groups are made at the first call that needs them, and belong to this communicator alone.

What torch.distributed does not let one see, and what therefore differs from the engine:
- once the data of a call moves, the time limit is on each message as a whole, not on the time without progress; and the
  rank that an error names is the one whose message was waited for, which may have waited for a third one itself.
- Ctrl-C while data moves is noticed when the message in progress has ended.
- on a GPU a call returns when its work is on the stream. The ranks agree in the background meanwhile, so a mismatch, or
  a rank that did not come, is raised by a later call; NCCL's own watchdog ends what hangs on the stream.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import socket
import zlib
from collections.abc import Sequence
from datetime import timedelta
from time import monotonic, sleep
from typing import Any, NamedTuple

import numpy as np

from transports import launchers
from transports.base import CPU, Buffer, Device
from transports.cards import tcp_addresses
from transports.engine.transport import EngineTransport
from transports.errors import CollectiveError, RendezvousError, TransportError, UnsupportedError
from transports.failures import FailureKind, Names
from transports.grouped import Groups
from transports.launcher_stores import TorchStore
from transports.launchers import Launch
from transports.network import LOOPBACK
from transports.portable import PortableTransport, address_of, record
from transports.program import DTYPES, Action, Call, Kind, Native, Place, Program, build
from transports.torch_layer import CudaLayer, GlooLayer
from transports.torch_native import NATIVES, NativeCall, refusal
from transports.tracing import TracedCall, TracedStep

__all__ = ["TorchTransport", "connect"]

_ADDRESS_BYTES = 128
_GLOO_THREADS = 2
_LONG_S = 1e6
_HEARS_S = 2.0  # how long after a broken connection the engine may take to say whose fault it is


def connect(launch: Launch, *, names: Names, timeout_s: float) -> TorchTransport:
    """The transport of the ranks of this job, or of the default process group where the launcher says nothing.

    Raises UnsupportedError when torch is missing or was built without torch.distributed, RendezvousError when ranks are
    missing, or when the launcher and the default process group disagree about this rank.
    """
    torch = load_torch()
    endpoint = launchers.join(_of_default_group(torch, launch), timeout_s=timeout_s)
    try:
        side = EngineTransport(endpoint, range(endpoint.size), endpoint.rank, names)
        return TorchTransport(torch, side, endpoint, names)
    except BaseException:
        endpoint.close()
        raise


def load_torch() -> Any:
    """The module torch, with torch.distributed. Raises UnsupportedError that says what to install."""
    try:
        torch: Any = importlib.import_module("torch")
        distributed: Any = importlib.import_module("torch.distributed")
    except (ImportError, OSError) as error:
        raise UnsupportedError(f"transport='torch' needs PyTorch ({error}): pip install torch") from error
    if not distributed.is_available() or not distributed.is_gloo_available():
        raise UnsupportedError("transport='torch' needs a PyTorch that was built with torch.distributed and Gloo")
    return torch


def _of_default_group(torch: Any, launch: Launch) -> Launch:
    """The same launch, or the default process group's where there is one and no launcher was found."""
    distributed = torch.distributed
    if not distributed.is_initialized():
        return launch
    rank, size = distributed.get_rank(), distributed.get_world_size()
    if launch.kind == "single":
        store = importlib.import_module("torch.distributed.distributed_c10d")._get_default_store()

        def open_store(name: str) -> TorchStore:
            return TorchStore(lambda _: store, f"treering/{name}")

        return Launch("given", rank, size, "torch", "torch.distributed", open_store=open_store)
    if (rank, size) != (launch.rank, launch.size):
        raise RendezvousError(
            f"this process is rank {launch.rank} of {launch.size} by {launch.found}, but rank {rank} of {size} of "
            "torch.distributed's default process group"
        )
    return launch


class _Compiled(NamedTuple):
    program: Program
    checks: tuple[Any, ...]  # the engine's, for the agreement
    work: Groups | NativeCall
    device: Device
    stream: Any = None  # the caller's, where a call on a GPU runs on another thread


class TorchTransport(PortableTransport):
    """One rank of a communicator on torch.distributed; see transports/base.py for the contract.

    side        the engine's communicator of the same ranks
    endpoint    of the process
    """

    grouped = True
    natives = NATIVES

    def __init__(
        self, torch: Any, side: EngineTransport, endpoint: Any, names: Names, *, name: str = "world",
        parent: TorchTransport | None = None,
    ) -> None:  # fmt: skip
        super().__init__(side.rank, side.size, side.hosts, names)
        self._torch, self._side, self._endpoint, self._name, self._parent = torch, side, endpoint, name, parent
        if torch.cuda.is_available() and torch.distributed.is_nccl_available():
            self.devices = frozenset({"cpu", "cuda"})
        self._forked = False
        self._store: Any = None
        self._layers: dict[Device, GlooLayer | CudaLayer] = {}
        self._token = np.zeros(64, np.uint8)
        self._check: Any = None  # the agreement on the last call
        self._agreeing: Any = None  # the same in the background, for a call on a GPU

    def compile(self, program: Program, timeout_s: float, device: Device = CPU) -> _Compiled:
        agreements = [_agreement(program.call, self.rank, self.size)]
        if self._names.collectives[program.call.collective] == "all_to_all" and not program.call.elements:
            agreements += _on_sizes(program, self.rank, self.size)
        checks = tuple(self._side.compile(agreement, timeout_s) for agreement in agreements)
        if program.native and self.size > 1:
            return _Compiled(program, checks, NativeCall(self._torch, program, self.rank, self.size), device)
        return _Compiled(program, checks, Groups(program, early=device == CPU), device)

    def start(self, compiled: _Compiled, timeout_s: float, *buffers: Buffer) -> Any:
        if compiled.device != CPU:
            compiled = compiled._replace(stream=self._torch.cuda.current_stream(str(compiled.device)))
        return super().start(compiled, timeout_s, *buffers)

    def refuses(self, native: Native) -> str:
        return "there is one rank only" if self.size == 1 else refusal(native)

    def message(
        self, sends: bool, peer: int, dtype: int, count: int, nbytes: int, timeout_s: float, data: Buffer,
        device: Device = CPU,
    ) -> None:  # fmt: skip
        if device != CPU:
            raise UnsupportedError(f"send and recv of this transport take arrays in CPU memory, not on {device}")
        with self._turn:
            self._side.message(sends, peer, dtype, count, nbytes, timeout_s, data)

    def empty(self, nbytes: int) -> memoryview:
        return self._side.empty(nbytes)

    def split(self, name: str, members: Sequence[int], rank: int) -> TorchTransport:
        side = self._side.split(name, members, rank)
        return TorchTransport(self._torch, side, self._endpoint, self._names, name=f"{self._name}/{name}", parent=self)

    def describe(self) -> str:
        if self.size == 1:
            return "alone"
        return "torch.distributed (" + ("NCCL and Gloo" if "cuda" in self.devices else "Gloo") + ")"

    def forked(self) -> None:
        self._side.forked()
        if self._parent is None:
            self._endpoint.drop_after_fork()
        # To destroy these waits for threads that only the parent has: here they live as long as the process.
        for kept in (self._store, *(layer.group for layer in self._layers.values())):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        self._forked, self._store = True, None
        self._layers.clear()

    def close(self) -> None:
        if self._closed or self._forked:
            return
        self._closed = True
        if self._turn.locked():
            self._abort()
            self._side.close()  # the agreement on a call ends too
        self._background.close()  # calls there have been told to end
        with self._turn:  # whoever runs a call in another thread ends it first
            self._layers.clear()
            self._store = None
        self._side.close()
        if self._parent is None:
            self._endpoint.close()

    # ---------------------------------------------------------------- running

    def _execute(
        self, compiled: _Compiled, timeout_s: float, buffers: Sequence[Buffer], message: int
    ) -> TracedCall | None:
        began_s, steps = monotonic(), None if self._trace is None else list[TracedStep]()
        addresses = [address_of(buffer) for buffer in buffers]
        try:
            self._agree(compiled, timeout_s)
            layer = self._layer(compiled.device, timeout_s)
            layer.timeout_s = timeout_s
            try:
                if isinstance(layer, CudaLayer):
                    self._run_on_stream(layer, compiled, addresses, steps)
                elif isinstance(compiled.work, Groups):
                    compiled.work.run(layer, addresses, steps, layer.expect)
                else:
                    compiled.work.run(layer, addresses)
            except RuntimeError as error:  # what torch.distributed raises
                self._raise_first_cause(compiled, layer, error)
        except CollectiveError:
            self._abort()
            raise
        return None if steps is None else TracedCall(self.seq, began_s, monotonic(), tuple(steps))

    def _run_on_stream(
        self, layer: CudaLayer, compiled: _Compiled, addresses: Sequence[int], steps: list[TracedStep] | None
    ) -> None:
        """Everything in its place between what the caller's stream has before, and what it gets afterwards."""
        cuda = self._torch.cuda
        callers = compiled.stream or cuda.current_stream(str(layer.device))
        layer.stream.wait_stream(callers)
        with cuda.device(layer.device.number), cuda.stream(layer.stream):
            if isinstance(compiled.work, Groups):
                compiled.work.run(layer, addresses, steps)
            else:
                compiled.work.run(layer, addresses)
        callers.wait_stream(layer.stream)

    def _agree(self, compiled: _Compiled, timeout_s: float) -> None:
        """Returns when the neighbours make the same call; on a GPU, when they made the one before."""
        self._check = compiled.checks[0]
        agreeing, self._agreeing = self._agreeing, None
        if agreeing is not None:
            agreeing.wait(_LONG_S)
        if compiled.device == CPU or compiled.device not in self._layers:
            for check in compiled.checks:
                self._side.run(check, timeout_s, self._token)
        else:
            for check in compiled.checks:
                self._agreeing = self._side.start(check, timeout_s, self._token)

    # ---------------------------------------------------------------- process groups

    def _layer(self, device: Device, timeout_s: float) -> GlooLayer | CudaLayer:
        """That of a device, made at the first call on it: all ranks are there then."""
        layer = self._layers.get(device)
        if layer is None:
            try:
                layer = self._make_layer(device, timeout_s)
            except RuntimeError as error:
                self._await_failure()
                raise TransportError(f"no process group of torch.distributed could be made: {error}") from error
            self._layers[device] = layer
        return layer

    def _make_layer(self, device: Device, timeout_s: float) -> GlooLayer | CudaLayer:
        distributed, timeout = self._torch.distributed, timedelta(seconds=timeout_s)
        group: Any = None
        if device == CPU:
            if self.size > 1:
                options = distributed.ProcessGroupGloo._Options()
                options._devices = [distributed.ProcessGroupGloo.create_device(hostname=self._address())]
                options._timeout, options._threads = timeout, _GLOO_THREADS
                store = distributed.PrefixStore("gloo", self._open_store(timeout_s))
                group = distributed.ProcessGroupGloo(store, self.rank, self.size, options)
                self._meet(timeout_s)
            return GlooLayer(self._torch, group)
        with self._torch.cuda.device(device.number):  # NCCL takes the current one
            if self.size > 1:
                options = distributed.ProcessGroupNCCL.Options()
                options._timeout = timeout
                store = distributed.PrefixStore(f"nccl/{device.number}", self._open_store(timeout_s))
                group = distributed.ProcessGroupNCCL(store, self.rank, self.size, options)
                # The first messages of a group must not be its first operation: not all ranks have some.
                group.allreduce([self._torch.zeros(1, device=str(device))]).wait()
            return CudaLayer(self._torch, group, device)

    def _open_store(self, timeout_s: float) -> Any:
        """Where the ranks of a process group meet: on rank 0, at an address that the others may reach anyway."""
        if self._store is None:
            store: Any = self._torch.distributed.TCPStore
            told = np.zeros(_ADDRESS_BYTES, np.uint8)
            common: dict[str, Any] = {
                "timeout": timedelta(seconds=timeout_s), "wait_for_workers": False, "use_libuv": False,
            }  # fmt: skip
            if self.rank == 0:
                host = self._address()
                with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
                    listening.bind((host, 0))
                    listening.listen(self.size)
                    port: int = listening.getsockname()[1]
                    self._store = store(host, port, is_master=True, master_listen_fd=listening.detach(), **common)
                text = json.dumps([host, port]).encode()
                told[: len(text)] = np.frombuffer(text, np.uint8)
                for peer in range(1, self.size):
                    self._tell(True, peer, told, timeout_s)
            else:
                self._tell(False, 0, told, timeout_s)
                host, port = json.loads(bytes(told).rstrip(b"\0"))
                self._store = store(host, port, is_master=False, **common)
        return self._store

    def _meet(self, timeout_s: float) -> None:
        """Rank 0, which hosts the store, stays until the others have read what they need."""
        word = np.zeros(1, np.uint8)
        for peer in range(1, self.size) if self.rank == 0 else (0,):
            self._tell(self.rank != 0, peer, word, timeout_s)

    def _tell(self, sends: bool, peer: int, data: Any, timeout_s: float) -> None:
        self._side.message(sends, peer, DTYPES["uint8"][0], data.size, data.nbytes, timeout_s, data)

    def _address(self) -> str:
        """The numeric address of this rank for the others."""
        found = tcp_addresses(self._endpoint.cards[self._endpoint.rank])
        return found[0][0] if found else LOOPBACK

    # ---------------------------------------------------------------- failing

    def _program(self, compiled: _Compiled) -> Program:
        return compiled.program

    def _fail(self, kind: int, culprit: int, mine: dict[str, Any]) -> None:
        if not self._side.failed and self._check is not None:
            self._side.fail(kind, culprit, 0.0, self._check)
        self._abort()

    def _raise_first_cause(self, compiled: _Compiled, layer: GlooLayer | CudaLayer, error: RuntimeError) -> None:
        """Raises what broke a process group, as far as the engine knows it."""
        waited_s = monotonic() - layer.since
        timed_out = waited_s > 0.9 * layer.timeout_s
        if not timed_out:
            self._await_failure()
        if not self._side.failed:
            kind = FailureKind.DEADLINE if timed_out else FailureKind.LOST
            self._side.fail(kind, layer.waits_for, waited_s, compiled.checks[0])
        self._abort()
        self._side.raise_failure(None, self._names.call(record(self.seq, compiled.program.call)))

    def _await_failure(self) -> None:
        """Waits a moment for the engine, which sees the end of a process, or hears from another rank what happened."""
        deadline = monotonic() + _HEARS_S
        while not self._side.failed and monotonic() < deadline:
            sleep(0.001)

    def _abort(self) -> None:
        """Ends the connections of the process groups, so that neighbours that wait for this rank wake up."""
        for layer in self._layers.values():
            if layer.group is not None:
                with contextlib.suppress(RuntimeError):
                    layer.group.abort()


def _agreement(call: Call, rank: int, size: int) -> Program:
    """One byte to, and from, the ranks at distances 1, 2, 4, ..., in any order."""
    actions: list[Action] = []
    distance = 1
    while distance < size:
        actions.append(Action(Kind.SEND, 1, peer=(rank + distance) % size, a=Place(0, 0)))
        actions.append(Action(Kind.RECV, 1, peer=(rank - distance) % size, out=Place(0, 1 + len(actions))))
        distance *= 2
    return build(actions, call, buffers=1)


def _on_sizes(program: Program, rank: int, size: int) -> list[Program]:
    """For an all-to-all whose sizes only two ranks know each: one byte to and from every other rank, with a fingerprint
    of what goes both ways between the two. Gloo ends the process where a message is longer than its receive."""
    sends: list[list[int]] = [[] for _ in range(size)]
    recvs: list[list[int]] = [[] for _ in range(size)]
    rows: list[list[int]] = program.steps.tolist()
    for row in rows:
        if row[0] <= Kind.RECV_REDUCE:
            way = sends if row[0] == Kind.SEND else recvs
            way[int(row[1])].append(int(row[12]))
    for native in program.native:
        for peer in range(size):
            sends[peer].append(native.blocks[peer] * native.item_bytes)
            recvs[peer].append(native.blocks[size + peer] * native.item_bytes)
    agreements: list[Program] = []
    for round_ in range(size):
        peer = (round_ - rank) % size  # whose own is this rank
        actions: list[Action] = []
        if peer != rank:
            actions = [Action(Kind.SEND, 1, peer=peer, a=Place(0, 0)), Action(Kind.RECV, 1, peer=peer, out=Place(0, 1))]
        ways = (sends[peer], recvs[peer]) if rank < peer else (recvs[peer], sends[peer])
        call = program.call._replace(extra=zlib.crc32(repr((program.call.extra, ways)).encode()))
        agreements.append(build(actions, call, buffers=1))
    return agreements
