"""Who started this process, which rank it is, and where it meets the others: read from what launchers leave
behind.

In this order; the first that is there wins:

    arguments           connect(store=, rank=, size=)
    TREERING_STORE      file:///directory, with TREERING_RANK and TREERING_SIZE (or the rank a launcher below
                        gives)
    torchrun            RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT      meets in its TCPStore
    Open MPI            OMPI_COMM_WORLD_RANK, _SIZE                     meets through mpi4py
    MPICH and kin       PMI_RANK, PMI_SIZE                              meets through mpi4py
    Slurm's srun        SLURM_STEP_ID, SLURM_PROCID, SLURM_NTASKS       meets in a TCPStore on the first host
    nothing             one process

(SLURM_JOB_ID alone is no sign of srun: it is also set in the shell of salloc and in a batch script.)
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from transports.config import check_secret, read_settings
from transports.endpoint import Endpoint
from transports.launcher_stores import MpiStore, TorchStore, torch_tcp_store
from transports.network import LOOPBACK, choose_addresses
from transports.stores import FileStore, Store

__all__ = ["Kind", "Launch", "detect", "join"]

Kind = Literal["torchrun", "openmpi", "mpich", "slurm", "file", "given", "single"]

# How often each (job, directory, rank) has joined in this process. A second connect() meets under another name than the
# first, on every rank; nothing but the process itself can remember that.
_joined: Counter[tuple[str, str, int]] = Counter()


@dataclass(frozen=True)
class Launch:
    """How this process was started.

    kind            the launcher; "file" for a file store, "given" for a store object
    rank, size      of this process in the job
    local_rank, local_size   the same among the processes of this host, None where the launcher does not say
    job             the job's name, equal on all ranks
    found           what it was concluded from, for people
    head            the job's first host, where the launcher names one
    directory       that a file store is in
    """

    kind: Kind
    rank: int
    size: int
    job: str
    found: str
    local_rank: int | None = None
    local_size: int | None = None
    head: str | None = None
    open_store: Callable[[str], Store | None] = field(default=lambda _: None, repr=False)
    """A new store for one meeting under the name that is given."""
    directory: str = ""


def detect(
    *,
    store: Store | str | os.PathLike[str] | None = None,
    rank: int | None = None,
    size: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Launch:
    """How this process was started: from the arguments where they are given, else from `environ`
    (os.environ).

    `store` is a directory, a file:// URL or an object with `exchange` (stores.py); it needs `rank` and
    `size`. Raises ValueError, before anything is opened, naming the variable or argument that is wrong and
    its value.
    """
    env = _Environment(os.environ if environ is None else environ)
    if (rank is None) != (size is None):
        raise ValueError(f"rank={rank} and size={size}: give both or none")
    name, where = ("store", store) if store is not None else ("TREERING_STORE", env.get("TREERING_STORE"))
    if rank is not None and size is not None:
        _check_rank(rank, size, "rank", "size")
        around = Launch("given", rank, size, "given", f"rank={rank}, size={size}")
    elif isinstance(where, (str, os.PathLike)) and "TREERING_RANK" in env:
        rank, size = env.rank("TREERING_RANK", "TREERING_SIZE")
        around = Launch("file", rank, size, "file", f"TREERING_RANK={rank}, TREERING_SIZE={size}")
    else:
        around = _launcher(env)
    if where is None:
        if around is not None and around.kind == "given" and around.size > 1:
            raise ValueError(f"rank={rank}, size={size} need store= as well: a directory that all ranks see")
        return around or Launch("single", 0, 1, "single", "no launcher was found", 0, 1)
    if around is None:
        needs = "TREERING_RANK and TREERING_SIZE" if name == "TREERING_STORE" else "rank= and size="
        raise ValueError(f"{name}={where} needs {needs} as well")
    found = f"{name}={where}, {around.found}"
    if not isinstance(where, (str, os.PathLike)):
        around = replace(around, kind="given", job="given", found=found)
        return replace(around, open_store=_always(where))
    path = _directory(os.fspath(where), name)
    # A launcher's own name for the job keeps one job's files from the next one's.
    job = around.job if around.kind in ("torchrun", "slurm") else "file"
    around = replace(around, kind="file", job=job, found=found)
    return replace(around, directory=os.path.abspath(path), open_store=partial(FileStore, path))


def _always(store: Store) -> Callable[[str], Store]:
    return lambda _: store


def join(
    launch: Launch,
    *,
    secret: str | bytes | None = None,
    transport: str = "auto",
    address: str | Sequence[str] | None = None,
    timeout_s: float = 60.0,
    knows: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Endpoint:
    """Meets the other ranks; returns when all are there. The arguments win over the environment (config.py).

    Under MPI, where no secret is set, rank 0 makes one and MPI carries it. Raises what Endpoint raises, and
    ValueError for a secret or address that cannot be used.
    """
    settings = read_settings(environ)
    own = check_secret(secret) if secret is not None else settings.secret
    key = (launch.job, launch.directory, launch.rank)
    number = _joined[key]
    store = launch.open_store(f"{launch.job}/{number}") if launch.size > 1 or launch.kind == "given" else None
    # A torch store remembers a meeting that failed; in a file store the others may still be on their way to
    # it.
    _joined[key] += 1
    try:
        if isinstance(store, MpiStore):
            own = store.share_secret(launch.rank, launch.size, own, timeout_s)
        return Endpoint(
            launch.rank,
            launch.size,
            store,
            job=f"{launch.job}/{number}",
            secret=own,
            transport=transport,
            address=_addresses(launch, own, address or settings.address),
            join_timeout_s=timeout_s,
            knows=knows,
        )
    except BaseException:
        if isinstance(store, FileStore):
            _joined[key] = number
        raise


def _addresses(launch: Launch, secret: bytes | None, wanted: str | Sequence[str] | None) -> tuple[str, ...]:
    if wanted is None and (secret is None or launch.local_size == launch.size):
        return (LOOPBACK,)
    return choose_addresses(wanted, launch.head)


def _launcher(env: _Environment) -> Launch | None:
    for look in (_torchrun, _open_mpi, _mpich, _slurm):
        launch = look(env)
        if launch is not None:
            return launch
    return None


def _torchrun(env: _Environment) -> Launch | None:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not ("TORCHELASTIC_RUN_ID" in env or all(name in env for name in names)):
        return None
    rank, size = env.rank(*names[:2])
    head, port = env["MASTER_ADDR"], env.number("MASTER_PORT")
    if not 0 < port < 1 << 16:
        raise ValueError(f"MASTER_PORT={port} is not a port")
    run, restart = env.get("TORCHELASTIC_RUN_ID", "none"), env.get("TORCHELASTIC_RESTART_COUNT", "0")
    # The agent hosts the store, unless it says otherwise; then the first rank does.
    agent = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"

    def open_store(name: str) -> Store:
        opener = torch_tcp_store(head, port, serve=not agent and rank == 0)
        return TorchStore(opener, f"treering/{name}", None if agent else 0)

    return Launch(
        "torchrun",
        rank,
        size,
        f"torchrun:{run}:{restart}",
        f"torchrun (RANK={rank}, WORLD_SIZE={size}, MASTER_ADDR={head}, MASTER_PORT={port})",
        env.optional("LOCAL_RANK"),
        env.optional("LOCAL_WORLD_SIZE"),
        head,
        open_store,
    )


def _open_mpi(env: _Environment) -> Launch | None:
    return _mpi(env, "openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
                "OMPI_COMM_WORLD_LOCAL_SIZE")  # fmt: skip


def _mpich(env: _Environment) -> Launch | None:
    return _mpi(env, "mpich", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def _mpi(
    env: _Environment, kind: Kind, rank_name: str, size_name: str, local_rank: str, local_size: str
) -> Launch | None:
    if rank_name not in env:
        return None
    rank, size = env.rank(rank_name, size_name)
    found = f"{'Open MPI' if kind == 'openmpi' else 'MPICH'} ({rank_name}={rank}, {size_name}={size})"
    return Launch(
        kind,
        rank,
        size,
        "mpi",
        found,
        env.optional(local_rank),
        env.optional(local_size),
        None,
        lambda _: MpiStore(),
    )


def _slurm(env: _Environment) -> Launch | None:
    if "SLURM_STEP_ID" not in env or "SLURM_PROCID" not in env:
        return None
    rank, size = env.rank("SLURM_PROCID", "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS")
    job, step = env.number("SLURM_JOB_ID"), env.number("SLURM_STEP_ID")
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise ValueError("srun did not set SLURM_STEP_NODELIST: set TREERING_STORE=file:///a/shared/directory")
    head = _first_host(nodes)
    port = 61_000 + (job * 31 + step) % 4_000  # above the ports that Linux hands out by itself
    single = env.get("SLURM_STEP_NUM_NODES") == "1"

    def open_store(name: str) -> Store:
        return TorchStore(torch_tcp_store(head, port, serve=rank == 0), f"treering/{name}", 0)

    return Launch(
        "slurm",
        rank,
        size,
        f"slurm:{job}.{step}:{env.get('SLURM_RESTART_COUNT', '0')}",
        f"Slurm (SLURM_JOB_ID={job}, SLURM_STEP_ID={step}, SLURM_PROCID={rank}, {size} tasks)",
        env.optional("SLURM_LOCALID"),
        size if single else None,
        head,
        open_store,
    )


def _first_host(nodelist: str) -> str:
    """The first of Slurm's short form: "gpu[03-05,9],login" gives "gpu03"."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodelist)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST={nodelist!r} is not a list of hosts")
    return "".join(part or "" for part in match.groups())


