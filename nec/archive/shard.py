"""The bytes of chunks and shards: assembled and taken apart by ourselves.

A shard is what Zarr's `sharding_indexed` reads: inner chunks, then an index of (offset, length)
as little-endian uint64, and a CRC-32C of the index. Missing chunks have both set to 2**64 - 1.
"""

from collections.abc import Callable, Iterator

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from nec.archive.layout import ArrayLayout
from nec.errors import StoreError

_ABSENT = 2**64 - 1
# Bytes of a CRC-32C, at the end of the index and of every chunk.
CRC = 4

Encode = Callable[[NDArray[np.float32]], bytes]
Decode = Callable[[bytes, tuple[int, ...]], NDArray[np.float32]]
Span = tuple[int, int]


def with_checksum(data: bytes) -> bytes:
    """Append the CRC-32C that Zarr's `crc32c` codec expects."""
    return data + int(google_crc32c.value(data)).to_bytes(CRC, "little")


def _checksum_holds(data: bytes) -> bool:
    stored = int.from_bytes(data[-CRC:], "little")
    return len(data) > CRC and int(google_crc32c.value(data[:-CRC])) == stored


def encode_object(array: ArrayLayout, values: NDArray[np.float32], encode: Encode) -> bytes | None:
    """Code a task's values into the bytes of its object.

    Parameters
    ----------
    array : ArrayLayout
        The array.
    values : ndarray of float32
        At most one object's values; what lacks at the far edges is taken as missing.
        NaN is missing.
    encode : callable
        Codes one chunk of `array.chunk`'s shape.

    Returns
    -------
    bytes or None
        None where everything is missing: such an object is not stored.
    """
    chunks: dict[tuple[int, ...], bytes] = {}
    for index in np.ndindex(array.chunks_per_object):
        part = values[
            tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, array.chunk, strict=True))
        ]
        if part.size == 0 or np.isnan(part).all():
            continue
        if part.shape != array.chunk:
            # Zarr stores edge chunks full size.
            gaps = [(0, c - s) for c, s in zip(array.chunk, part.shape, strict=True)]
            part = np.pad(part, gaps, constant_values=np.nan)
        chunks[index] = with_checksum(encode(np.ascontiguousarray(part, dtype=np.float32)))
    if not chunks:
        return None
    if array.shard is None:
        return next(iter(chunks.values()))
    entries = np.full((*array.chunks_per_object, 2), _ABSENT, dtype="<u8")
    offset = 0
    for index, chunk in chunks.items():
        entries[index] = (offset, len(chunk))
        offset += len(chunk)
    return b"".join(chunks.values()) + with_checksum(entries.tobytes())


def chunks_of(array: ArrayLayout, data: bytes) -> Iterator[tuple[tuple[int, ...], bytes | None]]:
    """Take an object apart: index of each chunk that it holds, and the chunk without its checksum.

    None in place of the bytes of a chunk that does not match its checksum.

    Raises
    ------
    StoreError
        The shard's index is damaged (or the object cut short), so no chunk can be found.
    """
    size = index_size(array)
    for index, (start, stop) in read_index(array, data[len(data) - size :], len(data)).items():
        chunk = data[start:stop]
        inside = stop <= len(data) - size
        yield index, chunk[:-CRC] if inside and _checksum_holds(chunk) else None


def index_size(array: ArrayLayout) -> int:
    """Bytes that the index takes at the end of an object; 0 of an array without shards."""
    if array.shard is None:
        return 0
    return 16 * int(np.prod(array.chunks_per_object)) + CRC


def read_index(array: ArrayLayout, tail: bytes, size: int) -> dict[tuple[int, ...], Span]:
    """Read the index of an object from its last `index_size` bytes.

    Parameters
    ----------
    array : ArrayLayout
        The array.
    tail : bytes
        The index.
    size : int
        Bytes of the whole object.

    Returns
    -------
    dict of tuple of int to (int, int)
        First and last + 1 byte of each chunk that the object holds, its checksum included; not
        yet checked to lie inside of the object.

    Raises
    ------
    StoreError
        The index is damaged.
    """
    if array.shard is None:
        return {(0,) * len(array.shape): (0, size)}
    if len(tail) < index_size(array) or not _checksum_holds(tail):
        msg = f"index of the shard does not match its checksum ({size:,} bytes)"
        raise StoreError(msg, "the shard is cut short or damaged; write it again")
    entries = np.frombuffer(tail[:-CRC], dtype="<u8").reshape(*array.chunks_per_object, 2)
    spans = {}
    for index in np.ndindex(array.chunks_per_object):
        offset, length = (int(number) for number in entries[index])
        if not offset == length == _ABSENT:
            spans[index] = (offset, offset + length)
    return spans


def decode_object(
    array: ArrayLayout, data: bytes, region: tuple[int, ...], decode: Decode
) -> NDArray[np.float32]:
    """Decode an object to a task's part of the array, NaN where missing.

    Raises
    ------
    StoreError
        A chunk or the index is damaged.
    """
    values = np.full(array.object_shape, np.nan, np.float32)
    for index, chunk in chunks_of(array, data):
        if chunk is None:
            raise StoreError(f"chunk {index} does not match its checksum", "write it again")
        at = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, array.chunk, strict=True))
        values[at] = decode(chunk, array.chunk)
    return values[tuple(slice(size) for size in region)]


def damage(array: ArrayLayout, data: bytes) -> list[str]:
    """Say what is wrong with an object's own checksums, in words; empty where all hold."""
    try:
        broken = [index for index, chunk in chunks_of(array, data) if chunk is None]
    except StoreError as error:
        return [error.what]
    if array.shard is None:
        return ["chunk does not match its checksum"] if broken else []
    return [f"chunk {index} of the shard does not match its checksum" for index in broken]
