"""How bytes move: every transport runs a `Program` (program.py) between ranks.

engine/ (C++: shared memory and TCP) is the default on CPUs; inproc.py runs ranks as threads on the portable executor.
README.md has the others, and how to write one; conformance/ proves them.
launchers.py, stores.py, handshake.py and endpoint.py bring the ranks of a job together.
May import `topology`; never imports `collectives` or `bench`.
"""
