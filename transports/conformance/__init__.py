"""A kit that proves a transport: every part of the contract of transports/base.py, checked on ranks that are connected.

`check(connect, size)` runs the ranks as threads of this process; `check_rank(connect, rank, size)` is called in every
rank of a job, whatever started it. Both return a Report, or raise ConformanceError: one line a check, which was passed,
failed (with the rank, and what was expected), or could not be made, because of what the caller says of the layer below.

    def connect(name, rank):
        return MyTransport(...)        # joins the other ranks under this name

    print(conformance.check(connect, 3))

The checks are in moving.py, combining.py, calling.py, living.py and failing.py; kit.py runs them.
"""

from transports.conformance import calling, combining, failing, living, moving
from transports.conformance.kit import CHECKS, ConformanceError, Report, Result, check, check_rank
from transports.conformance.member import HostMemory, Memory

__all__ = ["CHECKS", "ConformanceError", "HostMemory", "Memory", "Report", "Result", "check", "check_rank"]

for _part in (moving, combining, calling, living, failing):  # the order in which they are made
    CHECKS.update(_part.CHECKS)
