"""Heads that label pixels: windows to learn from, and maps finer than the tokens."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import nn

from nec.errors import HeadError, TooFewLabelsError
from nec.heads.classifier import check_classes
from nec.heads.decoders import PHASE, make_decoder, margin_of, tile_of
from nec.heads.labels import LabelRaster
from nec.heads.maps import MISSING, described, georeferenced
from nec.heads.training import Standard, Window, cut
from nec.heads.windows import WINDOW, Blocks, apply_windows, read_window
from nec.sampling import Lattice, crs_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DecoderRule:
    """A trained decoder with the standardisation of its input.

    Parameters
    ----------
    network : torch.nn.Module
    standard : Standard
    margin, scale : int
        Tokens around what is labelled that the network sees; pixels a token.
    tile : int
        Edge of the windows that are labelled one by one, tokens: a network that pools over all
        that it sees says the same of a pixel wherever a map is cut. 1 where any cut will do.
    size : int
        Number of classes.
    """

    network: nn.Module
    standard: Standard
    margin: int
    scale: int
    tile: int
    size: int

    @classmethod
    def of(
        cls,
        tensors: dict[str, NDArray[Any]],
        decoder: str,
        bands: int,
        classes: int,
        *,
        width: int,
        scale: int,
        options: Mapping[str, Any] | None = None,
    ) -> "DecoderRule":
        """Rebuild from :meth:`tensors`; HeadError where a shape does not fit."""
        network = make_decoder(decoder, bands, classes, width=width, scale=scale, options=options)
        given = dict(tensors)
        standard = Standard(given.pop("mean"), given.pop("spread"))
        try:
            network.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in given.items()})
        except RuntimeError as error:
            raise HeadError("the stored arrays do not fit the decoder", "save it again") from error
        return cls(network.eval(), standard, margin_of(decoder), scale, tile_of(decoder), classes)

    @property
    def count(self) -> int:
        """Trained parameters."""
        return sum(weight.numel() for weight in self.network.parameters())

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that make the rule, by name."""
        arrays = {name: value.numpy() for name, value in self.network.state_dict().items()}
        return {**arrays, "mean": self.standard.mean, "spread": self.standard.spread}

    def probabilities(self, block: Blocks) -> NDArray[np.float32]:
        """(band, y + 2 margin, x + 2 margin) -> (class, y * scale, x * scale), NaN if missing."""
        present = self._present(block)
        with torch.inference_mode():
            shares: NDArray[np.float32] = self._logits(block, present).softmax(0).numpy()
        shares[:, ~present.repeat(self.scale, 0).repeat(self.scale, 1)] = np.nan
        return shares

    def classes(self, block: Blocks) -> NDArray[np.int16]:
        """Give the most probable class of each pixel, -1 where the token is missing."""
        present = self._present(block)
        with torch.inference_mode():
            found = self._logits(block, present).argmax(0).numpy().astype(np.int16)
        found[~present.repeat(self.scale, 0).repeat(self.scale, 1)] = MISSING
        return np.asarray(found, dtype=np.int16)

    def _logits(self, block: Blocks, present: NDArray[np.bool_]) -> torch.Tensor:
        """(band, y + 2 margin, x + 2 margin) -> (class, y * scale, x * scale), 0 without data."""
        x, margin, scale = self.standard(block), self.margin, self.scale
        height, width = present.shape
        tile = self.tile if self.tile > 1 else max(height, width)
        if self.tile > 1:
            # Whole windows at the lower and right edges too; the mean stands for what is missing.
            x = nn.functional.pad(x, (0, -width % tile, 0, -height % tile))
        logits = x.new_zeros(self.size, height * scale, width * scale)
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                if not present[top : top + tile, left : left + tile].any():
                    continue
                rows, columns = (slice(s, s + tile + 2 * margin) for s in (top, left))
                found = cut(self.network(x[None, :, rows, columns]), margin * scale)[0]
                place = logits[:, top * scale :, left * scale :]
                place = place[:, : found.shape[1], : found.shape[2]]
                place.copy_(found[:, : place.shape[1], : place.shape[2]])
        return logits

    def _present(self, block: Blocks) -> NDArray[np.bool_]:
        m = self.margin
        inner = block[:, m : block.shape[1] - m, m : block.shape[2] - m]
        return np.asarray(np.isfinite(inner).all(axis=0))


def pixel_grid(embedding: xr.DataArray, scale: int) -> xr.DataArray:
    """Return an array (y, x) without content on the pixels beneath an embedding's tokens."""
    height, width = embedding.sizes["y"] * scale, embedding.sizes["x"] * scale
    blank = np.broadcast_to(np.int8(0), (height, width))
    if "y" not in embedding.coords or "x" not in embedding.coords:
        return xr.DataArray(blank, dims=("y", "x"))
    lattice = Lattice.of(embedding)
    coords = {
        dim: corner + (np.arange(size) + 0.5) * step / scale
        for dim, corner, step, size in zip(
            ("y", "x"), lattice.corner, lattice.step, (height, width), strict=True
        )
    }
    grid = xr.DataArray(blank, dims=("y", "x"), coords=coords)
    if crs_of(embedding) is not None:
        grid.rio.write_crs(lattice.crs, inplace=True)  # a copy would be as large as the map
    return grid