def _directory(where: str, name: str) -> Path:
    parts = urlsplit(where)
    if parts.scheme == "" and where.startswith(("/", ".")):
        return Path(where)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ValueError(f"{name}={where!r} is not a directory: write file:///a/directory, with three slashes")
    return Path(unquote(parts.path))


def _check_rank(rank: int, size: int, rank_name: str, size_name: str) -> None:
    if size < 1:
        raise ValueError(f"{size_name}={size}: a job has at least one rank")
    if not 0 <= rank < size:
        raise ValueError(f"{rank_name}={rank} with {size_name}={size}: ranks go from 0 to {size - 1}")


class _Environment(dict[str, str]):
    """Variables with errors that name them."""

    def __missing__(self, name: str) -> str:
        raise ValueError(f"{name} is not set, though the other variables of its launcher are")

    def number(self, name: str) -> int:
        try:
            return int(self[name])
        except ValueError as error:
            if name not in self:
                raise
            raise ValueError(f"{name}={self[name]!r} is not a number") from error

    def optional(self, name: str) -> int | None:
        return self.number(name) if name in self else None

    def rank(self, rank_name: str, size_name: str) -> tuple[int, int]:
        rank, size = self.number(rank_name), self.number(size_name)
        _check_rank(rank, size, rank_name, size_name)
        return rank, size
