"""The `ranks` fixture, as for the tests of the optimizer."""

from tests.zero.conftest import _rank_server, ranks

__all__ = ["_rank_server", "ranks"]
