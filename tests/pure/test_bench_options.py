"""The command line says what is wrong with it, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli import main
from bench.options import Options, parse


def options(*argv: str) -> Options:
    return parse(argv, "bench")


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as left:
        parse(argv, "bench")
    assert left.value.code == 2
    return capsys.readouterr().err


def test_defaults_are_those_of_nccl_tests() -> None:
    chosen = options("all_reduce")
    assert (chosen.minimum_bytes, chosen.maximum_bytes, chosen.iterations, chosen.warmup) == (
        32 << 20,
        32 << 20,
        20,
        1,
    )
    assert (chosen.reductions, chosen.checks, chosen.root) == ((("float32", "sum"),), 1, -1)


def test_short_and_long_names_are_the_same() -> None:
    short = "-b 16 -e 1K -f 4 -i 2 -n 3 -w 0 -d half -o avg -r 1 -c 0 -J x.json"
    long = (
        "--minbytes 16 --maxbytes 1K --stepfactor 4 --stepbytes 2 --iters 3 --warmup_iters 0 "
        "--datatype float16 --op mean --root 1 --check 0 --output_file x.json"
    )
    assert options("reduce", *short.split()) == options("reduce", *long.split())
    assert options("reduce", *short.split()).sizes() == (16, 64, 256, 1024)
    assert options("reduce", *short.split()).reductions == (("float16", "mean"),)


def test_all_means_every_pair_that_has_a_meaning() -> None:
    pairs = options("all_reduce", "-d", "all", "-o", "all").reductions
    assert ("int8", "xor") in pairs
    assert ("float32", "xor") not in pairs
    assert options("broadcast", "-d", "all").reductions[0] == ("float16", "none")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["all_reduce", "-b", "1Q"], "'1Q' is not a size"),
        (["all_reduce", "-b", "2K", "-e", "1K"], "-e 1K is below -b 2K"),
        (["all_reduce", "-b", "1K", "-e", "2K", "-i", "0"], "-i 0 never reaches -e"),
        (["all_reduce", "--report", "x.pdf"], "must end with one of .html, .md, .csv"),
        (["all_reduce", "--trace", "/no/such/x.json"], "there is no folder /no/such"),
        (["all_reduce", "-n", "0"], "'0' is not a whole number of at least 1"),
        (["all_reduce", "-d", "float8"], "--datatype 'float8' is not known"),
        (["all_reduce", "-o", "average"], "--op 'average' is not known"),
        (["all_reduce", "-d", "complex64", "-o", "max"], "--op max has no meaning for complex64"),
        (["broadcast", "--ranks", "4", "-r", "4"], "-r 4 is not a rank: there are 4, from 0"),
        (
            ["all_reduce", "--compare", "nccl"],
            "--compare 'nccl' is not known; there are gloo, mpich, openmpi",
        ),
        (["all_reduce", "--compare", "gloo", "-d", "all"], "one data type, one op and one root"),
        (["reduce", "--reproducible", "-r", "-1"], "--reproducible measures one data type, one op and one root"),
        (["all_gather", "--reproducible"], "--reproducible is about collectives that reduce"),
        (["all_reduce", "--reproducible", "--algorithm", "all"], "--reproducible takes auto, or the names"),
        (["all_reduce", "--compare", "mpich", "-d", "bfloat16"], "mpich has no data type bfloat16"),
        (["all_reduce", "--compare", "gloo", "-o", "mean"], "gloo has no op mean"),
        (["all_reduce", "--algorithm", "rink"], "--algorithm 'rink' is not known; there are auto, "),
        (["all_reduce", "--timeout", "0"], "--timeout takes seconds above 0"),
        (["allreduce"], "invalid choice"),
    ],
)
def test_a_mistake_is_named(capsys: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    assert says in complaint(capsys, *argv)


@pytest.mark.parametrize("name", ["gloo", "mpich", "openmpi"])
def test_a_contender_that_is_not_installed_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    missing = str(tmp_path / "bin" / "python")
    said = complaint(capsys, "all_reduce", "--compare", name, f"--{name}-python", missing)
    assert f"{name} is not installed" in said
    assert missing in said
    assert "make setup" in said


def test_the_command_and_the_module_are_the_same_program(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    for argv in (["bench", "all_reduce", "-b", "x"], ["all_reduce", "-b", "x"]):
        with pytest.raises(SystemExit):
            main(argv)
        said.append(capsys.readouterr().err.split("error:")[1])
    assert said[0] == said[1]
