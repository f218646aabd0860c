"""torch's own suite (torch.testing._internal.distributed.distributed_test, in torch's wheel) for one backend.

    python -m tests.torch_suite.suite --backend treering --world-size 2 --out results.json [--only PATTERN]

Many tests ask for a backend by the literal name "gloo", so treering stands in for it: in this process and its children
the constructor that torch calls for "gloo" makes treering's process group, and nothing of Gloo is left to fall back on.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import tempfile
import time
import unittest
from types import SimpleNamespace
from typing import Any


def stand_in_for_gloo() -> None:
    """Lets torch make treering's process group wherever it would make Gloo's."""
    import torch.distributed.distributed_c10d as c10d

    from collectives.torch_backend import join
    from collectives.torch_backend.process_group import ProcessGroup

    class Named(ProcessGroup):
        options: Any
        _events_of = "gloo"

    class Maker(type):
        def __call__(cls, store: Any, rank: int, size: int, timeout: Any = None) -> Any:
            caller = sys._getframe(1).f_locals  # _new_process_group_helper, which tells Gloo these only afterwards
            given = SimpleNamespace(
                group_rank=rank, group_size=size, store=store, timeout=timeout, group_id=caller.get("group_name", "?"),
                global_ranks_in_group=caller.get("global_ranks_in_group", []),
            )  # fmt: skip
            made = join.create(given, None)
            made.__class__ = Named
            made.options = SimpleNamespace()
            return made

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, ProcessGroup)

    class StandIn(metaclass=Maker):
        pass

    c10d.ProcessGroupGloo = StandIn


def tests_of(world_size: int) -> unittest.TestSuite:
    """The suite's tests, in processes that are forked rather than started anew: torch is imported once."""
    import torch.multiprocessing as mp
    from torch.testing._internal.distributed import distributed_test

    class TestTreering(distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase):
        def setUp(self) -> None:
            super().setUp()
            self._start_processes(mp.get_context("fork").Process)

    return unittest.defaultTestLoader.loadTestsFromTestCase(TestTreering)


# Here torch itself, in C++, wants the object behind the name "gloo" to be Gloo's, so treering uses its own.
OWN_NAME = {"test_ddp_logging_data_cpu"}


class Results(unittest.TestResult):
    """Status, words and seconds of each test."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, dict[str, Any]] = {}
        self._began = 0.0

    def startTest(self, test: Any) -> None:  # noqa: N802
        super().startTest(test)
        self._began = time.monotonic()

    def _note(self, test: Any, status: str, words: str = "") -> None:
        name = test.id().rpartition(".")[2]
        self.of[name] = {"status": status, "words": words, "seconds": round(time.monotonic() - self._began, 2)}
        if status == "failed":
            print(f"{name} failed:\n{words}", file=sys.stderr, flush=True)

    def addSuccess(self, test: Any) -> None:  # noqa: N802
        self._note(test, "passed")

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        self._note(test, "skipped", reason)

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        self._note(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    addError = addFailure  # noqa: N815


def flat(suite: Any) -> list[Any]:
    return [t for item in suite for t in (flat(item) if isinstance(item, unittest.TestSuite) else [item])]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--backend", choices=["gloo", "treering"], required=True)
    options.add_argument("--world-size", type=int, default=2)
    options.add_argument("--out", required=True)
    options.add_argument("--only", action="append", help="names of tests, with wildcards")
    options.add_argument("--part", default="0/1", help="I/N: every N-th test from the I-th on")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="treering-suite-") as directory:
        os.environ.update(
            BACKEND="gloo", WORLD_SIZE=str(given.world_size), TEMP_DIR=directory, OMP_NUM_THREADS="1",
            INIT_METHOD="file://", GLOO_SOCKET_IFNAME="lo", DISTRIBUTED_TESTS_DEFAULT_TIMEOUT="60",
        )  # fmt: skip
        import torch

        torch.set_num_threads(1)
        from torch.testing._internal.distributed import distributed_test

        if given.backend == "treering":
            import collectives.torch_backend  # noqa: F401 - registers the backend

            stand_in_for_gloo()
        tests = flat(tests_of(given.world_size))
        first, step = map(int, given.part.split("/"))
        results = Results()
        for test in tests[first::step]:
            if not given.only or any(fnmatch.fnmatch(test.id().rpartition(".")[2], p) for p in given.only):
                own = given.backend == "treering" and test.id().rpartition(".")[2] in OWN_NAME
                distributed_test.BACKEND = "treering" if own else "gloo"
                test.run(results)
                with open(given.out, "w") as file:
                    json.dump(results.of, file, indent=1)
    counts = {s: sum(r["status"] == s for r in results.of.values()) for s in ("passed", "skipped", "failed")}
    print(given.backend, given.world_size, counts)


if __name__ == "__main__":
    main()
