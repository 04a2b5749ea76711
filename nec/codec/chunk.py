"""A chunk of embeddings to bytes and back."""

import math
import struct
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nec.codec.codes import decode_codes, encode_codes
from nec.codec.coding import Coding
from nec.codec.container import (
    CODEBOOK_VERSION,
    CODES,
    MASK,
    PART_NAMES,
    PATCHES,
    REFINEMENTS,
    VERBATIM,
    assemble,
    take_apart,
)
from nec.codec.contexts import scan_of
from nec.codec.kernels import kernel
from nec.codec.mask import decode_mask, encode_mask
from nec.codec.model import Blocks, new_state
from nec.codec.partition import Partition, all_valid, blocks_of, partition_of
from nec.codec.patches import decode_patches, encode_patches
from nec.codec.rans import encode_events, open_stream, open_streams, read_bits, read_symbol
from nec.codec.reconstruction import reconstruct
from nec.codec.traversal import decode_segments
from nec.errors import ChunkError

if TYPE_CHECKING:
    from nec.codec.decisions import Decided

_COUNT = struct.Struct("<I")
NO_PATCHES: tuple[NDArray[np.int32], NDArray[np.int32]] = (
    np.full((0, 0, 0), -1, np.int32),
    np.empty((0, 0), np.int32),
)


def encode_chunk(values: NDArray[np.float32], coding: Coding) -> bytes:
    """Code a chunk.

    Parameters
    ----------
    values : ndarray of shape (sample, band, y, x), float32
        NaN is missing; a vector with any NaN is missing as a whole.
    coding : Coding
        With as many bands.

    Returns
    -------
    bytes

    Raises
    ------
    ChunkError
        If the shape does not fit or a value is infinite.
    """
    from nec.codec.decisions import Transformed
    from nec.codec.guarantee import decide_within

    if values.ndim != 4 or values.shape[1] != coding.bands:
        raise ChunkError(
            f"a chunk of shape {values.shape} does not fit {coding.bands} bands",
            "pass (sample, band, y, x)",
        )
    values = np.ascontiguousarray(values, np.float32)
    return pack_chunk(decide_within(Transformed(values, coding.block), coding), coding)


def pack_chunk(decided: "Decided", coding: Coding) -> bytes:
    """Return the bytes of a chunk whose coefficients are decided."""
    parts: list[bytes | None] = [None] * len(PART_NAMES)
    if not decided.valid.all():
        parts[MASK] = encode_mask(_rows(decided.valid, coding))
    refinement = decided.blocks.refinement[decided.blocks.coded]
    if refinement.any():
        parts[REFINEMENTS] = _pack_refinements(refinement)
    if decided.verbatim.any():
        parts[VERBATIM] = _pack_verbatim(decided)
    if decided.patches:
        parts[PATCHES] = encode_patches(decided.patches)
    if decided.coded is not None:
        parts[CODES] = encode_codes(decided.coded)
    for table, value in decided.events:
        parts.append(encode_events(table, value, coding.cumulative))
    return assemble(coding, parts)


def _rows(valid: NDArray[np.bool_], coding: Coding) -> NDArray[np.bool_]:
    """Return a mask as it is coded: from version 2 on, lone vectors stand in a row."""
    lone = coding.version >= CODEBOOK_VERSION and valid.shape[1:] == (1, 1)
    return valid.reshape(1, 1, -1) if lone else valid


def _pack_refinements(refinement: NDArray[np.int64]) -> bytes:
    """Code the refinement of every coded block: whether there is one, and which."""
    plain = min(max(round(256 * float((refinement == 0).mean())), 1), 255)
    table, value = [], []
    for r in refinement.tolist():
        table.append(0)
        value.append(int(r > 0))
        if r > 0:
            table.append(-5)
            value.append(r - 1)
    cumulative = np.array([[0, plain << 8, 1 << 16]], np.uint32)
    events = np.array(table, np.int32), np.array(value, np.int32)
    return bytes([plain]) + encode_events(*events, cumulative)


def _read_refinements(data: memoryview, coded: NDArray[np.bool_]) -> NDArray[np.int64]:
    refinement = np.zeros(coded.shape, np.int64)
    intact = len(data) > 0 and data[0] > 0
    if intact:
        cumulative = np.array([[0, data[0] << 8, 1 << 16]], np.uint32)
        intact = _decode_refinements(*open_stream(data[1:]), cumulative, coded, refinement)
    if not intact:
        raise ChunkError("the chunk's refinements do not decode", "fetch it again")
    return refinement


@kernel
def _decode_refinements(
    stream: np.uint64,
    words: NDArray[np.uint32],
    cumulative: NDArray[np.uint32],
    coded: NDArray[np.bool_],
    refinement: NDArray[np.int64],
) -> bool:
    at = 0
    for s in range(coded.shape[0]):
        for y in range(coded.shape[1]):
            for x in range(coded.shape[2]):
                if not coded[s, y, x]:
                    continue
                more, stream, at = read_symbol(stream, words, at, cumulative, 0)
                if more:
                    value, stream, at = read_bits(stream, words, at, 5)
                    refinement[s, y, x] = value + 1
    return bool(at == len(words) and stream == np.uint64(0))


