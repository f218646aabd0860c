"""One rank of the job that test_mpi_conformance.py starts: `python -m tests.mpi.conformance_rank [big]`.

With "big" it makes the check that takes gigabytes, and without it all others.
"""

from __future__ import annotations

import sys

from tests.conformance.connecting import names
from transports import conformance, launchers, mpi
from transports.base import Transport

LARGE = "an array of 2 GiB and more"
UNSEEN = {"a rank that dies": "mpiexec ends the whole job with it"}


def main() -> None:
    launch = launchers.detect()

    def connect(name: str) -> Transport:
        return mpi.connect(launch, names=names(), timeout_s=60)

    big = sys.argv[1:] == ["big"]
    checks = [LARGE] if big else [name for name in conformance.CHECKS if name != LARGE]
    try:
        report = conformance.check_rank(connect, launch.rank, launch.size, checks=checks, not_checked=UNSEEN, big=big)
    except conformance.ConformanceError as error:
        sys.exit(str(error))
    assert report.of("not checked") == ([] if big else [*UNSEEN]), report
    if launch.rank == 0:
        print(report)


if __name__ == "__main__":
    main()