@dataclass(frozen=True, eq=False)
class PixelScene:
    """An embedding (band, y, x) with labels laid over its pixels."""

    embedding: xr.DataArray
    labels: LabelRaster
    scale: int

    @classmethod
    def of(
        cls, embedding: xr.DataArray, labels: Any, *, scale: int, ignore_index: Any
    ) -> "PixelScene":
        """Lay labels over pixels.

        Raises
        ------
        HeadError
            The dimensions are others, or the labels do not fit; see `LabelRaster.over`.
        """
        if set(embedding.dims) != {"band", "y", "x"}:
            raise HeadError(f"the embedding has dimensions {embedding.dims}", "pass (band, y, x)")
        embedding = embedding.transpose("band", "y", "x")
        grid = pixel_grid(embedding, scale)
        return cls(embedding, LabelRaster.over(grid, labels, ignore_index=ignore_index), scale)

    def windows(self, edge: int) -> Iterator[tuple[slice, slice, NDArray[Any], NDArray[np.bool_]]]:
        """Give windows of `edge` tokens that hold labels: place, labels, where they are some."""
        height, width = self.embedding.shape[1:]
        for top in range(0, height, edge):
            for left in range(0, width, edge):
                rows, columns = slice(top, top + edge), slice(left, left + edge)
                inside = [
                    slice(w.start * self.scale, min(w.stop, size) * self.scale)
                    for w, size in zip((rows, columns), (height, width), strict=True)
                ]
                values, valid = self.labels.window(inside[0], inside[1])
                if valid.any():
                    yield rows, columns, values, valid


def labelled_windows(
    scenes: list[PixelScene], *, margin: int, edge: int, most: int, seed: int
) -> tuple[list[Window], NDArray[Any]]:
    """Read windows with labels, at most `most` of them at random, and the classes in them.

    Raises
    ------
    HeadError
        No pixel with data has a label.
    """
    places = [
        (i, rows, columns)
        for i, scene in enumerate(scenes)
        for rows, columns, _, _ in scene.windows(edge)
    ]
    order = list(range(len(places)))
    if len(places) > most:
        logger.warning("%d windows hold labels: learning from %d of them", len(places), most)
        order = np.random.default_rng(seed).permutation(len(places)).tolist()
    read: dict[int, tuple[NDArray[np.float32], NDArray[Any], NDArray[np.bool_]]] = {}
    for at in order:
        i, rows, columns = places[at]
        scene = scenes[i]
        tokens = read_window(scene.embedding, rows, columns, margin).astype(np.float32, copy=False)
        inner = tokens[:, margin : margin + edge, margin : margin + edge]
        present = np.isfinite(inner).all(0).repeat(scene.scale, 0).repeat(scene.scale, 1)
        height, width = scene.embedding.shape[1:]
        values, valid = scene.labels.window(
            slice(rows.start * scene.scale, min(rows.stop, height) * scene.scale),
            slice(columns.start * scene.scale, min(columns.stop, width) * scene.scale),
        )
        valid = valid & present[: valid.shape[0], : valid.shape[1]]
        if valid.any():
            read[at] = (tokens, values, valid)
        if len(read) == most:  # windows of padding or holes are none of them
            break
    found = [read[at] for at in sorted(read)]
    if not found:
        raise TooFewLabelsError(
            "no pixel has both a label and data", "check the labels and ignore_index"
        )
    classes = np.unique(np.concatenate([values[valid] for _, values, valid in found]))
    check_classes(classes)
    windows = []
    for tokens, values, valid in found:
        codes = np.full((edge * scenes[0].scale,) * 2, -1, np.int64)
        codes[: valid.shape[0], : valid.shape[1]][valid] = np.searchsorted(classes, values[valid])
        windows.append(Window(tokens, codes))
    return windows, classes


def pixel_accuracy(rule: DecoderRule, classes: NDArray[Any], scenes: list[PixelScene]) -> float:
    """Share of right labels among the pixels of scenes that have both a label and data.

    Raises
    ------
    HeadError
        There is no such pixel.
    """
    right = total = 0
    for scene in scenes:
        height, width = scene.embedding.shape[1:]
        for rows, columns, values, valid in scene.windows(8 * WINDOW):
            y = slice(rows.start, min(rows.stop, height))
            x = slice(columns.start, min(columns.stop, width))
            found = rule.classes(read_window(scene.embedding, y, x, rule.margin))
            keep = valid & (found >= 0)
            right += int((classes[found[keep]] == values[keep]).sum())
            total += int(keep.sum())
    if not total:
        raise HeadError("no pixel has both a label and data", "choose an area that has data")
    return right / total


def pixel_map(
    rule: DecoderRule, classes: NDArray[Any], embedding: xr.DataArray, *, shares: bool
) -> xr.DataArray:
    """Class, or probability of every class, of each pixel of a scene (band, y, x); lazy with it."""
    scene = embedding.transpose("band", "y", "x")
    data = apply_windows(
        scene,
        rule.probabilities if shares else rule.classes,
        margin=rule.margin,
        scale=rule.scale,
        tile=max(rule.tile, PHASE),
        leading=(classes.size,) if shares else (),
        dtype=np.float32 if shares else np.int16,
    )
    grid = pixel_grid(scene, rule.scale)
    kept = {k: c for k, c in scene.coords.items() if not {"band", "y", "x"} & set(c.dims)}
    dims = ("class", "y", "x") if shares else ("y", "x")
    mapped = xr.DataArray(data, dims=dims, coords={**kept, **grid.coords})
    return georeferenced(described(mapped, classes, scene, shares=shares), scene)
