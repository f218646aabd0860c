"""Runs torch's own suite on treering and on Gloo, and says where they differ.

    python -m tests.torch_suite [--world-size 2 3 4] [--only PATTERN ...]

Exits with 1 when Gloo passes a test that treering does not pass.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STATES = ("passed", "skipped", "failed")


def run(backend: str, world_size: int, only: list[str], directory: str) -> dict[str, dict[str, Any]]:
    out = Path(directory) / f"{backend}-{world_size}.json"
    command = [sys.executable, "-m", "tests.torch_suite.suite", "--backend", backend]
    command += ["--world-size", str(world_size), "--out", str(out)]
    for pattern in only:
        command += ["--only", pattern]
    with out.with_suffix(".log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True, timeout=3600)
    return json.loads(out.read_text())


def again(backend: str, world_size: int, tests: list[str], directory: str) -> dict[str, dict[str, Any]]:
    """Tests of the suite that failed, once more: some of them wait for a tenth of a second of a busy machine."""
    return run(backend, world_size, tests, directory) if tests else {}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--world-size", type=int, nargs="+", default=[2, 3, 4])
    options.add_argument("--only", nargs="*", default=[], help="names of tests, with wildcards")
    given = options.parse_args()
    missed = 0
    print(f"{'ranks':>5}  {'backend':<9}" + "".join(f"{state:>9}" for state in STATES))
    with tempfile.TemporaryDirectory(prefix="treering-suite-") as directory:
        for size in given.world_size:
            gloo, ours = (run(backend, size, given.only, directory) for backend in ("gloo", "treering"))
            behind = [n for n, r in gloo.items() if r["status"] == "passed" and ours[n]["status"] != "passed"]
            ours |= again("treering", size, behind, directory)
            for name, results in (("Gloo", gloo), ("treering", ours)):
                counts = [sum(r["status"] == state for r in results.values()) for state in STATES]
                print(f"{size:>5}  {name:<9}" + "".join(f"{count:>9}" for count in counts), flush=True)
            for name, result in gloo.items():
                mine = ours[name]
                if mine["status"] != result["status"]:
                    print(f"       {name}: Gloo {result['status']}, treering {mine['status']}")
                    missed += result["status"] == "passed"
                    if mine["status"] == "failed":
                        print("\n".join(mine["words"].splitlines()[-12:]))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
