"""Subsets: bytes and requests of the first bands and of overviews, against reading everything.

The store is the AlphaEarth crop, mirrored to 1024 x 1024: 64 chunks of 128 x 128 in 16 shards.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nec
from codec_bench import data
from codec_bench.stores import fidelity
from nec.compressor import Compressor

EDGE = 1024
RATES = {f"{size:g} B": size for size in (0.5, 2.0)}
WAYS: dict[str, dict[str, int]] = {
    "everything": {},
    "bands=16": {"bands": 16},
    "bands=3": {"bands": 3},
    "overview=4": {"overview": 4},
    "overview=8": {"overview": 8},
    "overview=16": {"overview": 16},
    "bands=16, overview=8": {"bands": 16, "overview": 8},
    "bands=3, overview=16": {"bands": 3, "overview": 16},
}


def bench_subset(folder: Path) -> dict[str, Any]:
    """Read a sealed store of each rate in every way, each time opened anew."""
    crop = data.alphaearth(folder).to_numpy()
    features = data.placed(data.mirrored(crop, EDGE))
    rates = {}
    for rate, size in RATES.items():
        compressor = Compressor.fit(crop, bytes_per_vector=size)
        with tempfile.TemporaryDirectory() as temporary:
            store = Path(temporary) / "store.zarr"
            nec.encode(features, store, model=compressor, workers=1)
            nec.seal(store)
            rates[rate] = _read(store)
    return {
        "note": f"{' '.join(__doc__.split()[11:])} Bytes and requests are those that the values "
        "of `embedding` take once the store is open (opening takes the same every time), the "
        "manifest's part included. The cosine is that to the same bands, or means, of everything.",
        "rates": rates,
    }


def _read(store: Path) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    whole: NDArray[np.float32] | None = None
    for name, options in WAYS.items():
        dataset = nec.open(store, **options)
        opening = _counted(dataset)
        values = dataset["embedding"].to_numpy()
        taken = _counted(dataset)
        whole = values if whole is None else whole
        rows[name] = {
            "bytes": taken["bytes"] - opening["bytes"],
            "requests": taken["requests"] - opening["requests"],
            "cosine_mean": _likeness(values, whole, options.get("overview", 1)),
        }
        rows["opening"] = opening
    everything = rows["everything"]
    for row in rows.values():
        row["share"] = round(row["bytes"] / everything["bytes"], 4)
        row["requests_of_all"] = everything["requests"]
    return rows


def _counted(dataset: Any) -> dict[str, int]:
    traffic = dataset.nec.traffic
    return {"bytes": traffic.bytes, "requests": traffic.requests}


def _likeness(values: NDArray[np.float32], whole: NDArray[np.float32], edge: int) -> float:
    """Return the mean cosine of a subset to the same bands, or means, of everything."""
    bands, rows, columns = values.shape
    cut = whole[:bands].reshape(bands, rows, edge, columns, edge).mean((2, 4))
    return fidelity(cut.reshape(bands, -1).T, values.reshape(bands, -1).T)["cosine_mean"]
