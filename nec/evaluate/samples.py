"""Labelled samples, of rows or of scenes, that a head is fitted to and scored on in parts."""

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nec.errors import HeadError

if TYPE_CHECKING:
    import xarray as xr

Places = NDArray[np.intp]


class Samples(Protocol):
    """What a curve draws from.

    Attributes
    ----------
    labels : numpy.ndarray
        (n,) of all samples.
    groups : numpy.ndarray
        (n,) place of each, kept together by splits.
    places : numpy.ndarray or None
        (n, 2) coordinates.
    """

    labels: NDArray[Any]
    groups: NDArray[Any]
    places: NDArray[Any] | None

    def fit(self, head: Any, at: Places) -> None:
        """Fit a head to some of the samples."""

    def score(self, head: Any, at: Places) -> float:
        """Score a fitted head on some of the samples."""


class RowSamples:
    """Rows (n, d), or anything that can be indexed along its samples.

    Parameters
    ----------
    X : numpy.ndarray, table or xarray.DataArray
        (n, d) or (sample, ...).
    y : array_like
        (n,) labels.
    groups : array_like or None
        (n,) place of each sample; each is a place of its own without. Heads whose `fit` takes
        groups get them too.
    places : array_like or None
        (n, 2) coordinates.

    Raises
    ------
    HeadError
        The lengths differ.
    """

    def __init__(
        self, X: Any, y: ArrayLike, *, groups: ArrayLike | None, places: ArrayLike | None
    ) -> None:
        self._rows, self.labels = X, np.asarray(y)
        self._given = groups is not None
        self.groups = np.arange(len(self.labels)) if groups is None else np.asarray(groups)
        self.places = None if places is None else np.asarray(places)
        told = {"labels": len(self.labels), "groups": len(self.groups)}
        if self.places is not None:
            told["places"] = len(self.places)
        if set(told.values()) != {len(X)}:
            others = ", ".join(f"{count} {name}" for name, count in told.items())
            raise HeadError(f"{len(X)} samples, {others}", "pass as many of each")

    def fit(self, head: Any, at: Places) -> None:
        """Fit a head to some of the rows."""
        options = {}
        if self._given and "groups" in signature(head.fit).parameters:
            options["groups"] = self.groups[at]
        head.fit(self._some(at), self.labels[at], **options)

    def score(self, head: Any, at: Places) -> float:
        """Score a fitted head on some of the rows."""
        return float(head.score(self._some(at), self.labels[at]))

    def _some(self, at: Places) -> Any:
        return self._rows.iloc[at] if hasattr(self._rows, "iloc") else self._rows[at]


class SceneSamples:
    """Label pixels of scenes; those that are not drawn are made NaN.

    Parameters
    ----------
    scenes : sequence of xarray.DataArray
        Embeddings (band, y, x), possibly lazy.
    labels : sequence of xarray.DataArray or numpy.ndarray
        Labels (y, x) of each, matched as `Segmenter.fit` and `BiomassRegressor.fit` match them.
    block : int
        Edge of a place, tokens, at least one label pixel.
    ignore_index : int or None
        The label that means "no label"; NaN never is one, nor is a raster's nodata value.

    Raises
    ------
    HeadError
        Labels that do not fit, or are no numbers; as many scenes as labels are not given.
    """

    def __init__(
        self,
        scenes: "Sequence[xr.DataArray]",
        labels: Sequence[Any],
        *,
        block: int,
        ignore_index: Any,
    ) -> None:
        from nec.heads.labels import LabelRaster

        if len(scenes) != len(labels):
            raise HeadError(f"{len(scenes)} scenes, {len(labels)} label maps", "pass as many")
        self._scenes = [
            s.transpose("band", "y", "x") if set(s.dims) == {"band", "y", "x"} else s
            for s in scenes
        ]
        self._maps: list[Any] = []
        found: list[tuple[NDArray[Any], ...]] = []
        for number, (scene, given) in enumerate(zip(self._scenes, labels, strict=True)):
            raster = LabelRaster.over(scene, given, ignore_index=ignore_index)
            self._maps.append(raster.values)
            y, x = _token_of_pixels(raster, scene.sizes["y"], scene.sizes["x"])
            edge = [max(block, size) for size in (_largest(y), _largest(x))]
            there = raster.valid() & (y >= 0)[:, None] & (x >= 0)[None, :]
            rows, columns = np.nonzero(there)
            at = np.flatnonzero(there)
            where = np.stack([y[rows], x[columns]], axis=1)
            group = np.stack([np.full(len(at), number), *(where // edge).T], axis=1)
            values = np.asarray(raster.values)[there]
            found.append((values, group, where, np.full(len(at), number), at))
        values, group, where, of, at = (np.concatenate(part) for part in zip(*found, strict=True))
        if values.dtype.kind not in "biuf":
            raise HeadError(f"labels of dtype {values.dtype}", "give numbers")
        self.labels, self._of, self._at = values, of, at
        self.groups = np.unique(group, axis=0, return_inverse=True)[1].ravel()
        # Scenes are apart from each other, whatever the buffer.
        self.places: NDArray[Any] | None = np.column_stack([where, of * 1e9])

    def fit(self, head: Any, at: Places) -> None:
        """Fit a head to the scenes with some of their labels."""
        head.fit(*self._with(at))

    def score(self, head: Any, at: Places) -> float:
        """Score a fitted head on some of the labels."""
        return float(head.score(*self._with(at)))

    def _with(self, at: Places) -> "tuple[list[xr.DataArray], list[Any]]":
        """Return the scenes with labels that are drawn, and the labels, NaN elsewhere."""
        scenes, maps = [], []
        for number, (scene, whole) in enumerate(zip(self._scenes, self._maps, strict=True)):
            chosen = self._at[at[self._of[at] == number]]
            if not chosen.size:
                continue
            kept = np.full(whole.size, np.nan)
            kept[chosen] = np.asarray(whole).ravel()[chosen]
            kept = kept.reshape(whole.shape)
            scenes.append(scene)
            maps.append(whole.copy(data=kept) if hasattr(whole, "coords") else kept)
        return scenes, maps


def _token_of_pixels(raster: Any, height: int, width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the token row of each label row, the column of each label column; -1 outside."""
    if not raster.coarse:
        return raster.rows, raster.columns
    out = []
    for pixels, size, count in zip(
        (raster.rows, raster.columns), raster.values.shape, (height, width), strict=True
    ):
        first = np.full(size, -1, np.int64)
        # In reverse, so that the first token of a label pixel is the one that stays.
        inside = np.flatnonzero(pixels >= 0)[::-1]
        first[pixels[inside]] = np.arange(count)[inside]
        out.append(first)
    return out[0], out[1]


def _largest(tokens: NDArray[Any]) -> int:
    """Return how many tokens a label pixel spans along an axis, at most."""
    inside = tokens[tokens >= 0]
    return int(np.diff(inside).max(initial=1)) if inside.size else 1
