"""Image sets as arrays, and what each row of the tables makes of an image."""

import csv
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from nec.encoders import Encoder
from nec.encoders.tiling import Tiling, embed_image
from nec.heads.pooling import mean_and_roughness

RGB = ("red", "green", "blue")
MULTISPECTRAL = ("blue", "green", "red", "nir", "nir08", "swir16", "swir22")
# Images in a forward pass.
BATCH = 64


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one size.

    Attributes
    ----------
    images : ndarray of shape (n, band, y, x), float32
        Reflectance, or display values between 0 and 1.
    bands : tuple of str
        Common names.
    gsd : float
        Metres.
    labels : ndarray of shape (n,), str
    pool : ndarray of shape (n,), bool
        Whether an image is of the fixed test pool.
    place : ndarray of shape (n, 3)
        Zone, easting and northing in metres; NaN where unknown.
    """

    images: NDArray[np.float32]
    bands: tuple[str, ...]
    gsd: float
    labels: NDArray[Any]
    pool: NDArray[np.bool_]
    place: NDArray[np.float64]

    def some(self, index: NDArray[np.intp]) -> "ImageSet":
        """Return the images of an index."""
        kept = {k: getattr(self, k)[index] for k in ("images", "labels", "pool", "place")}
        return replace(self, **kept)

    def halved(self) -> "ImageSet":
        """Return the images at half their resolution, means of 2 x 2 pixels."""
        count, bands, height, width = self.images.shape
        cut = self.images.reshape(count, bands, height // 2, 2, width // 2, 2)
        return replace(self, images=cut.mean((3, 5)), gsd=2 * self.gsd)


def eurosat_rgb(data: Path, split: Path) -> ImageSet:
    """Read EuroSAT RGB; the test pool is that of the split."""
    rows = [row for row in _rows(split) if row["rgb"] == "1"]
    images = np.stack(
        [
            np.asarray(Image.open(data / "eurosat_rgb" / r["label"] / f"{r['name']}.jpg"))
            for r in rows
        ]
    )
    return _set(rows, images.transpose(0, 3, 1, 2).astype(np.float32) / 255, RGB, None)


def eurosat_multispectral(data: Path, split: Path) -> ImageSet:
    """Read EuroSAT multispectral as reflectance, with the place of each image."""
    rows = [row for row in _rows(split) if row["multispectral"] == "1"]
    images, place = [], []
    for row in rows:
        path = data / "eurosat_ms" / row["label"] / f"{row['name']}.tif"
        with rasterio.open(path) as dataset:
            images.append(dataset.read().astype(np.float32) / 1e4)
            centre = dataset.transform * (dataset.width / 2, dataset.height / 2)
            place.append((dataset.crs.to_epsg() or 0, *centre))
    return _set(rows, np.stack(images), MULTISPECTRAL, np.array(place, np.float64))


def ucmerced(data: Path) -> ImageSet:
    """Read UC Merced; none of it was trained on."""
    paths = sorted((data / "ucmerced").glob("*/*.webp"))
    images = np.stack([np.asarray(Image.open(p).convert("RGB")) for p in paths])
    rows = [{"label": p.parent.name, "set": "test"} for p in paths]
    return _set(rows, images.transpose(0, 3, 1, 2).astype(np.float32) / 255, RGB, None, 0.3)


def _rows(split: Path) -> list[dict[str, str]]:
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with split.open() as stream:
        return list(csv.DictReader(stream))


def _set(
    rows: list[dict[str, str]],
    images: NDArray[np.float32],
    bands: tuple[str, ...],
    place: NDArray[np.float64] | None,
    gsd: float = 10.0,
) -> ImageSet:
    return ImageSet(
        images,
        bands,
        gsd,
        np.array([r["label"] for r in rows]),
        np.array([r["set"] == "test" for r in rows]),
        np.full((len(rows), 3), np.nan) if place is None else place,
    )


def image_tokens(encoder: Encoder, images: ImageSet, at: slice) -> NDArray[np.float32]:
    """Embed some of the images; tokens (n, dim, y, x), float32.

    The encoder has one near-infrared projection: nir serves where both bands are there. Images
    wider than two chips are embedded by overlapping chips.
    """
    which = [i for i, band in enumerate(images.bands) if band != "nir08"]
    bands = tuple(images.bands[i] for i in which)
    chosen = images.images[at][:, which]
    if chosen.shape[-1] <= 128:
        return encoder.embed(torch.from_numpy(chosen), bands=bands, gsd=images.gsd).numpy()
    tiling = Tiling()
    margin = ((0, 0), (tiling.margin, tiling.margin), (tiling.margin, tiling.margin))
    return np.stack(
        [
            embed_image(
                encoder,
                np.pad(image, margin, constant_values=np.nan),
                bands=bands,
                gsd=images.gsd,
                tiling=tiling,
            )
            for image in chosen
        ]
    )


def pooled(
    encoder: Encoder,
    images: ImageSet,
    how: Callable[[NDArray[np.float32]], NDArray[np.float32]] = mean_and_roughness,
) -> NDArray[np.float32]:
    """Return what a pooling makes of each image's tokens, (n, ...)."""
    return np.concatenate(
        [
            how(image_tokens(encoder, images, slice(at, at + BATCH)))
            for at in range(0, len(images.images), BATCH)
        ]
    )
