"""The codec as Zarr v3 sees it: ``{"name": "nec", "configuration": {...}}``."""

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec

from nec.codec.coding import Coding
from nec.errors import ChunkError

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

_CODINGS: dict[tuple[Any, ...], Coding] = {}


@dataclass(frozen=True)
class NecCodec(ArrayBytesCodec):
    """Array-to-bytes codec for embeddings.

    The array is (band, y, x), (time, band, y, x) or (sample, band, y, x) in float32, NaN where
    missing; also (sample, band), as single tokens. A chunk holds all bands.

    Parameters
    ----------
    coding : Coding
        Steps, contexts and tables.
    """

    coding: Coding

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read ``{"name": "nec", "configuration": {...}}``.

        Raises
        ------
        ChunkError
            If the configuration is unknown or damaged.
        """
        configuration = data.get("configuration")
        if data.get("name") != "nec" or not isinstance(configuration, dict):
            raise ChunkError(f"{data.get('name')!r} is not a configuration of the nec codec")
        return cls(Coding.from_dict(configuration))

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"name": "nec", "configuration": {...}}``."""
        return {"name": "nec", "configuration": self.coding.to_dict()}

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled with its tables by every task: the other side compiles each coding once. What
        # encoders alone heed is not in the digest, and the falloff not even in the configuration.
        coding = self.coding
        heeded = (coding.lagrangian, coding.min_cosine, coding.falloff)
        return _unpickled, (coding.digest.hex(), heeded, coding.to_dict())

    def encode_array(self, values: NDArray[np.float32]) -> bytes:
        """Code one chunk of the array; see `nec.codec.chunk.encode_chunk`."""
        from nec.codec.chunk import encode_chunk

        values = np.asarray(values)
        return encode_chunk(values.reshape(_as_samples(values.shape)), self.coding)

    def decode_array(
        self, data: bytes | memoryview | NDArray[np.uint8], shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Decode one chunk of the array; see `nec.codec.chunk.decode_chunk`."""
        from nec.codec.chunk import decode_chunk

        return decode_chunk(data, self.coding, _as_samples(shape)).reshape(shape)

    def _encode_sync(self, chunk_array: "NDBuffer", chunk_spec: "ArraySpec") -> "Buffer | None":
        data = self.encode_array(chunk_array.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(data)

    def _decode_sync(self, chunk_bytes: "Buffer", chunk_spec: "ArraySpec") -> "NDBuffer":
        values = self.decode_array(chunk_bytes.as_numpy_array(), chunk_spec.shape)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(values)

    async def _encode_single(
        self, chunk_array: "NDBuffer", chunk_spec: "ArraySpec"
    ) -> "Buffer | None":
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)

    async def _decode_single(self, chunk_bytes: "Buffer", chunk_spec: "ArraySpec") -> "NDBuffer":
        # The kernels hold no lock: off the event loop, chunks decode on all cores.
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Check that the array is float32 with this coding's bands.

        Raises
        ------
        ChunkError
            If it is not.
        """
        if dtype.to_native_dtype() != np.float32:
            raise ChunkError(f"the array is {dtype}, the nec codec holds float32", "convert it")
        bands = _as_samples(shape)[1]
        if bands != self.coding.bands:
            raise ChunkError(
                f"the array has {bands} bands, the coding {self.coding.bands}",
                "choose the coding that was fitted to this array",
            )
        chunk = getattr(chunk_grid, "chunk_shape", None)
        if chunk is not None and _as_samples(chunk)[1] != bands:
            raise ChunkError(
                f"chunks of shape {tuple(chunk)} hold {_as_samples(chunk)[1]} of {bands} bands",
                "take chunks of all bands",
            )

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: "ArraySpec") -> int:
        """Sizes are not known in advance."""
        raise NotImplementedError


def _unpickled(
    digest: str, heeded: tuple[float, float, float], configuration: dict[str, Any]
) -> NecCodec:
    key = (digest, *heeded)
    if key not in _CODINGS:
        _, _, falloff = heeded
        _CODINGS[key] = replace(Coding.from_dict(configuration), falloff=falloff)
    return NecCodec(_CODINGS[key])


def _as_samples(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the shape as (sample, band, y, x)."""
    if len(shape) == 2:
        return (shape[0], shape[1], 1, 1)
    if len(shape) == 3:
        return (1, shape[0], shape[1], shape[2])
    if len(shape) == 4:
        return (shape[0], shape[1], shape[2], shape[3])
    raise ChunkError(
        f"an array of shape {shape} has no (band, y, x)",
        "the nec codec holds (sample, band), (band, y, x) or (time | sample, band, y, x)",
    )
