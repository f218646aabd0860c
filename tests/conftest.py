"""What all tests have in common: a cache of their own, so that nothing measured in one decides in another."""

from __future__ import annotations

import itertools
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_numbers = itertools.count()


def pytest_configure() -> None:
    """Ctrl-C counts, also where a shell began the tests in the background and so with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def caches() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="treering-tests-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def own_cache(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches / str(next(_numbers))))
