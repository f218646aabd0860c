"""Beside the times of pytest-benchmark: the rates of the kernels, to be compared with a plain copy."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    session = getattr(config, "_benchmarksession", None)
    rates = [bench for bench in session.benchmarks if "GB/s" in bench.extra_info] if session else []
    if rates:
        terminalreporter.section("GB/s of result (10^9 bytes)")
        for bench in sorted(rates, key=lambda bench: bench.name):
            terminalreporter.write_line(f"{bench.name:<36}{bench.extra_info['GB/s']:>9.2f}")
