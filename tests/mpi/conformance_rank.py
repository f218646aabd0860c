"""One rank of the job that test_mpi_conformance.py starts: `python -m tests.mpi.conformance_rank` under mpiexec."""

from __future__ import annotations

import sys

from tests.conformance.connecting import names
from transports import conformance, launchers, mpi
from transports.base import Transport

UNSEEN = {"a rank that dies": "mpiexec ends the whole job with it"}


def main() -> None:
    launch = launchers.detect()

    def connect(name: str) -> Transport:
        return mpi.connect(launch, names=names(), timeout_s=60)

    try:
        report = conformance.check_rank(connect, launch.rank, launch.size, not_checked=UNSEEN)
    except conformance.ConformanceError as error:
        sys.exit(str(error))
    missing = [name for name in report.of("not checked") if name not in UNSEEN]
    assert missing == ["an array of 2 GiB and more"], report
    if launch.rank == 0:
        print(report)


if __name__ == "__main__":
    main()
