"""Galileo-nano's tokens of the training images: what the encoder's are led towards.

Tokens of all sets go through one rotation: mean out, the strongest components first, each scaled
by its variance to the power -1/4 so that weaker ones count as well, then to unit mean square.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nec.encoders.galileo import GalileoEncoder, galileo_tokens

COMPONENTS = 64
TILE = 64
SAMPLE = 200_000
RGB = ("blue", "green", "red")
# The bands of EuroSAT's multispectral files, and those of a 12-band L2A file by place.
EUROSAT = ("blue", "green", "red", "nir", "nir08", "swir16", "swir22")
L2A = {
    "blue": 1,
    "green": 2,
    "red": 3,
    "rededge071": 4,
    "rededge075": 5,
    "rededge078": 6,
    "nir": 7,
    "nir08": 8,
    "swir16": 10,
    "swir22": 11,
}


@dataclass(frozen=True)
class Teacher:
    """Galileo-nano, and a folder that keeps what it said.

    Attributes
    ----------
    encoder : GalileoEncoder
    cache : Path
        Folder of ``.npy`` files; what is there is not computed again.
    """

    encoder: GalileoEncoder
    cache: Path

    @classmethod
    def load(cls, weights: Path, cache: Path) -> "Teacher":
        """Load the published weights."""
        cache.mkdir(parents=True, exist_ok=True)
        return cls(GalileoEncoder.load(weights), cache)

    def tokens(
        self, name: str, images: NDArray[np.float32], bands: tuple[str, ...]
    ) -> NDArray[np.float16]:
        """Return tokens (n, 128, y / 4, x / 4) of digital numbers (n, band, y, x).

        Images larger than a tile are cut into tiles; their sides are multiples of it.
        """
        path = self.cache / f"{name}.npy"
        if path.exists():
            return np.load(path)
        out = []
        for at in range(0, len(images), 16):
            part = images[at : at + 16]
            n, b, h, w = part.shape
            rows, columns = h // TILE, w // TILE
            cut = part.reshape(n, b, rows, TILE, columns, TILE).transpose(0, 2, 4, 1, 3, 5)
            with torch.autocast("cpu", torch.bfloat16):
                found = galileo_tokens(
                    self.encoder, np.ascontiguousarray(cut.reshape(-1, b, TILE, TILE)), bands
                )
            edge, dim = found.shape[1], found.shape[-1]
            found = found.reshape(n, rows, columns, edge, edge, dim).transpose(0, 5, 1, 3, 2, 4)
            out.append(found.reshape(n, dim, rows * edge, columns * edge).astype(np.float16))
        tokens = np.concatenate(out)
        part_file = path.with_suffix(".part.npy")
        np.save(part_file, tokens)
        part_file.replace(path)
        return tokens


def targets(sets: list[NDArray[np.float16]]) -> list[NDArray[np.float16]]:
    """Rotate and scale the tokens of all sets together, see the module.

    Parameters
    ----------
    sets : list of ndarray of shape (n, 128, y, x)
        Each counts alike for the rotation, however many tokens it has.

    Returns
    -------
    list of ndarray of shape (n, COMPONENTS, y, x), float16
    """
    rng = np.random.default_rng(0)
    sample = []
    for tokens in sets:
        flat = np.moveaxis(tokens, 1, -1).reshape(-1, tokens.shape[1])
        sample.append(flat[rng.integers(0, len(flat), SAMPLE // len(sets))].astype(np.float32))
    rows = np.concatenate(sample)
    mean = rows.mean(0)
    variance, vectors = np.linalg.eigh(np.cov((rows - mean).T))
    variance, vectors = variance[::-1][:COMPONENTS], vectors[:, ::-1][:, :COMPONENTS]
    scaled = vectors * variance**-0.25
    scaled /= np.sqrt((((rows - mean) @ scaled) ** 2).mean())
    scaled = scaled.astype(np.float32)
    return [
        np.concatenate(
            [
                np.moveaxis(
                    (np.moveaxis(part, 1, -1).astype(np.float32) - mean) @ scaled, -1, 1
                ).astype(np.float16)
                for part in np.array_split(tokens, max(1, len(tokens) // 200))
            ]
        )
        for tokens in sets
    ]
