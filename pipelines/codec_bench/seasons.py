"""Time: the four seasons of a place coded together, against each season coded anew.

Together: an orthonormal DCT over the four dates of every component, the frequencies of a
component as planes of their own next to each other, coded as one chunk under the same rotation.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct, idct

from codec_bench.stores import bytes_at
from nec.codec import Coding
from nec.codec.chunk import decode_chunk, encode_chunk
from nec.codec.fitting import fit_coding
from nec.encoders import Encoder
from nec.encoders.tiling import Tiling, embed_image
from nec.model import load_model
from nec.rotation import klt, rotate

log = logging.getLogger(__name__)

PLACES = ("0080717", "0193833")
SEASONS = 4
EDGE = 256
# Of the 12 bands of an image, in the order of Sentinel-2's numbers, those that the encoder takes.
BANDS = {"blue": 1, "green": 2, "red": 3, "nir08": 8, "swir16": 10, "swir22": 11}
RATES = (0.15, 0.5, 1.5, 4.0, 8.0)
GOALS = (0.9, 0.95, 0.98, 0.99)
# Compressor.fit's own; and the crc32c that Zarr appends to a chunk, bytes.
BLOCK, LAGRANGIAN, CHECKSUM = 64, 0.12, 4


def bench_seasons(folder: Path) -> dict[str, Any]:
    """Fit on a place or on half of one, and measure on the other, both ways."""
    model = load_model("nec-tiny")
    images = folder / "sentinel2_seasons"
    places = {place: _embed(images, place, model.encoder) for place in PLACES}
    first, second = places.values()
    half = first.shape[1] // 2
    pairs = {
        f"fitted on {PLACES[0]}, measured on {PLACES[1]}": (first, second),
        f"fitted on {PLACES[1]}, measured on {PLACES[0]}": (second, first),
        f"halves of {PLACES[0]}": (first[:, :half], first[:, half:]),
        f"halves of {PLACES[1]}": (second[:, :half], second[:, half:]),
    }
    cases = {}
    for pair, (fitted, measured) in pairs.items():
        log.info("%s", pair)
        cases[pair] = _compare(fitted, measured)
    changes = [row["joint_over_anew"] for rows in cases.values() for row in rows]
    return {
        "note": f"tokens of {model.name} on two places in four seasons; bytes a vector of a date, "
        "chunks with checksums, at equal mean cosine. The encoder's training saw these images.",
        "encoder": {"name": model.name, "weights_sha256": model.weights_sha256},
        "cases": cases,
        "joint_over_anew": {"least": min(changes), "most": max(changes)},
    }


def _embed(folder: Path, place: str, encoder: Encoder) -> NDArray[np.float32]:
    """Return the tokens of a place, (season, y, x, dim)."""
    import rasterio

    tiling = Tiling()
    gap = [(0, 0), (tiling.margin, tiling.margin), (tiling.margin, tiling.margin)]
    out = []
    for season in range(SEASONS):
        with rasterio.open(folder / f"ssl4eos12_val_{place}_{season}.tif") as dataset:
            image = dataset.read()[list(BANDS.values()), :EDGE, :EDGE] / np.float32(1e4)
        padded = np.pad(image.astype(np.float32), gap, constant_values=np.nan)
        with torch.inference_mode():
            tokens = embed_image(encoder, padded, bands=tuple(BANDS), gsd=10.0, tiling=tiling)
        out.append(np.moveaxis(tokens, 0, -1))
    return np.stack(out)


def _compare(fitted: NDArray[np.float32], measured: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Return the bytes of both ways at equal cosines."""
    basis = klt([fitted[i : i + 1] for i in range(SEASONS)])
    train, test = (rotate(np.moveaxis(v, -1, 1), basis) for v in (fitted, measured))
    curves: dict[str, list[dict[str, Any]]] = {"anew": [], "joint": []}
    for rate in RATES:
        dates = [train[i : i + 1] for i in range(SEASONS)]
        coding = _fit(dates, rate)
        found = [_code(test[i : i + 1], coding) for i in range(SEASONS)]
        decoded = np.concatenate([values for _, values in found])
        curves["anew"].append(_point(sum(size for size, _ in found), test, decoded))
        coding = _fit([_together(train)], SEASONS * rate)
        size, values = _code(_together(test), coding)
        curves["joint"].append(_point(size, test, _apart(values)))
    rows = []
    for goal in GOALS:
        sizes = {way: bytes_at(points, goal) for way, points in curves.items()}
        if None in sizes.values():
            continue
        over = round(sizes["joint"] / sizes["anew"] - 1, 4)
        rows.append({"cosine": goal, **sizes, "joint_over_anew": over})
    return rows


def _fit(pieces: list[NDArray[np.float32]], rate: float) -> Coding:
    steps = np.full(pieces[0].shape[1], pieces[0].std(), np.float32)
    coding, _ = fit_coding(
        pieces, relative_steps=steps, block=BLOCK, lagrangian=LAGRANGIAN, bytes_per_vector=rate
    )
    return coding


def _code(values: NDArray[np.float32], coding: Coding) -> tuple[int, NDArray[np.float32]]:
    data = encode_chunk(values, coding)
    return len(data) + CHECKSUM, decode_chunk(data, coding, values.shape)


def _together(dates: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn (date, band, y, x) into planes (1, band x temporal frequency, y, x)."""
    planes = np.moveaxis(dct(dates, axis=0, norm="ortho"), 0, 1)
    return np.ascontiguousarray(planes.reshape(1, -1, *dates.shape[2:]), np.float32)


def _apart(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Undo `_together`."""
    by_band = planes.reshape(-1, SEASONS, *planes.shape[2:])
    return idct(np.moveaxis(by_band, 1, 0), axis=0, norm="ortho")


def _point(
    size: int, original: NDArray[np.float32], decoded: NDArray[np.float32]
) -> dict[str, Any]:
    a, b = original.astype(np.float64), decoded.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / np.maximum(norms, 1e-30)
    return {"bytes_per_vector": size / cosine.size, "cosine_mean": float(cosine.mean())}
