"""The communicator: ranks 0 to size - 1, and the calls they make together."""

from __future__ import annotations

import itertools
import json
import logging
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from collectives import cache
from collectives.buffers import ArrayView, scratch, view
from collectives.calls import COLLECTIVE_NUMBERS, QUICK, Calls, Request
from collectives.choose import Chooser, Explanation
from collectives.exchange import broadcast_json
from collectives.levels import narrowed
from collectives.measure import KIND as MEASUREMENT
from collectives.measure import Meter, measure
from collectives.measurement import Measurement
from collectives.resolve import Operands, check_apart, device_of, make_program, not_taken, operands, overlap
from collectives.rules import Rule, read_rules
from collectives.staging import Staging
from collectives.tune import KIND as TUNING
from collectives.tune import TUNED, TUNED_SIZES, tune
from collectives.tuning import Tuning
from collectives.work import Work
from topology import Cluster, load
from topology.cluster import Groups
from transports.base import CPU, Device, Started, Transport
from transports.engine.transport import EngineTransport, Posted
from transports.errors import CommunicatorBroken, UnsupportedError
from transports.failures import Names
from transports.program import DTYPES
from transports.tracing import TracedCall

__all__ = ["Communicator"]

_log = logging.getLogger("treering")
_MOST_PROGRAMS = 4096
_ALIGN_BYTES = 64
_NOTHING: frozenset[str] = frozenset()
_BY_STAGING: frozenset[str] = frozenset({"cuda"})


