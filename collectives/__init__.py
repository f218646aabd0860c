"""treering: collective communication whose algorithms are data: proved, drawn, and run by any transport.

    import collectives as cc

    with cc.connect() as comm:
        total = comm.all_reduce(x)

Read plan.py first, then any file of algorithms/. communicator.py is what users hold; lower.py turns plans into programs
for transports/. May import `transports` and `topology`; never `bench`. Everything public is here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

for _sibling in ("transports", "topology"):  # the names are generic: another package may be in the way
    _spec = importlib.util.find_spec(_sibling)
    _found = Path(_spec.origin).resolve().parent if _spec is not None and _spec.origin else None
    _wanted = Path(__file__).resolve().parent.parent / _sibling
    if _found is None:
        raise ImportError(f"the package {_sibling!r} of treering is missing; reinstall treering")
    if _found != _wanted:
        raise ImportError(f"{_found} hides the package {_sibling!r} of treering, which is {_wanted}; rename or move it")

from collectives import algorithms as _builtin  # noqa: E402  (registers them)
from collectives.choose import Candidate, Explanation  # noqa: E402
from collectives.communicator import Communicator  # noqa: E402
from collectives.connect import connect, connect_threads  # noqa: E402
from collectives.measurement import Measurement  # noqa: E402
from collectives.plan import (  # noqa: E402
    Copy,
    Plan,
    Recv,
    RecvReduce,
    Reduce,
    Send,
    algorithm,
    algorithms,
    plan,
    unregister,
)
from collectives.price import Price, price  # noqa: E402
from collectives.rules import Rule  # noqa: E402
from collectives.simulate import Simulation, simulate  # noqa: E402
from collectives.tuning import Tuning  # noqa: E402
from collectives.verify import PlanError, Proof, verify  # noqa: E402
from collectives.work import Work  # noqa: E402
from transports.errors import (  # noqa: E402
    CollectiveError,
    CommunicatorBroken,
    DeadlineExceeded,
    MismatchError,
    PeerLostError,
    RendezvousError,
    TransportError,
    UnsupportedError,
    WireError,
)

del _builtin

__all__ = [
    "Candidate",
    "CollectiveError",
    "Communicator",
    "CommunicatorBroken",
    "Copy",
    "DeadlineExceeded",
    "Explanation",
    "Measurement",
    "MismatchError",
    "PeerLostError",
    "Plan",
    "PlanError",
    "Price",
    "Proof",
    "Recv",
    "RecvReduce",
    "Reduce",
    "RendezvousError",
    "Rule",
    "Send",
    "Simulation",
    "TransportError",
    "Tuning",
    "UnsupportedError",
    "WireError",
    "Work",
    "algorithm",
    "algorithms",
    "connect",
    "connect_threads",
    "plan",
    "price",
    "simulate",
    "unregister",
    "verify",
]
