"""Test vectors of a store: a coded chunk of each array and its values, to try any reader on."""

from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from nec.codec import NecCodec
from nec.errors import ChunkError

FOLDER = "nec/vectors"
# Tokens along y and x, the one that is missing, and the size of variations in steps: of a band,
# along y, along x, of a token.
_SHAPE, _MISSING, _SIZES = (5, 4), (2, 1), (3.0, 2.0, 2.0, 1.0)


def make_vector(codec: NecCodec) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Code a small field of noise around what the coding expects.

    Parameters
    ----------
    codec : NecCodec
        Of an array; it alone decides what comes out.

    Returns
    -------
    chunk : ndarray of shape (byte,), uint8
        The coded bytes, without Zarr's checksum.
    values : ndarray of shape (1, band, y, x), float32
        What they decode to; one token is missing, NaN.
    """
    coding = codec.coding
    rng = np.random.default_rng(0)
    height, width = _SHAPE
    shapes = ((1, 1), (height, 1), (1, width), _SHAPE)
    # The DC of a whole block is its mean times its edge.
    field = coding.parameters.mean[:, None, None] / coding.block + sum(
        size * rng.normal(size=(coding.bands, *shape))
        for size, shape in zip(_SIZES, shapes, strict=True)
    )
    values = (field * coding.step_values[:, None, None]).astype(np.float32)[None]
    values[..., *_MISSING] = np.nan
    data = codec.encode_array(values)
    return np.frombuffer(data, np.uint8), codec.decode_array(data, values.shape)


def check_vector(store: Path, name: str, codec: NecCodec) -> str | None:
    """Decode the stored chunk of one array and compare with its stored values, bit for bit.

    Parameters
    ----------
    store : Path
        The store.
    name : str
        Of the array.
    codec : NecCodec
        Of the array.

    Returns
    -------
    str or None
        What is wrong, naming the array; None where nothing is.
    """
    try:
        chunk, stored = (
            np.asarray(zarr.open_array(store / FOLDER / name / part, mode="r")[...])
            for part in ("chunk", "values")
        )
    except Exception as error:  # whatever Zarr's codecs make of damage
        return f"the test vector of {name} cannot be read: {error}"
    try:
        decoded = codec.decode_array(chunk.tobytes(), stored.shape)
    except ChunkError as error:
        return f"the test vector of {name} does not decode: {error.what}"
    missing = np.isnan(stored)
    same = np.array_equal(np.isnan(decoded), missing) and np.array_equal(
        np.where(missing, 0, decoded).view(np.uint32), np.where(missing, 0, stored).view(np.uint32)
    )
    if same:
        return None
    return (
        f"the test vector of {name} decodes to other values than are stored: "
        f"this installation does not read {name} as it was written"
    )
