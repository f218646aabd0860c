"""The floors of the house: imports go down only, cost nothing that was not asked for, and read no environment."""

from __future__ import annotations

import ast
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import collectives as cc

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("bench", "collectives", "transports", "topology")  # each may import itself and what follows
ENVIRONMENT = {"transports/config.py", "transports/launchers.py", "transports/launcher_stores.py"}
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, anywhere in it, by its full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            yield ".".join((*package, *filter(None, [node.module]))), node.lineno


def test_the_files_are_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    floor = FLOORS.index(path.relative_to(ROOT).parts[0])
    for module, line in imports(path):
        above = module.partition(".")[0]
        assert above not in FLOORS[:floor], f"{path}:{line} imports {module}, which is a floor above"
        assert above != "tests", f"{path}:{line} imports {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "collectives/algorithms").glob("*.py")), ids=lambda path: path.name)
def test_algorithms_are_pure(path: Path) -> None:
    """They know plans and each other, and no arrays, transports or input and output."""
    allowed = {"__future__", "collections", "dataclasses", "functools", "itertools", "math", "re", "typing"}
    for module, line in imports(path):
        plans = ("collectives.plan", "collectives.compose", "collectives.algorithms")
        pure = module.partition(".")[0] in allowed or module.startswith(plans)
        assert pure, f"{path}:{line} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_environment_is_read_in_its_places_only(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    if name in ENVIRONMENT or name.startswith("bench/"):  # bench starts processes, and sets their environment
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in ("environ", "environb", "getenv", "putenv"), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled(path: Path) -> None:
    for module, line in imports(path):
        assert module.partition(".")[0] not in ("pickle", "marshal", "shelve", "dill"), f"{path}:{line}"


def python(code: str, cwd: Path = ROOT) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_importing_collectives_imports_numpy_and_nothing_heavy() -> None:
    loaded = python("import collectives, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))").split()
    assert "numpy" in loaded
    assert not {"torch", "mpi4py", "cupy", "scipy", "pandas", "pytest", "bench", "multiprocessing"} & set(loaded)


def test_everything_public_is_in_all_and_everything_in_all_is_there() -> None:
    assert cc.__all__ == sorted(cc.__all__)
    public = {name for name in vars(cc) if not name.startswith("_")}
    modules = {name for name in public if isinstance(getattr(cc, name), types.ModuleType)}
    public -= modules - set(cc.__all__)
    assert public - {"annotations", "Path"} == set(cc.__all__)


@pytest.mark.parametrize("name", cc.__all__)
def test_everything_public_says_what_it_is(name: str) -> None:
    assert (getattr(cc, name).__doc__ or "").strip(), f"{name} has no docstring"


def test_the_calls_of_a_communicator_say_what_they_are() -> None:
    for name in vars(cc.Communicator).keys() | vars(cc.Communicator.__mro__[1]).keys():
        if not name.startswith("_"):
            assert (getattr(cc.Communicator, name).__doc__ or "").strip(), f"{name} has no docstring"


def test_a_package_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "transports").mkdir()
    (tmp_path / "transports" / "__init__.py").write_text("")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in type(f).__module__]\n"
        "try: import collectives\n"
        "except ImportError as error: print(error)"
    )
    said = python(code, tmp_path)
    assert str(tmp_path / "transports") in said
    assert "hides the package 'transports' of treering" in said