def _pack_verbatim(decided: "Decided") -> bytes:
    index = np.flatnonzero(decided.verbatim)
    parts = [_COUNT.pack(len(index)), index.astype("<u4").tobytes()]
    values = np.where(decided.valid[:, None], decided.values, np.float32(np.nan))
    for i in index:
        window = _window(decided.partition, int(i))
        parts.append(np.ascontiguousarray(values[window]).astype("<f4").tobytes())
    return b"".join(parts)


def _window(partition: Partition, index: int) -> tuple[int, slice, slice, slice]:
    """Return where the box of block number `index` lies in (sample, band, y, x)."""
    s, r, c = (int(i) for i in np.unravel_index(index, partition.box.shape[:3]))
    y0, y1, x0, x1 = (int(i) for i in partition.box[s, r, c])
    return s, slice(None), slice(y0, y1), slice(x0, x1)


def _read_verbatim(
    data: memoryview, partition: Partition, bands: int
) -> dict[int, NDArray[np.float32]]:
    """Return verbatim blocks (band, y, x) by number."""
    damaged = ChunkError("the chunk's verbatim blocks do not decode", "fetch it again")
    occupied = partition.occupied.ravel()
    if len(data) < _COUNT.size:
        raise damaged
    count, at = int(_COUNT.unpack(data[: _COUNT.size])[0]), _COUNT.size
    if count > occupied.size or at + 4 * count > len(data):
        raise damaged
    blocks = {}
    for i in np.frombuffer(data[at : at + 4 * count], "<u4").tolist():
        if i >= occupied.size or not occupied[i] or i in blocks:
            raise damaged
        blocks[i] = np.empty(0, np.float32)
    at += 4 * count
    for i in blocks:
        _, _, ys, xs = _window(partition, i)
        shape = (bands, ys.stop - ys.start, xs.stop - xs.start)
        end = at + 4 * int(np.prod(shape))
        if end > len(data):
            raise damaged
        blocks[i] = np.frombuffer(data[at:end], "<f4").reshape(shape).astype(np.float32)
        at = end
    if at != len(data):
        raise damaged
    return blocks


def decode_chunk(
    data: bytes | memoryview | NDArray[np.uint8], coding: Coding, shape: tuple[int, int, int, int]
) -> NDArray[np.float32]:
    """Decode a chunk.

    Parameters
    ----------
    data : bytes
    coding : Coding
    shape : tuple of int
        (sample, band, y, x).

    Returns
    -------
    ndarray of shape `shape`, float32
        NaN where missing.

    Raises
    ------
    ChunkError
        If the bytes are damaged, of another version, or of another coding.
    """
    if shape[1] != coding.bands:
        raise ChunkError(
            f"the array has {shape[1]} bands and the coding {coding.bands}", "check zarr.json"
        )
    parts = take_apart(memoryview(data).cast("B"), coding)
    return decode_parts(parts, coding, shape)


def decode_parts(
    parts: Mapping[int, bytes | memoryview],
    coding: Coding,
    shape: tuple[int, int, int, int],
) -> NDArray[np.float32]:
    """Decode checked parts of a chunk; segments that are not given count as zero.

    Parameters
    ----------
    parts : mapping of int to bytes
        By number, as `nec.codec.container` has them: mask, refinements, verbatim blocks and codes
        all that there are, and the segments that the caller wants; with a segment, all of lower
        octaves and earlier bands.
    coding : Coding
    shape : tuple of int
        (sample, band, y, x), with as many bands as are wanted.
    """
    found = read_coefficients(parts, coding, shape)
    out = np.empty(shape, np.float32)
    reconstruct(
        found.symbols,
        found.extent,
        found.blocks,
        found.partition,
        found.valid,
        coding,
        found.patches,
        found.codes,
        out,
    )
    _room.give_back(found.symbols, found.extent)
    for i, values in found.verbatim.items():
        window = _window(found.partition, i)
        valid = found.valid[window[0], *window[2:]]
        out[window] = np.where(valid, values[: shape[1]], np.float32(np.nan))
    return out


class Coefficients(NamedTuple):
    """What the parts of a chunk hold.

    Attributes
    ----------
    valid : ndarray of shape (sample, y, x), bool
    partition : Partition
    blocks : Blocks
    verbatim : dict of int to ndarray (band, y, x)
        Blocks stored as they are, by number.
    symbols : ndarray of shape (sample, row, column, plane, edge**2), int32
        Coefficients.
    extent : ndarray of shape (sample, row, column, plane, 2), uint8
        Number of rows and columns of frequencies that hold anything.
    patches : tuple of ndarray
        Which patch each token has, or -1; and the patches.
    codes : ndarray of shape (coded block,), uint8, or None
        Of a codebook.
    """

    valid: NDArray[np.bool_]
    partition: Partition
    blocks: Blocks
    verbatim: dict[int, NDArray[np.float32]]
    symbols: NDArray[np.int32]
    extent: NDArray[np.uint8]
    patches: tuple[NDArray[np.int32], NDArray[np.int32]]
    codes: NDArray[np.uint8] | None


