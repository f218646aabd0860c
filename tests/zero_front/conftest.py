"""The `ranks` and `threads` fixtures, as for the tests of the optimizer."""

from tests.zero.conftest import _rank_server, ranks, threads

__all__ = ["_rank_server", "ranks", "threads"]