class Communicator(Calls):
    """Ranks that call collectives together; made by `connect`, `split` or `by_host`.

    Every rank makes the same calls in the same order. A blocking call waits for the asynchronous ones started before.
    Use one communicator from one thread at a time; threads that work at the same time each take one of their own
    (`split`). After a failure it is broken: every later call raises CommunicatorBroken with the first cause.

    rank, size    of this process, and how many there are
    hosts         the ranks of each host, a tuple of tuples
    groups        the same, nested further where hosts are near one another (racks, sites); None: hosts is all
    timeout_s     how long nothing may move in a call before DeadlineExceeded, unless a call says otherwise
    """

    def __init__(
        self,
        transport: Transport,
        names: Names,
        *,
        groups: Groups | None = None,
        timeout_s: float = 60.0,
        lanes: int = 1,
        reproducible: bool = False,
        found: str = "",
        on_close: Callable[[], None] | None = None,
        on_fork: Callable[[], None] | None = None,
    ) -> None:
        self.rank, self.size, self.hosts = transport.rank, transport.size, transport.hosts
        self._timeout_s, self._reproducible, self.groups = timeout_s, reproducible, groups
        self._transport, self._names, self._lanes, self._found = transport, names, lanes, found
        self._chooser = Chooser(
            groups or transport.hosts, transport.shared_memory, natives=transport.natives, refuses=transport.refuses
        )
        self._on_close, self._on_fork = on_close, on_fork
        self._programs: dict[Any, tuple[Any, int]] = {}
        self._scratch: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self._device_scratch: dict[Device, list[ArrayView]] = {}
        self._pending: list[tuple[Started, Any]] = []
        self._splits = itertools.count()
        self._children: weakref.WeakSet[Communicator] = weakref.WeakSet()
        self._parent: Communicator | None = None  # lives as long: its listener takes the connections of both
        self._closed = self._tracing = False
        # What it takes by way of the host's memory (staging.py) comes on top.
        self._takes = transport.devices | (_BY_STAGING if "cpu" in transport.devices else _NOTHING)
        self._staging = Staging(transport)
        self._table = transport.quick_calls()
        if self._table is not None:
            self._quick = self._table.call
        # One that is dropped, or still there when the process ends, says goodbye all the same: the peers can tell an
        # end from a crash. Calls in progress end before their arrays go.
        self._let_go = weakref.finalize(self, _let_go, transport, self._staging, on_close)
        self.prepare = _Prepared(self, reproducible)
        self._started = _StartedCalls(self, reproducible)

    @property
    def transport(self) -> str:
        """How bytes move from this rank to the others, in a few words."""
        return self._transport.describe()

    @property
    def timeout_s(self) -> float:
        """The limit on time without progress, for calls that do not give their own; may be set."""
        return self._timeout_s

    @timeout_s.setter
    def timeout_s(self, limit: float) -> None:
        self._timeout_s = self._limit(limit)
        if self._table is not None:
            self._table.clear()  # its calls have the old limit

    # ---------------------------------------------------------------- calls

    def all_reduce_async(self, x: Any, **options: Any) -> Work:
        """`all_reduce` in the background; takes the same arguments."""
        return self._started.all_reduce(x, **options)

    def reduce_async(self, x: Any, **options: Any) -> Work:
        """`reduce` in the background; takes the same arguments."""
        return self._started.reduce(x, **options)

    def reduce_scatter_async(self, x: Any, **options: Any) -> Work:
        """`reduce_scatter` in the background; takes the same arguments."""
        return self._started.reduce_scatter(x, **options)

    def all_gather_async(self, x: Any, **options: Any) -> Work:
        """`all_gather` in the background; takes the same arguments."""
        return self._started.all_gather(x, **options)

    def broadcast_async(self, x: Any, **options: Any) -> Work:
        """`broadcast` in the background; takes the same arguments."""
        return self._started.broadcast(x, **options)

    def gather_async(self, x: Any, **options: Any) -> Work:
        """`gather` in the background; takes the same arguments."""
        return self._started.gather(x, **options)

    def scatter_async(self, x: Any = None, **options: Any) -> Work:
        """`scatter` in the background; takes the same arguments."""
        return self._started.scatter(x, **options)

    def all_to_all_async(self, x: Any, **options: Any) -> Work:
        """`all_to_all` in the background; takes the same arguments."""
        return self._started.all_to_all(x, **options)

    def scan_async(self, x: Any, **options: Any) -> Work:
        """`scan` in the background; takes the same arguments."""
        return self._started.scan(x, **options)

    def exscan_async(self, x: Any, **options: Any) -> Work:
        """`exscan` in the background; takes the same arguments."""
        return self._started.exscan(x, **options)

    def barrier_async(self, **options: Any) -> Work:
        """`barrier` in the background; takes the same arguments."""
        return self._started.barrier(**options)

    def send(self, x: Any, peer: int, *, timeout_s: float | None = None) -> None:
        """Sends an array to a rank that calls `recv`. Returns when `x` may be changed again."""
        self._message(True, view(x), peer, timeout_s)

    def recv(self, out: Any, peer: int, *, timeout_s: float | None = None) -> Any:
        """Receives what `peer` sends next to this rank into `out`, of the same count and dtype; returns `out`."""
        self._message(False, view(out, out=True), peer, timeout_s)
        return out

    def post(self, x: Any, *, sends: bool, peer: int, tag: int, timeout_s: float | None = None) -> Posted:
        """Begins to send `x` to a rank, or to receive into it (from any rank: peer=-1), matched by `tag`.

        Any number may be under way; those between two ranks with one tag are received in the order they were sent.
        The caller keeps `x` until the message has ended. A communicator that posts messages is for nothing else; it
        must be one of the engine (UnsupportedError).
        """
        self._check_open()
        if not -1 <= peer < self.size or peer == self.rank or (sends and peer < 0):
            raise ValueError(f"peer={peer} is not another rank: this is rank {self.rank} of {self.size}")
        if not isinstance(self._transport, EngineTransport):
            raise UnsupportedError(f"messages cannot be posted over {self._transport.describe()}")
        data = view(x, out=not sends)
        number = DTYPES[data.dtype][0]
        count = data.nbytes if data.dtype == "bytes" else data.elements
        return self._transport.post(sends, peer, tag, number, count, data.nbytes, self._limit(timeout_s), data.address)

    def _message(self, sends: bool, data: ArrayView, peer: int, timeout_s: float | None) -> None:
        self._check_open()
        if not 0 <= peer < self.size or peer == self.rank:
            raise ValueError(f"peer={peer} is not another rank: this is rank {self.rank} of {self.size}")
        self._check_taken(data.device)
        self._staging.message(sends, peer, DTYPES[data.dtype][0], data, self._limit(timeout_s))

    def _call(self, request: Request) -> Any:
        resolved = self._resolve(request)
        self._staging.run(resolved.compiled, resolved.timeout_s, *resolved.buffers)
        if self._table is not None:
            self._quick = self._table.call
        self._remember(request, resolved)
        return resolved.result

    def _remember(self, request: Request, resolved: _Resolved) -> None:
        """Lets the transport answer the next call of this kind at once."""
        x, out = request.x, request.out
        usual = request.timeout_s is None and request.sizes is None and request.collective in QUICK
        single = resolved.single
        zeros = request.collective == "exscan" and self.rank == 0 and out is None  # which the transport does not make
        if self._table is None or not usual or single is None or single.copied or zeros or single.model.device != CPU:
            return
        number = COLLECTIVE_NUMBERS[request.collective]
        self._table.add(
            number, x, out, request.op, request.root, request.algorithm, resolved.compiled, self.timeout_s,
            single.make, single.shape, single.make is not None or single.result is not None,
        )  # fmt: skip

    def _resolve(self, request: Request) -> _Resolved:
        """Checks a call and makes all that it needs, or finds it."""
        self._check_open()
        several = isinstance(request.x, (list, tuple))
        xs = list(request.x) if several else [request.x]
        outs = [None] * len(xs) if request.out is None else list(request.out) if several else [request.out]
        if len(outs) != len(xs):
            raise ValueError(f"{len(xs)} arrays were given, but {len(outs)} to put the results in")
        limit = self._limit(request.timeout_s)
        arrays = [operands(request, x, o, self.rank, self.size) for x, o in zip(xs, outs, strict=True)]
        if several:
            check_apart(arrays)
        device = device_of(arrays)
        self._check_taken(device)
        results = [a.make() if a.make else o if a.result else None for o, a in zip(outs, arrays, strict=True)]
        views = [
            a.result or (view(result) if result is not None else None)
            for a, result in zip(arrays, results, strict=True)
        ]
        single = None if several else arrays[0]
        result = None if request.collective == "barrier" else results if several else results[0]
        if device.kind not in self._transport.devices:
            compiled = self._staging.stage(request, arrays, views, partial(self._piece, limit))
            return _Resolved(compiled, limit, [], result, (arrays, results), single)
        compiled, scratch_bytes = self._compiled(request, arrays, several, device, limit)
        buffers: list[int] = []
        for array, to in zip(arrays, views, strict=True):
            buffers += [array.input.address if array.input else 0, to.address if to else 0]
        if device == CPU:
            rest: Any = self._scratch_of(scratch_bytes)
            buffers.append(rest.ctypes.data)
        else:
            rest = self._scratch_on(device, arrays[0].model, scratch_bytes)
            buffers.append(rest.address)
        return _Resolved(compiled, limit, buffers, result, (arrays, results, rest), single)

    def _compiled(
        self, request: Request, arrays: list[Operands], several: bool, device: Device, limit_s: float
    ) -> tuple[Any, int]:
        """What the transport made of a call, and the bytes of scratch memory that it needs."""
        key = (request._replace(x=None, out=None, timeout_s=None), tuple(map(_layout, arrays)), several, device)
        known = self._programs.get(key)
        if known is None:
            program = make_program(
                request, arrays, self.rank, self.size, self._chooser, self._names, self._lanes, self._transport.grouped
            )
            known = self._transport.compile(program, limit_s, device), program.scratch_bytes
            if len(self._programs) >= _MOST_PROGRAMS:
                self._programs.clear()
            self._programs[key] = known
        return known

    def _piece(self, limit_s: float, request: Request, arrays: list[Operands]) -> tuple[Any, Any]:
        compiled, scratch_bytes = self._compiled(request, arrays, len(arrays) > 1, CPU, limit_s)
        return compiled, self._scratch_of(scratch_bytes)

    def _scratch_of(self, nbytes: int) -> np.ndarray[Any, Any]:
        """Scratch memory shared by all calls, which never run at the same time; a call keeps the one it began with."""
        if self._scratch.nbytes < nbytes:
            raw = np.empty(nbytes + _ALIGN_BYTES, np.uint8)
            self._scratch = raw[-raw.ctypes.data % _ALIGN_BYTES :]
            if self._table is not None:
                self._table.set_scratch(self._scratch.ctypes.data)
        return self._scratch

    def _scratch_on(self, device: Device, like: ArrayView, nbytes: int) -> ArrayView:
        """The same on a GPU. What is outgrown is kept, as calls that were given it may still be on a stream; each is at
        least twice as large as the one before, so that all of them are at most twice the last."""
        known = self._device_scratch.setdefault(device, [])
        if not known or known[-1].nbytes < nbytes:
            known.append(scratch(like, max(nbytes, 2 * known[-1].nbytes if known else 0)))
        return known[-1]

    def start(self, request: Request) -> Work:
        """Starts a call in the background; `all_reduce_async` and its like come here."""
        resolved = self._resolve(request)
        self._pending = [(s, keep) for s, keep in self._pending if not s.has_ended()]
        started = self._staging.start(resolved.compiled, resolved.timeout_s, *resolved.buffers)
        if self._staging.busy:
            self._quick = Calls._quick  # which does not ask what was started
        self._pending.append((started, resolved.keep))
        return Work(started, resolved.result, f"{request.collective} on rank {self.rank}")

    def prepared(self, request: Request) -> Callable[[], Any]:
        """Resolves a call once, for calling it many times; `prepare.all_reduce` and its like come here."""
        r = self._resolve(request)
        if any(array.input is not None and array.input.copied for array in r.keep[0]):
            raise ValueError(
                "a prepared call reads x where it is, but this x is not contiguous (or a lazy conjugate or negative): "
                "prepare the call on a contiguous copy and fill that before each call"
            )
        return self._staging.prepare(r.compiled, r.timeout_s, r.result, r.keep, *r.buffers)

    def _limit(self, timeout_s: float | None) -> float:
        limit = self.timeout_s if timeout_s is None else timeout_s
        if not limit > 0:
            raise ValueError(f"timeout_s={limit} must be more than 0 seconds")
        return limit

    @contextmanager
    def trace(self) -> Generator[list[TracedCall]]:
        """Notes when the steps of the calls in a `with` block begin and end on this rank.

        `with comm.trace() as calls:` gives a list that is filled at the end of the block, with a TracedCall for each
        call that ended well. A call that is still running then, in the background, is waited for. Each communicator
        is traced by itself, and every rank for itself: nothing is communicated. Raises ValueError within such a block.
        """
        self._check_open()
        if self._tracing:
            raise ValueError("this communicator is being traced already: a trace has no trace inside")
        calls: list[TracedCall] = []
        self._tracing = True
        self._transport.start_trace()
        try:
            yield calls
        finally:
            self._tracing = False
            self._staging.settle()
            calls += self._transport.stop_trace()

    # ---------------------------------------------------------------- groups

    def split(self, *, color: int | None, key: int | None = None) -> Communicator | None:
        """A communicator of the ranks that give the same `color`, ordered by `key` (by rank when it is None).

        All ranks of this communicator call it. Returns None on a rank whose color is None.
        """
        mine = np.array([color is not None, color or 0, self.rank if key is None else key], np.int64)
        table = self.all_gather(mine[None, :])
        number = next(self._splits)
        if color is None:
            return None
        members = sorted(
            (r for r in range(self.size) if table[r, 0] and table[r, 1] == color), key=lambda r: (table[r, 2], r)
        )
        return self._child(f"{number}.{color}", members)

    def by_host(self) -> tuple[Communicator, Communicator]:
        """Two communicators: the ranks of this rank's host, and the ranks with this rank's place on every host.

        Where hosts have different numbers of ranks, the second leaves out the hosts that have no such place.
        All ranks call it.
        """
        number = next(self._splits)
        host = next(h for h in self.hosts if self.rank in h)
        place = host.index(self.rank)
        inside = self._child(f"{number}.host{host[0]}", host)
        across = self._child(f"{number}.place{place}", [h[place] for h in self.hosts if len(h) > place])
        return inside, across

    def subgroup(self, ranks: Sequence[int], *, name: str) -> Communicator:
        """A communicator of these `ranks`, in this order. Only they call it, and nothing is communicated.

        `name` is equal on all of them and was never given before. Raises ValueError when this rank is not among
        `ranks`, or one of them is no rank of this communicator or is there twice.
        """
        members = [int(rank) for rank in ranks]
        if len(set(members)) != len(members) or not all(0 <= rank < self.size for rank in members):
            raise ValueError(f"ranks={members} must be different ranks of this communicator, 0 to {self.size - 1}")
        if self.rank not in members:
            raise ValueError(f"rank {self.rank} is not among ranks={members}: only the members call subgroup()")
        return self._child(f"named.{name}", members)

    def _child(self, name: str, members: Sequence[int]) -> Communicator:
        self._check_open()
        transport = self._transport.split(name, members, list(members).index(self.rank))
        child = Communicator(
            transport, self._names, groups=self.groups and narrowed(self.groups, members), timeout_s=self.timeout_s,
            lanes=self._lanes, reproducible=self._reproducible, found=f"split of {self._found}",
        )  # fmt: skip
        child._chooser.follow(self._chooser, members)
        child._parent = self
        self._children.add(child)
        return child

    # ---------------------------------------------------------------- the machines

    def measure(
        self, budget_s: float = 3.0, *, groups: Groups | None = None, levels: Sequence[str] | None = None
    ) -> Measurement:
        """Measures latency and bandwidth between ranks by pair class, in about `budget_s` seconds. All ranks call it.

        Classes are by host, and by NUMA node where ranks are bound to different ones; or by `groups`, nested tuples of
        ranks, with the names of the `levels`, outermost first: (((0, 1), (2, 3)), ((4, 5), (6, 7))) with
        ("rack", "host"). Every rank gets the same result, which rank 0 keeps in the user's cache (cache.py).
        Raises ValueError for a budget that is not above 0, or groups that do not hold each rank once.
        """
        found = measure(self, budget_s=budget_s, groups=groups, levels=levels)
        self._go_by(cluster=found.cluster(), basis="measured")
        return found

    def meter(self) -> Meter:
        """What times single transfers between chosen pairs (probe.py), as `measure` does. All ranks call it."""
        self._check_open()
        return Meter(self, self._transport, self._names)

    @property
    def cluster(self) -> Cluster:
        """The machines, as "auto" sees them: measured, given, or assumed."""
        return self._chooser.cluster

    def tune(
        self,
        collectives: Sequence[str] = TUNED,
        *,
        sizes: Sequence[int] = TUNED_SIZES,
        budget_s: float = 30.0,
    ) -> Tuning:
        """Measures the algorithms that may be the fastest, at arrays of `sizes` bytes in all. All ranks call it.

        "auto" goes by the table from then on, which rank 0 also keeps in the user's cache (cache.py), for later jobs on
        the same hosts. Small sizes come first, and no more is begun after `budget_s` seconds. Returns what was
        measured, the same on every rank. A communicator made with reproducible=True measures what its calls choose
        among. Raises ValueError for a collective that is not among the default ones, a size below 1 or a budget that is
        not above 0.
        """
        found = tune(self, self._chooser, collectives, sizes, budget_s, self._reproducible)
        self._go_by(tuning=self._chooser.tuning.merged(found))
        key = cache.key_of(self)
        if self.rank == 0:
            cache.store(key, TUNING, json.loads(self._chooser.tuning.to_json()))
        return found

    def explain(self, collective: str, *, nbytes: int, reproducible: bool | None = None) -> Explanation:
        """What "auto" is for an array of `nbytes` in all, and why: print it. Nothing is communicated."""
        if reproducible is None:
            reproducible = self._reproducible
        return self._chooser.explain(collective, nbytes, reproducible)

    def use(
        self,
        *,
        cluster: Cluster | str | Path | None = None,
        rules: str | Path | Sequence[Rule | dict[str, Any]] | None = None,
    ) -> None:
        """Lets "auto" go by a cluster (or what `topology.load` reads), or rules (or a file of them). All ranks call it.

        What rank 0 gives counts, on every rank; the others may give the same or nothing. ValueError on rank 0, and on
        all ranks, for a file that is wrong or cannot be read, or a cluster of another size.
        """
        told: dict[str, Any] = {}
        if self.rank == 0:
            try:
                told = self._read(cluster, rules)
            except Exception as error:  # whatever it is: the others wait to hear of it
                told = {"error": str(error)}
        with self._aside() as aside:
            told = broadcast_json(aside, told)
        self._hear(told)

    def _read(self, cluster: Cluster | str | Path | None, rules: Any) -> dict[str, Any]:
        told: dict[str, Any] = {}
        if cluster is not None:
            found = cluster if isinstance(cluster, Cluster) else load(cluster)
            told["cluster"], told["basis"] = self._of_this_size(found).to_json(), "given"
        if rules is not None:
            told["rules"] = [[*rule] for rule in read_rules(rules)]
        return told

    def _of_this_size(self, cluster: Cluster) -> Cluster:
        if cluster.size != self.size:
            raise ValueError(f"{cluster.name} has {cluster.size} ranks, but this communicator has {self.size}")
        return cluster

    def recall(self) -> None:
        """Lets "auto" go by what earlier jobs on these hosts have measured and tuned, where it is kept and still holds.

        All ranks call it; `connect` does when there may be something. What rank 0 finds counts, on every rank.
        """
        with self._aside() as aside:
            key = cache.key_of(aside)
            told = broadcast_json(aside, self._remembered(key) if self.rank == 0 else None)
        self._hear(told)

    def _remembered(self, key: cache.Key) -> dict[str, Any]:
        told: dict[str, Any] = {}
        try:
            if measured := cache.load(key, MEASUREMENT):
                found = Measurement.from_json(json.dumps(measured)).cluster()
                told["cluster"], told["basis"] = self._of_this_size(found).to_json(), "measured earlier"
            if tuned := cache.load(key, TUNING):
                told["tuning"] = Tuning.from_json(json.dumps(tuned)).to_json()
        except ValueError as error:
            _log.warning("what is kept of these hosts is ignored, it is broken: %s", error)
            return {}
        return told

    @contextmanager
    def _aside(self) -> Generator[Communicator]:
        """A communicator of the same ranks for a moment, so that the user's calls keep their numbers."""
        aside = self._child(f"{next(self._splits)}.aside", range(self.size))
        try:
            yield aside
        finally:
            aside.close()

    def _hear(self, told: dict[str, Any]) -> None:
        """Goes by what rank 0 told every rank."""
        if "error" in told:
            raise ValueError(told["error"])
        if "cluster" in told:
            self._go_by(cluster=Cluster.from_json(told["cluster"]), basis=told["basis"])
        if "tuning" in told:
            self._go_by(tuning=Tuning.from_json(told["tuning"]))
        if "rules" in told:
            self._go_by(rules=[Rule(*rule) for rule in told["rules"]])

    def _go_by(self, **known: Any) -> None:
        self._chooser.use(**known)
        self._programs.clear()
        if self._table is not None:
            self._table.clear()  # its calls have the algorithm chosen before

    # ---------------------------------------------------------------- memory and life

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
        """A new zeroed array in memory that other ranks on this host can read in place.

        Collectives on such arrays skip the copy into shared memory. Views share it, as does torch.from_numpy(...).
        """
        dtype = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self._check_open()
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return np.frombuffer(self._transport.empty(nbytes), dtype).reshape(shape)

    def forked(self) -> None:
        """For a child process made by fork: this communicator is the parent's, and raises UnsupportedError here."""
        self._transport.forked()
        self._staging.forked()
        for child in list(self._children):
            child.forked()
        if self._on_fork is not None:
            self._on_fork()

    def close(self) -> None:
        """Says goodbye to the peers and gives everything back, sub-communicators too. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for child in list(self._children):
            child.close()
        self._let_go()
        if self._table is not None:
            self._table.clear()
        self._programs.clear()
        self._device_scratch.clear()
        self._pending.clear()

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "1 host" if len(self.hosts) == 1 else f"{len(self.hosts)} hosts"
        found = f", found by {self._found}" if self._found else ""
        state = ", closed" if self._closed else ""
        return f"<Communicator: rank {self.rank} of {self.size} on {where}, {self._transport.describe()}{found}{state}>"

    def _check_open(self) -> None:
        if self._closed:
            raise CommunicatorBroken("the communicator was closed before this call")

    def _check_taken(self, device: Device) -> None:
        if device.kind not in self._takes:
            raise not_taken(device, self._takes, self.transport)


def _let_go(transport: Transport, staging: Staging, on_close: Callable[[], None] | None) -> None:
    try:
        transport.close()
        staging.close()
    finally:
        if on_close is not None:
            on_close()


class _Resolved(NamedTuple):
    """A call that only needs to run."""

    compiled: Any
    timeout_s: float
    buffers: list[int]
    result: Any
    keep: Any  # what must live as long as the call
    single: Operands | None  # the operands of a call that is not about a list


class _StartedCalls(Calls):
    """Calls that return a Work."""

    def __init__(self, owner: Communicator, reproducible: bool) -> None:
        self._owner, self._reproducible = weakref.ref(owner), reproducible

    def _call(self, request: Request) -> Work:
        owner = self._owner()
        assert owner is not None
        return owner.start(request)


class _Prepared(Calls):
    """Calls that return a function: everything is resolved once, and each `function()` only runs."""

    def __init__(self, owner: Communicator, reproducible: bool) -> None:
        self._owner, self._reproducible = weakref.ref(owner), reproducible

    def _call(self, request: Request) -> Callable[[], Any]:
        owner = self._owner()
        assert owner is not None
        return owner.prepared(request)


def _layout(array: Operands) -> tuple[Any, ...]:
    """What of an array's operands a program depends on: all but where they are, unless they share memory."""
    x, out = array.input, array.result
    shared = x is not None and out is not None and overlap(x, out)
    apart = out.address - x.address if shared and x is not None and out is not None else None
    return array.blocks, array.model.dtype_name, x is None, out is None and array.make is None, apart
