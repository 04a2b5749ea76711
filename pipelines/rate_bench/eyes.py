"""Encoders as the maps are shown to them: bands, tiling, tokens to fit to."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import rasterio
from encoder_bench.dense import BANDS, Tile, embed_tile
from fit_compressors import GAMMA
from numpy.typing import NDArray

from nec.compressor import Compressor
from nec.encoders import Encoder
from nec.encoders.galileo import LARGEST, WEIGHTS, Galileo, GalileoEncoder
from nec.encoders.tiling import Tiling
from nec.model import Model, sha256_of

Floats = NDArray[np.float32]

# The row of a model's own rates.
SHIPPED = "as shipped"
# Common names of Sentinel-2's bands by their place in an L2A file of 12.
L2A = ("coastal", "blue", "green", "red", "rededge071", "rededge075", "rededge078", "nir")
L2A += ("nir08", "nir09", "swir16", "swir22")


@dataclass(frozen=True)
class Eye:
    """An encoder with the bands that it is shown, how a scene is cut, and tokens to fit to.

    Attributes
    ----------
    weights : str
        Digest of its weights.
    sample : list of ndarray of shape (y, x, dim)
        Tokens of training imagery, which no task is tested on.
    shipped : dict of str to Compressor
        Its rates, if it is ours.
    learned : dict of str to (Encoder, dict of str to Compressor)
        Encoders with a learned bottleneck beside it, by row.
    """

    name: str
    encoder: Encoder
    weights: str
    bands: tuple[str, ...]
    tiling: Tiling
    sample: list[Floats]
    shipped: Mapping[str, Compressor] = field(default_factory=dict)
    learned: Mapping[str, tuple[Encoder, Mapping[str, Compressor]]] = field(default_factory=dict)

    _fitted: dict[float, Compressor] = field(default_factory=dict)

    def fitted(self, size: float) -> Compressor:
        """Return the transform codec at so many bytes a token of the sample; one basis for all."""
        if size not in self._fitted:
            others = iter(self._fitted.values())
            self._fitted[size] = Compressor.fit(
                self.sample,
                bytes_per_vector=size,
                basis=next((c.basis for c in others), None),
                gamma=GAMMA,
            )
        return self._fitted[size]

    def digest_of(self, method: str, setting: str) -> str:
        """Return what a row of compressors that are given hangs on; nothing for other rows."""
        ladder = self.learned[method][1] if method in self.learned else {}
        ladder = self.shipped if method == SHIPPED else ladder
        return ladder[setting].digest if setting in ladder else ""

    def embed(self, image: Floats, bands: tuple[str, ...]) -> Floats:
        """Return the tokens (y, x, dim) of a scene (band, y, x)."""
        tile = Tile(image, np.empty((0, 0), np.int64))
        return embed_tile(self.encoder, tile, bands=bands, tiling=self.tiling)


def training_scenes(data: Path, bands: tuple[str, ...]) -> list[Floats]:
    """Return Sentinel-2 scenes (band, y, x) of the training imagery, reflectance."""
    scenes = []
    for folder in ("sentinel2_patches", "sentinel2_seasons"):
        for path in sorted((data / folder).glob("*.tif")):
            with rasterio.open(path) as dataset:
                image = dataset.read([L2A.index(b) + 1 for b in bands]).astype(np.float32) / 1e4
            image[:, (image <= 0).any(0)] = np.nan
            scenes.append(image[:, :256, :256])
    return scenes


def our_eye(
    model: Model, data: Path, learned: Mapping[str, tuple[Encoder, Mapping[str, Compressor]]]
) -> Eye:
    """Return a model of ours."""
    eye = Eye(
        model.name,
        model.encoder,
        model.weights_sha256,
        BANDS,
        Tiling(),
        [],
        shipped=model.compressors,
        learned=learned,
    )
    return _shown(eye, data)


def galileo_eye(data: Path) -> Eye:
    """Return Galileo-nano, in the largest chips that it takes, which do not overlap."""
    folder = data / "weights" / "galileo_nano"
    encoder = Galileo(GalileoEncoder.load(folder), name="Galileo-nano")
    tiling = Tiling(core=LARGEST, halo=0)
    digest = sha256_of(folder / WEIGHTS)
    return _shown(Eye(encoder.name, encoder, digest, Galileo.bands, tiling, []), data)


def _shown(eye: Eye, data: Path) -> Eye:
    """Return the eye with the tokens of training scenes to fit to."""
    scenes = training_scenes(data, eye.bands)
    return replace(eye, _fitted={}, sample=[eye.embed(scene, eye.bands) for scene in scenes])
