"""Numbers people recognise: collectives measured and checked in nccl-tests' table, beside Gloo and MPI.

`python -m bench COLLECTIVE` and `treering bench COLLECTIVE` are the same program; `cli.py` has the flags,
`session.py` what one rank does. `emulate/` makes clusters on one machine. `contenders/` runs in other environments
and imports nothing of this project.
Nothing may import bench; bench may import `collectives`, and from below only what a micro-benchmark measures.
"""
