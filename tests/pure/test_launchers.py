"""Who started the process is read from the environment, in a fixed order, and nonsense in it is named."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from transports.config import MIN_SECRET_BYTES, check_secret, read_settings
from transports.errors import RendezvousError
from transports.launcher_stores import MpiStore, TorchStore
from transports.launchers import detect, join
from transports.network import choose_address, is_loopback
from transports.stores import FileStore

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "head.example",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "run7",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "6",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "3",
    "PMIX_RANK": "2",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[03-05,9],login1",
}
FILE = {"TREERING_STORE": "file:///shared/job%201", "TREERING_RANK": "3", "TREERING_SIZE": "4"}


def test_nothing_is_one_process() -> None:
    launch = detect(environ={})
    assert (launch.kind, launch.rank, launch.size, launch.local_rank, launch.local_size) == (
        "single",
        0,
        1,
        0,
        1,
    )
    with join(launch, environ={}) as endpoint:
        assert endpoint.hosts == ((0,),)


def test_torchrun() -> None:
    launch = detect(environ=TORCHRUN)
    assert (launch.kind, launch.rank, launch.size, launch.local_rank, launch.local_size) == (
        "torchrun",
        5,
        8,
        1,
        4,
    )
    assert launch.head == "head.example"
    assert "run7" in launch.job
    assert isinstance(launch.open_store("x"), TorchStore)
    restarted = detect(environ={**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "3"})
    assert restarted.job != launch.job


def test_a_torchrun_without_elastic_variables_is_one_too() -> None:
    environ = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    launch = detect(environ=environ)
    assert (launch.kind, launch.rank, launch.size, launch.local_rank) == ("torchrun", 5, 8, None)


def test_a_stray_rank_variable_is_no_torchrun() -> None:
    assert detect(environ={"RANK": "3"}).kind == "single"


def test_open_mpi() -> None:
    launch = detect(environ=OPEN_MPI)
    assert (launch.kind, launch.rank, launch.size, launch.local_rank, launch.local_size) == (
        "openmpi",
        2,
        6,
        0,
        3,
    )
    assert isinstance(launch.open_store("x"), MpiStore)


def test_mpich() -> None:
    launch = detect(environ=MPICH)
    assert (launch.kind, launch.rank, launch.size, launch.local_rank, launch.local_size) == (
        "mpich",
        1,
        2,
        1,
        2,
    )
    assert isinstance(launch.open_store("x"), MpiStore)


def test_slurm() -> None:
    launch = detect(environ=SLURM)
    assert (launch.kind, launch.rank, launch.size, launch.local_rank) == ("slurm", 3, 4, 1)
    assert launch.head == "gpu03"
    assert launch.job != detect(environ={**SLURM, "SLURM_STEP_ID": "1"}).job
    assert isinstance(launch.open_store("x"), TorchStore)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("n[7]", "n7"), ("n[007-9],m", "n007"), ("n[1,3]-ib,x", "n1-ib")],
)
def test_the_first_host_of_a_slurm_list(nodes: str, first: str) -> None:
    assert detect(environ={**SLURM, "SLURM_STEP_NODELIST": nodes}).head == first


def test_a_slurm_allocation_without_srun_is_one_process() -> None:
    environ = {name: value for name, value in SLURM.items() if name not in ("SLURM_STEP_ID", "SLURM_PROCID")}
    assert detect(environ=environ).kind == "single"
    assert detect(environ={**environ, "SLURM_PROCID": "0"}).kind == "single"


def test_a_file_store() -> None:
    launch = detect(environ=FILE)
    assert (launch.kind, launch.rank, launch.size) == ("file", 3, 4)
    store = launch.open_store("x")
    assert isinstance(store, FileStore)
    assert store.path == Path("/shared/job 1")


def test_a_file_store_takes_the_rank_from_a_launcher() -> None:
    launch = detect(environ={"TREERING_STORE": "/shared", **SLURM})
    assert (launch.kind, launch.rank, launch.size, launch.local_rank) == ("file", 3, 4, 1)
    assert launch.job == detect(environ=SLURM).job


def test_the_order_of_precedence(tmp_path: Path) -> None:
    everything = {**SLURM, **MPICH, **OPEN_MPI, **TORCHRUN, **FILE}
    assert detect(store=tmp_path, rank=0, size=2, environ=everything).rank == 0
    for variables, kind in (
        (FILE, "file"),
        (TORCHRUN, "torchrun"),
        (OPEN_MPI, "openmpi"),
        (MPICH, "mpich"),
        (SLURM, "slurm"),
    ):
        assert detect(environ=everything).kind == kind
        everything = {name: value for name, value in everything.items() if name not in variables}
    assert detect(environ=everything).kind == "single"


def test_arguments_do_not_look_at_the_environment(tmp_path: Path) -> None:
    launch = detect(store=str(tmp_path), rank=1, size=2, environ={"RANK": "x", "WORLD_SIZE": "y", **OPEN_MPI})
    assert (launch.kind, launch.rank, launch.size) == ("file", 1, 2)
    own = FileStore(tmp_path)
    launch = detect(store=own, rank=1, size=2, environ={})
    assert launch.kind == "given"
    assert launch.open_store("x") is own


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({**TORCHRUN, "RANK": "eight"}, ["RANK='eight'", "not a number"]),
        ({**TORCHRUN, "RANK": "8"}, ["RANK=8", "WORLD_SIZE=8", "0 to 7"]),
        ({**TORCHRUN, "RANK": "-1"}, ["RANK=-1"]),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, ["WORLD_SIZE=0"]),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, ["MASTER_PORT=70000"]),
        ({"TORCHELASTIC_RUN_ID": "x"}, ["RANK is not set"]),
        ({"OMPI_COMM_WORLD_RANK": "0"}, ["OMPI_COMM_WORLD_SIZE is not set"]),
        ({**MPICH, "PMI_SIZE": ""}, ["PMI_SIZE=''", "not a number"]),
        ({**SLURM, "SLURM_JOB_ID": "a"}, ["SLURM_JOB_ID='a'"]),
        ({**SLURM, "SLURM_STEP_NODELIST": ""}, ["SLURM_STEP_NODELIST", "TREERING_STORE"]),
        ({**SLURM, "SLURM_STEP_NODELIST": "["}, ["SLURM_STEP_NODELIST='['"]),
        ({"TREERING_STORE": "/d"}, ["TREERING_RANK", "TREERING_SIZE"]),
        ({**FILE, "TREERING_RANK": "4"}, ["TREERING_RANK=4", "TREERING_SIZE=4"]),
        ({**FILE, "TREERING_STORE": "redis://host"}, ["TREERING_STORE='redis://host'", "file:///"]),
        ({**FILE, "TREERING_STORE": "file://host/dir"}, ["three slashes"]),
        ({**FILE, "TREERING_STORE": "dir"}, ["TREERING_STORE='dir'"]),
    ],
)
def test_nonsense_is_named(environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        detect(environ=environ)
    for word in words:
        assert word in str(caught.value)


def test_arguments_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both or none"):
        detect(rank=1, environ={})
    with pytest.raises(ValueError, match="rank=2 with size=2"):
        detect(store=tmp_path, rank=2, size=2, environ={})
    with pytest.raises(ValueError, match="need store="):
        detect(rank=0, size=2, environ={})
    with pytest.raises(ValueError, match="needs rank= and size="):
        detect(store=tmp_path, environ={})
    assert detect(rank=0, size=1, environ={}).size == 1


def test_without_mpi4py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mpi4py.MPI", None)
    with pytest.raises(RendezvousError, match="pip install mpi4py"):
        join(detect(environ=MPICH), environ={})


def test_without_torch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.distributed", None)
    with pytest.raises(RendezvousError, match=r"treering\[torch\]"):
        join(detect(environ=TORCHRUN), environ={}, timeout_s=1.0)


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    assert read_settings({}).secret is None
    assert read_settings({"TREERING_SECRET": " " + "s" * 16 + "\n"}).secret == b"s" * 16
    assert read_settings({"TREERING_ADDRESS": "eth1"}).address == "eth1"
    file = tmp_path / "secret"
    file.write_text("f" * 64 + "\n")
    file.chmod(0o600)
    settings = read_settings({"TREERING_SECRET_FILE": str(file)})
    assert settings.secret == b"f" * 64
    assert "ffff" not in repr(settings)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o606])
def test_a_secret_file_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "secret"
    file.write_text("f" * 64)
    file.chmod(mode)
    with pytest.raises(ValueError, match="chmod 600"):
        read_settings({"TREERING_SECRET_FILE": str(file)})


def test_a_secret_that_cannot_be_used_is_refused_without_being_shown(tmp_path: Path) -> None:
    short = "s3cret"
    with pytest.raises(ValueError, match=f"at least {MIN_SECRET_BYTES}") as caught:
        check_secret(short)
    assert short not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read"):
        read_settings({"TREERING_SECRET_FILE": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="both set"):
        read_settings({"TREERING_SECRET": "s" * 16, "TREERING_SECRET_FILE": "/x"})


def test_an_address_is_one_address() -> None:
    assert choose_address("127.0.0.1", None) == "127.0.0.1"
    assert choose_address("10.1.2.3", None) == "10.1.2.3"
    assert choose_address("::1", None) == "::1"
    for everything in ("0.0.0.0", "::", "224.0.0.1"):
        with pytest.raises(ValueError, match="one interface"):
            choose_address(everything, None)
    with pytest.raises(ValueError, match="nosuchif0"):
        choose_address("nosuchif0", None)


def test_an_interface_gives_its_address() -> None:
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is None:
        pytest.skip("no loopback interface")
    assert is_loopback(choose_address(loopback, None))


@pytest.mark.parametrize("head", [None, "localhost", "no.such.host.invalid"])
def test_the_chosen_address_belongs_to_this_host(head: str | None) -> None:
    address = choose_address(None, head)
    with socket.socket() as sock:
        sock.bind((address, 0))
