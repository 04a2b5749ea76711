"""Embeddings of others: files of published products as features, by their decoding rules."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.errors import CompressorError


@dataclass(frozen=True)
class Rule:
    """How a product's numbers become an embedding.

    Attributes
    ----------
    dtype : str
        Type of the numbers.
    missing : int
        The number that means missing.
    decode : callable
        From numbers as float32 to values.
    source : str
        Who says so.
    """

    dtype: str
    missing: int
    decode: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    source: str


def _signed_square(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled = numbers / np.float32(127.5)
    values: NDArray[np.float32] = np.sign(scaled) * scaled**2
    return values


#: Decoding rules by the name of the product.
RULES = {
    "alphaearth": Rule(
        "int8",
        -128,
        _signed_square,
        "AlphaEarth Foundations Satellite Embedding V1: sign(q) (q / 127.5)^2, -128 is missing",
    ),
}


# Dims of embeddings on a grid, and of vectors without a place.
_DIMS = ({"y", "x", "band"}, {"sample", "band"})


def open_embedding(path: str | Path, *, rule: str | None = None) -> xr.DataArray:
    """Read an array of embeddings.

    Parameters
    ----------
    path : path
        ``.npy`` of shape (y, x, feature), or (sample, feature) of vectors without a place; a
        GeoTIFF with a band for each feature; a Zarr store with one variable of dims y, x and band
        (any order), or sample and band.
    rule : str, optional
        Name of a decoding rule (`RULES`) for a product of integers; floats need none.

    Returns
    -------
    DataArray of dims (y, x, band), or (sample, band), float32
        NaN where missing; with coordinates and CRS where the file has them.

    Raises
    ------
    CompressorError
        If the file is none of these, or integers come without a rule.
    """
    path = Path(path)
    if rule is not None and rule not in RULES:
        raise CompressorError(f"there is no rule {rule!r}", f"choose among {', '.join(RULES)}")
    try:
        array = _read(path)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise CompressorError(
            f"{path} cannot be read as embeddings ({error})", "give a .npy, .tif or .zarr"
        ) from error
    if set(array.dims) not in _DIMS:
        raise CompressorError(
            f"{path} holds dims {array.dims} of sizes {tuple(array.sizes.values())}",
            "give y, x and band, or sample and band (a .npy of shape ([y, x,] feature))",
        )
    array = array.transpose(*(d for d in ("sample", "y", "x", "band") if d in array.dims))
    numbers = array.to_numpy()
    if rule is not None:
        chosen = RULES[rule]
        if numbers.dtype != chosen.dtype:
            raise CompressorError(
                f"{path} holds {numbers.dtype}, the rule {rule!r} decodes {chosen.dtype}",
                "leave out the rule, or give the product's own file",
            )
        values = chosen.decode(numbers.astype(np.float32))
        values[(numbers == chosen.missing).any(-1)] = np.nan
    elif numbers.dtype.kind == "f":
        scale, offset = _tags(array)
        values = numbers.astype(np.float32)
        if (scale != 1).any() or (offset != 0).any():
            values = (numbers * scale + offset).astype(np.float32)
        nodata = array.attrs.get("_FillValue", array.encoding.get("_FillValue"))
        if nodata is not None and not np.isnan(nodata):
            values[(numbers == nodata).any(-1)] = np.nan
    else:
        raise CompressorError(
            f"{path} holds {numbers.dtype}, a code and not the embedding",
            f"name its decoding rule ({', '.join(RULES)}), or decode it first",
        )
    attributes = {"decoded": RULES[rule].source} if rule is not None else {}
    decoded: xr.DataArray = array.copy(data=values).assign_attrs(attributes)
    decoded.attrs.pop("_FillValue", None)  # what was missing is NaN now
    return decoded.rename(path.stem)


def _tags(array: xr.DataArray) -> tuple[Any, Any]:
    """Return what brings the numbers of a raster to its values: of all bands, or one of each."""
    found = []
    for tag, many, one in (("scale_factor", "scales", 1.0), ("add_offset", "offsets", 0.0)):
        value = array.attrs.pop(many, None)
        alone = array.attrs.pop(tag, one)
        found.append(np.asarray(alone if value is None else value, dtype=np.float64))
    return found[0], found[1]


def _read(path: Path) -> xr.DataArray:
    if path.suffix == ".npy":
        values = np.load(path, allow_pickle=False)
        dims = ("sample", "band") if values.ndim == 2 else ("y", "x", "band")
        return xr.DataArray(values, dims=dims)
    if path.suffix == ".zarr":
        dataset = xr.open_zarr(path, consolidated=False)  # of others: with or without
        for wanted in _DIMS:
            names = [n for n, v in dataset.data_vars.items() if set(v.dims) == wanted]
            if names:
                break
        if len(names) != 1:
            raise ValueError(f"{len(names)} variables are embeddings by their dims: {names}")
        loaded: xr.DataArray = dataset[names[0]].load()
        return loaded
    import rioxarray

    with warnings.catch_warnings():
        # Tags of each band are read as such.
        warnings.filterwarnings("ignore", message="(Scales|Offsets) differ across bands")
        opened: Any = rioxarray.open_rasterio(path)
    return xr.DataArray(opened)