class _Room(threading.local):
    """Zeros for coefficients, kept by each thread: fresh memory takes as long as decoding."""

    _LARGEST = 1 << 23

    def __init__(self) -> None:
        self._zeros = np.zeros(0, np.int32)

    def take(self, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """Return zeros of a shape; they are the caller's until given back."""
        size = math.prod(shape)
        zeros, self._zeros = self._zeros, np.zeros(0, np.int32)
        if zeros.size < size:
            zeros = np.zeros(size, np.int32)
        return zeros[:size].reshape(shape)

    def give_back(self, symbols: NDArray[np.int32], extent: NDArray[np.uint8]) -> None:
        """Make zeros of coefficients that lie within an extent, and keep them."""
        if symbols.size <= self._LARGEST:
            _clear(symbols, extent, math.isqrt(symbols.shape[-1]))
            self._zeros = symbols.reshape(-1)


_room = _Room()


@kernel
def _clear(symbols: NDArray[np.int32], extent: NDArray[np.uint8], edge: int) -> None:
    samples, rows, columns, planes, _ = symbols.shape
    for s in range(samples):
        for y in range(rows):
            for x in range(columns):
                for b in range(planes):
                    here, reach = symbols[s, y, x, b], extent[s, y, x, b]
                    for u in range(reach[0]):
                        for v in range(reach[1]):
                            here[u * edge + v] = 0


def _read_blocks(
    parts: Mapping[int, bytes | memoryview], coding: Coding, shape: tuple[int, int, int]
) -> tuple[NDArray[np.bool_], Partition, Blocks, dict[int, NDArray[np.float32]]]:
    """Return mask, partition, blocks, and verbatim blocks by number, of a chunk (sample, y, x)."""
    valid, partition, blocks = all_valid(shape, coding.block)
    if parts.keys().isdisjoint((MASK, VERBATIM, REFINEMENTS)):
        return valid, partition, blocks, {}
    if MASK in parts:
        mask = decode_mask(memoryview(parts[MASK]), _rows(valid, coding).shape)
        if mask is None:
            raise ChunkError("the chunk's validity mask does not decode", "fetch it again")
        valid = mask.reshape(shape)
        partition = partition_of(valid, coding.block)
    coded = partition.occupied.copy()
    verbatim: dict[int, NDArray[np.float32]] = {}
    if VERBATIM in parts:
        verbatim = _read_verbatim(memoryview(parts[VERBATIM]), partition, coding.bands)
        coded.ravel()[list(verbatim)] = False
    refinement = np.zeros(coded.shape, np.int64)
    if REFINEMENTS in parts:
        refinement = _read_refinements(memoryview(parts[REFINEMENTS]), coded)
    return valid, partition, blocks_of(partition, coded, refinement, coding.block), verbatim


def read_coefficients(
    parts: Mapping[int, bytes | memoryview],
    coding: Coding,
    shape: tuple[int, int, int, int],
) -> Coefficients:
    """Read what checked parts of a chunk hold; arguments are those of `decode_parts`."""
    samples, bands, height, width = shape
    valid, partition, blocks, verbatim = _read_blocks(parts, coding, (samples, height, width))
    codes = None
    if CODES in parts:
        assert coding.vectors is not None
        codes = decode_codes(memoryview(parts[CODES]), coding.vectors, int(blocks.coded.sum()))
        if codes is None:
            raise ChunkError("the chunk's codes do not decode", "fetch it again")
    scan = scan_of(coding.block, partition.edge)
    # Only the planes of the groups that hold the wanted bands.
    planes = next(b for b in coding.band_groups if b >= bands)
    symbols = _room.take((*blocks.coded.shape, planes, partition.edge**2))
    extent = np.zeros((*blocks.coded.shape, planes, 2), np.uint8)
    wanted = {
        i: parts[len(PART_NAMES) + i]
        for i, segment in enumerate(coding.segments)
        if len(PART_NAMES) + i in parts and segment.first_plane < planes
    }
    if wanted:
        at = decode_segments(
            np.array([coding.segments[i] for i in wanted], np.int64),
            *open_streams([memoryview(part) for part in wanted.values()]),
            coding.cumulative,
            scan,
            blocks,
            coding.parameters,
            new_state(symbols, len(scan.octave), coding.parameters),
            extent,
        )
        if at >= 0:
            raise ChunkError(
                f"the chunk's segment {list(wanted)[at]} does not decode", "fetch it again"
            )
    patches = NO_PATCHES
    if PATCHES in parts:
        found = decode_patches(memoryview(parts[PATCHES]), valid.shape, coding.bands)
        if found is None:
            raise ChunkError("the chunk's patches do not decode", "fetch it again")
        patches = found
    return Coefficients(valid, partition, blocks, verbatim, symbols, extent, patches, codes)
