"""The two matrices as an SVG picture, drawn as in a report."""

from __future__ import annotations

from collections.abc import Sequence

from bench import sizes
from bench.report import heatmap

from .matrix import Pairwise
from .outliers import Outlier


def picture(found: Pairwise, slow: Sequence[Outlier]) -> str:
    """An SVG document: bandwidth on the left, latency on the right."""
    size, hosts = len(found.hosts), len(set(found.hosts))
    title = (
        f"All pairs of {size} rank{'s' * (size != 1)} on {hosts} host{'s' * (hosts != 1)}: "
        f"bandwidth of {sizes.spell(found.size_bytes)}B, latency of a step"
    )
    return heatmap.picture(title, found.hosts, found.bandwidth_gb_per_s, found.latency_us, slow)
