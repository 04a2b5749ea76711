"""Encoders side by side, each paired with one of them: the parts of such a table."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from encoder_bench.classification import (
    bench_eurosat_multispectral,
    bench_eurosat_rgb,
    bench_exchange,
    bench_ucmerced,
    side_by_side,
)
from encoder_bench.compressibility import bench_compressibility
from encoder_bench.dense import bench_flood, bench_terramesh, linear_side_by_side
from nec.encoders import Encoder

PARTS = (
    *("eurosat_rgb", "eurosat_multispectral", "ucmerced", "ucmerced_halved"),
    *("terramesh", "flood", "exchange", "bytes"),
)
# Of the small sets: what the choice of training images adds to a difference goes away.
RESAMPLES, REPEATS = 40, 10


def paired_jobs(
    data: Path, split: Path, encoders: Mapping[str, Encoder], reference: str
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what measures each part: probes, maps, heads of the reference, bytes at accuracy."""
    images, maps = side_by_side(encoders), linear_side_by_side(encoders)
    paired: dict[str, Any] = {"reference": reference}
    return {
        "eurosat_rgb": lambda: bench_eurosat_rgb(data, split, images, **paired),
        "eurosat_multispectral": lambda: bench_eurosat_multispectral(
            data, split, images, **paired, resamples=RESAMPLES
        ),
        "ucmerced": lambda: bench_ucmerced(data, images, **paired, repeats=REPEATS),
        "ucmerced_halved": lambda: bench_ucmerced(
            data, images, **paired, repeats=REPEATS, size="half"
        ),
        "terramesh": lambda: bench_terramesh(data, maps, **paired),
        "flood": lambda: bench_flood(data, maps, **paired),
        "exchange": lambda: bench_exchange(data, split, encoders, **paired),
        "bytes": lambda: bench_compressibility(data, split, encoders, **paired),
    }
