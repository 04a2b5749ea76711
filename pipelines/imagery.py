"""The imagery that the encoder is pretrained on, and its batches."""

import csv
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from teacher import EUROSAT, L2A, RGB, Teacher, targets
from torch import Tensor

CHIP, WIDE_CHIP, PATCH = 64, 96, 4
# Edge of what is used of a larger image, pixels: whole tiles of the teacher.
LARGE = 256
# Pixels of an image that may be zero.
MOST_MISSING = 0.02
# EuroSAT's jpgs render Sentinel-2 reflectance 0 to about 0.275 as 0 to 255.
DISPLAY_GAIN = 1 / 0.275

Maps = NDArray[np.float16]


@dataclass(frozen=True)
class Large:
    """An image (band, y, x), its GSD, and the teacher's tokens (c, y / patch, x / patch)."""

    image: NDArray[np.float32]
    gsd: float
    maps: Maps | None


@dataclass(frozen=True)
class Imagery:
    """Training images as arrays (n, band, y, x) in the encoder's band order.

    Attributes
    ----------
    rgb : ndarray, uint8
        Display values of blue, green and red.
    multispectral : ndarray, uint16
        Digital numbers.
    large : list of Large
    rgb_maps, multispectral_maps : ndarray of shape (n, c, y / patch, x / patch), optional
        The teacher's tokens.
    """

    rgb: NDArray[np.uint8]
    multispectral: NDArray[np.uint16]
    large: list[Large]
    rgb_maps: Maps | None
    multispectral_maps: Maps | None

    def batch(
        self, step: int, size: int, *, multispectral_every: int = 2
    ) -> tuple[Tensor, Tensor, Tensor | None, torch.Generator]:
        """Return chips (n, 6, y, x), GSD (n,) and the teacher's tokens of a step.

        Missing bands are NaN. Steps are RGB photos but for one in so many, which is
        multispectral. Of these, in turn: half small chips and half cut from the larger images at
        10, 20 and 30 m; or fewer, wider chips cut from the larger images alone, so that the
        encoder is at ease with more tokens than a small chip has.
        """
        rng = np.random.default_rng(step)
        generator = torch.Generator().manual_seed(step)
        if step % multispectral_every:
            picked = rng.choice(len(self.rgb), size, replace=False)
            chips = torch.full((size, 6, CHIP, CHIP), torch.nan)
            chips[:, :3] = torch.from_numpy(self.rgb[picked]).float() / 255
            maps = None if self.rgb_maps is None else self.rgb_maps[picked]
            return chips, torch.full((size,), 10.0), _tensor(maps), generator
        if step // multispectral_every % 2:
            count = size * CHIP**2 // WIDE_CHIP**2
            cuts, cut_maps, gsd = self._cut(rng, count, WIDE_CHIP)
            return torch.from_numpy(cuts), torch.tensor(gsd), _tensor(cut_maps), generator
        half = size // 2
        picked = rng.choice(len(self.multispectral), half, replace=False)
        cuts, cut_maps, gsd = self._cut(rng, size - half, CHIP)
        small = self.multispectral[picked].astype(np.float32) / 1e4
        chips = torch.from_numpy(np.concatenate((small, cuts)))
        display = torch.from_numpy(rng.random(size) < 0.25)
        chips[display] = (chips[display] * DISPLAY_GAIN).clamp(0, 1)
        maps = None
        if self.multispectral_maps is not None and cut_maps is not None:
            maps = np.concatenate((self.multispectral_maps[picked], cut_maps))
        return chips, torch.tensor([10.0] * half + gsd), _tensor(maps), generator

    def _cut(
        self, rng: np.random.Generator, count: int, edge: int
    ) -> tuple[NDArray[np.float32], Maps | None, list[float]]:
        """Cut chips of `edge` pixels from the larger images, at whole patches."""
        wide = [image for image in self.large if min(image.image.shape[1:]) >= edge]
        cuts, maps, gsd = [], [], []
        for i in rng.choice(len(wide), count):
            image = wide[i]
            y, x = (
                PATCH * int(rng.integers(0, (s - edge) // PATCH + 1)) for s in image.image.shape[1:]
            )
            cuts.append(image.image[:, y : y + edge, x : x + edge])
            gsd.append(image.gsd)
            if image.maps is not None:
                at = [slice(o // PATCH, (o + edge) // PATCH) for o in (y, x)]
                maps.append(image.maps[:, at[0], at[1]])
        return np.stack(cuts), np.stack(maps) if maps else None, gsd


def _tensor(maps: Maps | None) -> Tensor | None:
    return None if maps is None else torch.from_numpy(maps).float()


def load_imagery(data: Path, split: Path, teacher: Teacher | None = None) -> Imagery:
    """Read the training images, and what the teacher says of them; the test pool stays on disk."""
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with split.open() as stream:
        train = [row for row in csv.DictReader(stream) if row["set"] == "train"]
    rgb = np.stack([_photo(data / "eurosat_rgb", r) for r in train if r["rgb"] == "1"])
    seven = np.stack(
        [
            _bands(data / "eurosat_ms" / r["label"] / f"{r['name']}.tif")
            for r in train
            if r["multispectral"] == "1"
        ]
    )
    # Either near-infrared band serves the one near-infrared projection.
    multispectral = np.stack([x[[0, 1, 2, 3 + i % 2, 5, 6]] for i, x in enumerate(seven)])
    paths = sorted((data / "sentinel2_patches").glob("*.tif"))
    paths += sorted((data / "sentinel2_seasons").glob("*.tif"))
    twelve = [_bands(path)[:, :LARGE, :LARGE] for path in paths]
    chosen = [1, 2, 3, 8, 10, 11]
    whole = np.stack(
        [x for x in twelve if (x[chosen] <= 0).mean() <= MOST_MISSING], dtype=np.float32
    )
    maps: list[Maps | None] = [None, None, None]
    if teacher is not None:
        maps = list(
            targets(
                [
                    teacher.tokens("rgb", rgb.astype(np.float32) * (1e4 / DISPLAY_GAIN / 255), RGB),
                    teacher.tokens("multispectral", seven.astype(np.float32), EUROSAT),
                    teacher.tokens("large", whole[:, list(L2A.values())], tuple(L2A)),
                ]
            )
        )
    large = [
        Large(
            _means(image[chosen] / 1e4, factor, PATCH).clip(0),
            10.0 * factor,
            None if maps[2] is None else _means(maps[2][at], factor, 1),
        )
        for at, image in enumerate(whole)
        for factor in (1, 2, 3)
    ]
    return Imagery(rgb, multispectral, large, maps[0], maps[1])


def _photo(folder: Path, row: dict[str, str]) -> NDArray[np.uint8]:
    """Read an RGB photo as blue, green and red."""
    with Image.open(folder / row["label"] / f"{row['name']}.jpg") as image:
        return np.asarray(image).transpose(2, 0, 1)[::-1]


def _bands(path: Path) -> NDArray[np.integer]:
    with rasterio.open(path) as dataset:
        return dataset.read()


def _means(image: NDArray[np.floating], factor: int, multiple: int) -> NDArray[np.floating]:
    """Return means over factor x factor; sides are cut to whole multiples of what comes out."""
    bands, height, width = image.shape
    h, w = (s // factor // multiple * multiple for s in (height, width))
    cut = image[:, : h * factor, : w * factor].reshape(bands, h, factor, w, factor)
    return cut.astype(np.float32).mean((2, 4)).astype(image.dtype)
