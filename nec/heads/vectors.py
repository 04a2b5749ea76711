"""Rows of vectors from labelled arrays: what a head is fitted on."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.errors import HeadError
from nec.heads.labels import LabelRaster
from nec.heads.pooling import POOLINGS
from nec.heads.rules import Rows


@dataclass(frozen=True)
class Origin:
    """Which basis and which model vectors come from; None where they do not say.

    Parameters
    ----------
    basis : str or None
        Hash of the basis, from ``attrs["nec_basis"]``.
    model : str or None
        Id of the model, from ``attrs["nec_model"]``.
    bands : tuple or None
        Names of the bands, from the coordinate ``band``, or from ``attrs["nec_bands"]``.
    """

    basis: str | None = None
    model: str | None = None
    bands: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, vectors: Any) -> "Origin":
        """Read the origin of a DataArray or a table; empty for plain arrays."""
        attrs = getattr(vectors, "attrs", None)
        if not isinstance(attrs, dict):
            return cls()
        basis, model = attrs.get("nec_basis"), attrs.get("nec_model")
        bands = attrs.get("nec_bands")
        if isinstance(vectors, xr.DataArray) and "band" in vectors.indexes:
            bands = vectors["band"].values.tolist()
        return cls(
            None if basis is None else str(basis),
            None if model is None else str(model),
            None if bands is None else tuple(bands),
        )

    @classmethod
    def common(cls, origins: Sequence["Origin"]) -> "Origin":
        """Return what all of them come from; what one does not say another may.

        Raises
        ------
        HeadError
            Two differ in basis or bands.
        """
        found = cls()
        for origin in origins:
            found.check(origin, "another of the embeddings")
            found = cls(
                found.basis or origin.basis,
                found.model or origin.model,
                found.bands if origin.bands is None else origin.bands,
            )
        return found

    def check(self, other: "Origin", whose: str) -> None:
        """Refuse vectors of another basis, model or bands; pass where either does not say.

        Models of one basis are of one family: they take each other's heads.

        Raises
        ------
        HeadError
            Basis, model or bands differ from these, which are `whose`.
        """
        unsaid = self.basis is None or other.basis is None
        if unsaid and None not in (self.model, other.model) and self.model != other.model:
            raise HeadError(
                f"the embedding is of model {other.model} and {whose} of {self.model}",
                "use embeddings of the same model, or fit the head again on these",
            )
        if self.basis is not None and other.basis is not None and self.basis != other.basis:
            raise HeadError(
                f"the embedding has basis {other.basis} and {whose} basis {self.basis}",
                "use embeddings of the same model, or fit the head again on these",
            )
        same_count = self.bands and other.bands and len(self.bands) == len(other.bands)
        if same_count and self.bands != other.bands:
            raise HeadError(
                f"the embedding has bands {_listed(other.bands)} and {whose} "
                f"bands {_listed(self.bands)}",
                "take the same bands in the same order: embedding.sel(band=...)",
            )


def _listed(bands: tuple[Any, ...] | None) -> str:
    names = [str(band) for band in bands or ()]
    return ", ".join(names if len(names) <= 6 else [*names[:3], "...", names[-1]])


def sample_rows(array: xr.DataArray, *, pooling: str = "mean") -> Rows:
    """One vector for each sample: the mean over its cells or tokens that are not missing.

    Parameters
    ----------
    array : xarray.DataArray
        (sample, band), (sample, band, cell_y, cell_x) or (sample, band, y, x), eager or lazy.
    pooling : {"mean", "mean_roughness", "mean_variogram"}
        What else of the tokens, behind it; needs them. See :mod:`nec.heads.pooling`.

    Returns
    -------
    numpy.ndarray
        (sample, band), or more numbers by `pooling`; NaN for a sample of which everything is
        missing.

    Raises
    ------
    HeadError
        The dimensions are others.
    """
    place = [dim for dim in array.dims if dim not in ("sample", "band")]
    if set(array.dims) - set(place) != {"sample", "band"} or set(place) not in (
        set(),
        {"y", "x"},
        {"cell_y", "cell_x"},
    ):
        raise HeadError(
            f"an array with dimensions {array.dims} holds no samples",
            "pass (sample, band), (sample, band, cell_y, cell_x) or (sample, band, y, x); "
            "to learn from a map of labels use Segmenter",
        )
    described = POOLINGS.get(pooling)
    if described and not place:
        raise HeadError(
            f"{pooling=} needs tokens, and the array is pooled already",
            "pass ds.embedding (sample, band, y, x)",
        )
    if described:
        inside = ["band", *place]
        pooled = xr.apply_ufunc(
            described.pool,
            array if array.chunks is None else array.chunk(dict.fromkeys(inside, -1)),
            input_core_dims=[inside],
            output_core_dims=[["feature"]],
            dask="parallelized",
            dask_gufunc_kwargs={"output_sizes": {"feature": described.size(array.sizes["band"])}},
            output_dtypes=[np.float32],
        )
    else:
        pooled = (array.mean(place, skipna=True) if place else array).transpose("sample", "band")
    rows: Rows = pooled.values
    return rows


def sample_labels(array: xr.DataArray, labels: Any) -> NDArray[Any]:
    """Labels as a plain array, in the order of the samples.

    Raises
    ------
    HeadError
        The labels' own ``sample`` coordinate is not that of the vectors.
    """
    if (
        isinstance(labels, xr.DataArray)
        and "sample" in labels.coords
        and "sample" in array.coords
        and not np.array_equal(labels["sample"].values, array["sample"].values)
    ):
        raise HeadError(
            "the labels' `sample` coordinate is not that of the vectors",
            "bring them into one order: labels.sel(sample=X.sample)",
        )
    return plain_labels(labels)


def plain_labels(labels: Any) -> NDArray[Any]:
    """Labels as an array that scikit-learn takes: coordinates of stores are numpy StringDType."""
    values = np.asarray(labels)
    return np.array(values.tolist()) if values.dtype.kind == "T" else values


def scene_pairs(X: Any, y: Any) -> list[tuple[xr.DataArray, Any]] | None:
    """Pairs of embedding and labels; None where `X` is rows."""
    if isinstance(X, xr.Dataset):
        raise HeadError("got a Dataset", "pass one of its arrays: ds.embedding")
    if isinstance(X, str | Path):
        raise HeadError(f"got a path, {X}", "pass an array of the store: nec.open(path).embedding")
    if isinstance(X, xr.DataArray):
        return [(X, y)]
    if isinstance(X, Sequence) and X and isinstance(X[0], xr.DataArray):
        if not isinstance(y, Sequence) or len(X) != len(y):
            raise HeadError(f"{len(X)} embeddings", "pass a list of as many label maps")
        return list(zip(X, y, strict=True))
    return None


def labelled_rows(
    embedding: xr.DataArray,
    labels: xr.DataArray | NDArray[Any],
    *,
    ignore_index: Any,
    drawn: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> tuple[Rows, NDArray[Any]]:
    """Vectors and labels of the tokens that have both.

    A lazy embedding is read chunk by chunk: chunks without labels are not read, and only the
    labelled vectors of the others are kept.

    Parameters
    ----------
    embedding : xarray.DataArray
        (band, y, x).
    labels : xarray.DataArray or numpy.ndarray
        (y, x) of tokens or pixels; see :meth:`nec.heads.labels.LabelRaster.over`.
    ignore_index : int, str or None
        The value that means "no label".
    drawn : tuple of float
        Take the tokens whose random number, from 0 to 1, lies from one up to the other; the same
        however it is chunked.
    seed : int
        Of those numbers.

    Returns
    -------
    tuple of numpy.ndarray
        (n, band) vectors and (n,) labels; n is 0 where no token has a label.
    """
    embedding, raster, windows = _laid(embedding, labels, ignore_index)
    lazy = embedding.chunks is not None
    low, high = drawn
    # Windows are chunks. Slices of a lazy array would each look through all of its chunks.
    chunks = embedding.data.to_delayed(optimize_graph=False) if lazy else None
    parts, found = [], []
    for at, (rows, columns) in enumerate(windows):
        values, valid = raster.window(rows, columns)
        if high - low < 1:
            number = _numbers(rows, columns, embedding.sizes["x"], seed)
            valid = valid & (number >= low) & (number < high)
        if valid.any():
            if chunks is None:
                parts.append(_taken(embedding.data[:, rows, columns], valid))
            else:
                stack = chunks[:, at // chunks.shape[2], at % chunks.shape[2]].tolist()
                parts.append(_later(stack, valid))
            found.append(values[valid])
    if not parts:
        nothing = np.empty((0, embedding.sizes["band"]), embedding.dtype)
        return nothing, np.empty(0, raster.values.dtype)
    if lazy:
        from dask.base import compute

        parts = list(compute(*parts))
    return np.concatenate(parts), np.concatenate(found)


def _windows(array: xr.DataArray, dim: Hashable) -> list[slice]:
    sizes = array.chunksizes.get(dim, (array.sizes[dim],))
    stops = np.cumsum(sizes).tolist()
    return [slice(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]


def labelled_count(
    embedding: xr.DataArray, labels: xr.DataArray | NDArray[Any], *, ignore_index: Any
) -> int:
    """Count the tokens that have a label, with or without data; see `labelled_rows`."""
    _, raster, windows = _laid(embedding, labels, ignore_index)
    return sum(int(raster.window(*window)[1].sum()) for window in windows)


def _laid(
    embedding: xr.DataArray, labels: xr.DataArray | NDArray[Any], ignore_index: Any
) -> tuple[xr.DataArray, LabelRaster, list[tuple[slice, slice]]]:
    """Return an embedding (band, y, x), labels over it, and the windows of its chunks."""
    if set(embedding.dims) != {"band", "y", "x"}:
        raise HeadError(
            f"the embedding has dimensions {embedding.dims}",
            "pass (band, y, x), or a list of such arrays with a list of label maps",
        )
    embedding = embedding.transpose("band", "y", "x")
    raster = LabelRaster.over(embedding, labels, ignore_index=ignore_index)
    windows = [(r, c) for r in _windows(embedding, "y") for c in _windows(embedding, "x")]
    return embedding, raster, windows


def _numbers(rows: slice, columns: slice, width: int, seed: int) -> NDArray[np.float64]:
    """Return a uniform number for each token of a window; each row of tokens has its own."""
    return np.stack(
        [
            np.random.default_rng((seed, row)).random(width)[columns]
            for row in range(rows.start, rows.stop)
        ]
    )


def _taken(block: Rows, valid: NDArray[np.bool_]) -> Rows:
    # A copy with vectors as rows: the block itself is let go.
    return np.ascontiguousarray(block[:, valid].T)


def _later(chunks: list[Any], valid: NDArray[np.bool_]) -> Any:
    from dask.delayed import delayed

    return delayed(_taken_of_all, pure=False)(chunks, valid)


def _taken_of_all(chunks: list[Rows], valid: NDArray[np.bool_]) -> Rows:
    # Of chunks along the bands.
    return np.concatenate([_taken(chunk, valid) for chunk in chunks], axis=1)
