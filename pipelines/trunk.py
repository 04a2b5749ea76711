"""What a bottleneck is trained on: tokens of a frozen trunk, kept on disk, and their targets."""

import csv
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from imagery import CHIP, load_imagery
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from nec.bottleneck import EncoderEnd
from nec.encoders.vit import VisionTransformer, compand
from nec.model import sha256_of
from nec.pretrain.description import mean_and_roughness, whitening
from nec.pretrain.objective import patch_statistics, patch_targets

BATCH = 64
# A fifth of the training images by name, for comparisons: no image of the test pool.
HELD_OUT, SEED = 0.2, 7
# What decoded embeddings are to tell, and its weight.
WEIGHTS = {
    "embedding": 1.0,
    "pooled": 0.5,
    "mean": 1.0,
    "mean_tells_all": 1.0,
    "pixels": 0.5,
    "statistics": 0.5,
}


@dataclass(frozen=True)
class Photos:
    """RGB photos of the training side with their labels: what is trained on and what is not.

    Attributes
    ----------
    chips : ndarray of shape (n, 3, y, x), uint8
        Blue, green, red.
    labels : ndarray of shape (n,), str
    held_out : ndarray of shape (n,), bool
    """

    chips: NDArray[np.uint8]
    labels: NDArray[np.str_]
    held_out: NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """Chips of one kind of imagery, with the trunk's tokens.

    Attributes
    ----------
    tokens : ndarray of shape (n, y, x, width), float16
    chips : ndarray of shape (n, 6, y, x), float16
        Reflectance; a missing band is NaN.
    """

    tokens: NDArray[np.float16]
    chips: NDArray[np.float16]


def load_parts(
    data: Path,
    split: Path,
    folder: Path,
    network: VisionTransformer,
    end: EncoderEnd,
    *,
    weights: Path,
    photos: int,
    others: int,
) -> tuple[Photos, Part, Part]:
    """Read training imagery and what the trunk makes of it, computed once per weights.

    Parameters
    ----------
    folder : Path
        Where tokens are kept.
    weights : Path
        File of the encoder's weights, which the kept tokens belong to.
    photos : int
        RGB photos of the training side to use, held-out ones included; all, where fewer.
    others : int
        Chips of multispectral imagery.

    Returns
    -------
    tuple of Photos, Part, Part
        Photos; tokens of photos, in their order; multispectral chips, none of them a held-out
        photo's place.
    """
    with split.open() as stream:
        train = [row for row in csv.DictReader(stream) if row["set"] == "train"]
    rgb = [row for row in train if row["rgb"] == "1"]
    rng = np.random.default_rng(SEED)
    names = sorted({row["name"] for row in train})
    held = {n for n, u in zip(names, rng.random(len(names)), strict=True) if u < HELD_OUT}
    imagery = load_imagery(data, split)
    apart = [row["name"] not in held for row in train if row["multispectral"] == "1"]
    imagery = replace(imagery, multispectral=imagery.multispectral[apart])
    picked = rng.permutation(len(rgb))[:photos]
    known = Photos(
        imagery.rgb[picked],
        np.array([rgb[i]["label"] for i in picked]),
        np.array([rgb[i]["name"] in held for i in picked]),
    )
    # Multiples of 4 are the steps of small chips.
    rounds = [imagery.batch(4 * k, BATCH) for k in range(others // BATCH)]
    small = torch.full((len(picked), 6, CHIP, CHIP), torch.nan, dtype=torch.float16)
    small[:, :3] = torch.from_numpy(known.chips).half() / 255
    chips = {
        "photos": (small, torch.full((len(picked),), 10.0), [0, 1, 2]),
        "others": (
            torch.cat([r[0] for r in rounds]).half(),
            torch.cat([r[1] for r in rounds]),
            list(range(6)),
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    state = {"weights": sha256_of(weights), "blocks": len(end.blocks), "photos": photos}
    state |= {"others": others, "split": sha256_of(split)}
    record = folder / "tokens.json"
    fresh = record.exists() and json.loads(record.read_text()) == state
    parts = []
    for name, (images, gsd, index) in chips.items():
        path = folder / f"{name}.npy"
        if not (fresh and path.exists()):
            record.unlink(missing_ok=True)
            _run_trunk(end, network, images, gsd, index, path)
        parts.append(Part(np.load(path, mmap_mode="r"), images.numpy()))
    record.write_text(json.dumps(state))
    return known, parts[0], parts[1]


def _run_trunk(
    end: EncoderEnd,
    network: VisionTransformer,
    images: Tensor,
    gsd: Tensor,
    index: list[int],
    path: Path,
) -> None:
    patch, width = network.config.patch_size, network.config.width
    side = images.shape[-1] // patch
    out = np.lib.format.open_memmap(path, "w+", np.float16, (len(images), side, side, width))
    for at in track(range(0, len(images), BATCH), f"trunk of {path.stem}"):
        here = slice(at, at + BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = end.trunk(network, images[here][:, index].float(), index, gsd[here])
        out[here] = tokens.float().numpy()
    out.flush()


def features_of(end: EncoderEnd, tokens: NDArray[np.float16]) -> Tensor:
    """Run the end of the encoder over kept tokens (n, y, x, width): (n, dim, y, x), float32."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        parts = [
            end(torch.from_numpy(tokens[at : at + BATCH].astype(np.float32))).float()
            for at in range(0, len(tokens), BATCH)
        ]
    return torch.cat(parts)


class Targets:
    """What decoded embeddings of chips are to tell; whitened on a sample of float embeddings.

    Parameters
    ----------
    network : VisionTransformer
    sample : Tensor of shape (n, dim, y, x)
    names : collection of str
        Those of `WEIGHTS` to give.
    """

    def __init__(
        self, network: VisionTransformer, sample: Tensor, names: Collection[str] = tuple(WEIGHTS)
    ) -> None:
        self.network, self.names = network, names
        self.whole = whitening(mean_and_roughness(sample))
        self.means = whitening(sample.mean((2, 3)))

    def of(self, features: Tensor, chips: Tensor) -> dict[str, Tensor]:
        """Return targets of float features (n, dim, y, x) and chips (n, 6, y, x)."""
        whole = _white(mean_and_roughness(features), self.whole)
        patches = self.network.patches(compand(chips.float())).permute(0, 2, 1, 3)
        found = {
            "embedding": features.flatten(2).transpose(1, 2),
            "pooled": whole,
            "mean": _white(features.mean((2, 3)), self.means),
            # Texture that the mean tells survives where high frequencies do not.
            "mean_tells_all": whole,
            "pixels": patch_targets(patches).flatten(2),
            "statistics": patch_statistics(patches).flatten(2),
        }
        return {name: found[name] for name in self.names}


def _white(values: Tensor, whitened: tuple[Tensor, Tensor]) -> Tensor:
    mean, matrix = whitened
    return (values - mean) @ matrix
