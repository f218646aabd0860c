"""What all tests have in common: a cache of their own, so that nothing measured on this machine decides in a test."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

_cache = ""


def pytest_configure(config: pytest.Config) -> None:
    global _cache
    _cache = tempfile.mkdtemp(prefix="treering-tests-")
    os.environ["XDG_CACHE_HOME"] = _cache


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_cache, ignore_errors=True)
