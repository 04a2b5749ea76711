"""A chunk of embeddings to bytes and back."""

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nec.codec.coding import FORMAT_VERSION, Coding
from nec.codec.contexts import LARGEST, Geometry, Parameters, geometry
from nec.codec.mask import decode_mask, encode_mask
from nec.codec.model import decode_traversal, encode_traversal, most_events
from nec.codec.rans import encode_events
from nec.codec.transform import OUTPUT_BITS, cosine_matrix, forward, integer_matrix, inverse
from nec.errors import ChunkError

# version, flags, digest of the coding; then the optional parts that the flags announce.
_HEADER = struct.Struct("<BB8s")
_COUNT = struct.Struct("<I")
_HAS_MASK, _HAS_VERBATIM = 1, 2


@njit(cache=True, nogil=True)
def _transform(
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
    matrix: NDArray[np.float64],
    coefficients: NDArray[np.float32],
) -> None:
    """Transform every block that holds a valid token.

    Missing tokens take the mean of the valid ones of their block; the margin of a chunk that
    is no multiple of the block counts as missing.
    """
    block = matrix.shape[0]
    samples, rows, columns, bands, _ = coefficients.shape
    height, width = values.shape[2:]
    tile = np.empty((bands, block, block), np.float32)
    for s in range(samples):
        for by in range(rows):
            for bx in range(columns):
                y0, x0 = by * block, bx * block
                h, w = min(block, height - y0), min(block, width - x0)
                seen = valid[s, y0 : y0 + h, x0 : x0 + w]
                count = int(seen.sum())
                if count == 0:
                    continue
                for b in range(bands):
                    total = 0.0
                    for y in range(h):
                        for x in range(w):
                            if seen[y, x]:
                                total += values[s, b, y0 + y, x0 + x]
                    mean = np.float32(total / count)
                    for y in range(block):
                        for x in range(block):
                            if y < h and x < w and seen[y, x]:
                                tile[b, y, x] = values[s, b, y0 + y, x0 + x]
                            else:
                                tile[b, y, x] = mean
                forward(tile, matrix, coefficients[s, by, bx])


@njit(cache=True, nogil=True)
def _quantise(
    coefficients: NDArray[np.float32],
    steps: NDArray[np.float32],
    coded: NDArray[np.bool_],
    verbatim: NDArray[np.bool_],
    symbols: NDArray[np.int32],
) -> None:
    """Round coded blocks to steps; those out of range move from `coded` to `verbatim`."""
    samples, rows, columns, bands, size = coefficients.shape
    for s in range(samples):
        for y in range(rows):
            for x in range(columns):
                if not coded[s, y, x]:
                    continue
                for b in range(bands):
                    step = np.float64(steps[b])
                    for p in range(size):
                        c = coefficients[s, y, x, b, p] / step
                        magnitude = np.floor(abs(c) + 0.5)
                        if not magnitude < LARGEST:
                            coded[s, y, x] = False
                            break
                        q = np.int32(magnitude)
                        symbols[s, y, x, b, p] = -q if c < 0 else q
                    if not coded[s, y, x]:
                        symbols[s, y, x] = 0
                        verbatim[s, y, x] = True
                        break


@njit(cache=True, nogil=True)
def _reconstruct(
    symbols: NDArray[np.int32],
    extent: NDArray[np.uint8],
    coded: NDArray[np.bool_],
    offsets: NDArray[np.int64],
    matrix: NDArray[np.int64],
    scale: NDArray[np.float32],
    valid: NDArray[np.bool_],
    out: NDArray[np.float32],
) -> None:
    block = matrix.shape[0]
    samples, rows, columns, bands, _ = symbols.shape
    height, width = out.shape[2:]
    tile = np.empty((bands, block, block), np.float32)
    for s in range(samples):
        for by in range(rows):
            for bx in range(columns):
                y0, x0 = by * block, bx * block
                h, w = min(block, height - y0), min(block, width - x0)
                if not coded[s, by, bx]:
                    out[s, :, y0 : y0 + h, x0 : x0 + w] = np.nan
                    continue
                inverse(symbols[s, by, bx], extent[s, by, bx], offsets, matrix, scale, tile)
                whole = bool(valid[s, y0 : y0 + h, x0 : x0 + w].all())
                for b in range(bands):
                    for y in range(h):
                        for x in range(w):
                            if whole or valid[s, y0 + y, x0 + x]:
                                out[s, b, y0 + y, x0 + x] = tile[b, y, x]
                            else:
                                out[s, b, y0 + y, x0 + x] = np.nan


def _blocks(valid: NDArray[np.bool_], block: int) -> NDArray[np.bool_]:
    """Return which blocks hold a valid token, shape (sample, row, column)."""
    margin = [(0, 0)] + [(0, -n % block) for n in valid.shape[1:]]
    padded = np.pad(valid, margin)
    s, h, w = padded.shape
    cut = padded.reshape(s, h // block, block, w // block, block)
    return np.asarray(cut.any(axis=(2, 4)), np.bool_)


class Transformed:
    """A chunk between the transform and the quantiser.

    Parameters
    ----------
    values : ndarray of shape (sample, band, y, x), float32
    block : int

    Attributes
    ----------
    valid : ndarray of shape (sample, y, x), bool
        A vector with any component missing is missing.
    coefficients : ndarray of shape (sample, row, column, band, block**2), float32

    Raises
    ------
    ChunkError
        If a value is infinite.
    """

    def __init__(self, values: NDArray[np.float32], block: int) -> None:
        if bool(np.isinf(values).any()):
            raise ChunkError(
                "the embedding holds infinities", "replace them, or set them to NaN (missing)"
            )
        self.block = block
        self.valid: NDArray[np.bool_] = np.asarray(~np.isnan(values).any(axis=1))
        self.occupied = _blocks(self.valid, block)
        self.coefficients = np.zeros(
            (*self.occupied.shape, values.shape[1], block * block), np.float32
        )
        _transform(values, self.valid, cosine_matrix(block), self.coefficients)

    def quantise(self, steps: NDArray[np.float32]) -> "Quantised":
        """Round to the nearest step."""
        symbols = np.zeros(self.coefficients.shape, np.int32)
        coded, verbatim = self.occupied.copy(), np.zeros_like(self.occupied)
        _quantise(self.coefficients, steps, coded, verbatim, symbols)
        return Quantised(self.valid, symbols, coded, verbatim)

    def decide(
        self, coding: Coding, parameters: Parameters, cost: NDArray[np.float32], scan: Geometry
    ) -> "Decided":
        """Quantise by rate and distortion, and list the events that code it.

        Parameters
        ----------
        coding : Coding
            Steps, offsets and the worth of a bit.
        parameters : Parameters
            Of the contexts.
        cost : ndarray of shape (context, symbol), float32
            Bits of every symbol; zeros where they are not known yet.
        scan : Geometry
        """
        steps = np.array(coding.steps, np.float32)
        quantised = self.quantise(steps)
        most = most_events(quantised.symbols, len(scan.edges) - 1)
        table, value = np.empty(most, np.int32), np.empty(most, np.int32)
        count = encode_traversal(
            self.coefficients,
            steps,
            coding.lagrangian,
            np.array(coding.offsets, np.int64),
            cost,
            quantised.symbols,
            quantised.coded,
            scan.order,
            scan.edges,
            scan.ring,
            *parameters,
            table,
            value,
        )
        return Decided(quantised, table[:count], value[:count])


@dataclass(frozen=True)
class Quantised:
    """A chunk between the quantiser and the entropy coder.

    Attributes
    ----------
    valid : ndarray of shape (sample, y, x), bool
    symbols : ndarray of shape (sample, row, column, band, block**2), int32
    coded : ndarray of shape (sample, row, column), bool
        Blocks whose coefficients are coded.
    verbatim : ndarray of shape (sample, row, column), bool
        Blocks too large in magnitude for their steps, stored as float32.
    """

    valid: NDArray[np.bool_]
    symbols: NDArray[np.int32]
    coded: NDArray[np.bool_]
    verbatim: NDArray[np.bool_]

    def reconstruct(
        self,
        steps: NDArray[np.float32],
        offsets: tuple[int, ...],
        out: NDArray[np.float32],
        extent: NDArray[np.uint8] | None = None,
    ) -> None:
        """Write the decoded values, NaN where missing, to `out` (sample, band, y, x).

        Verbatim blocks come out as NaN: they are the caller's.
        """
        block = round(self.symbols.shape[-1] ** 0.5)
        if extent is None:
            extent = np.full(self.symbols.shape[:4], block, np.uint8)
        _reconstruct(
            self.symbols,
            extent,
            self.coded,
            np.array(offsets, np.int64),
            integer_matrix(block),
            steps * np.float32(2.0**-OUTPUT_BITS),
            self.valid,
            out,
        )


class Decided(NamedTuple):
    """A chunk as decided, and the events (table, value) that code it."""

    quantised: Quantised
    table: NDArray[np.int32]
    value: NDArray[np.int32]


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
    if values.ndim != 4 or values.shape[1] != coding.bands:
        raise ChunkError(
            f"a chunk of shape {values.shape} does not fit {coding.bands} bands",
            "pass (sample, band, y, x)",
        )
    values = np.ascontiguousarray(values, np.float32)
    transformed = Transformed(values, coding.block)
    scan = geometry(coding.block)
    quantised, table, value = transformed.decide(coding, coding.parameters, coding.cost, scan)
    flags, parts = 0, []
    if not quantised.valid.all():
        flags |= _HAS_MASK
        mask = encode_mask(quantised.valid)
        parts += [_COUNT.pack(len(mask)), mask.astype("<u4").tobytes()]
        values = np.where(quantised.valid[:, None], values, np.float32(np.nan))
    if quantised.verbatim.any():
        flags |= _HAS_VERBATIM
        index = np.flatnonzero(quantised.verbatim)
        parts += [_COUNT.pack(len(index)), index.astype("<u4").tobytes()]
        parts += [
            np.ascontiguousarray(_block_of(values, quantised.verbatim.shape, int(i), coding.block))
            .astype("<f4")
            .tobytes()
            for i in index
        ]
    words = encode_events(table, value, coding.cumulative)
    header = _HEADER.pack(FORMAT_VERSION, flags, coding.digest)
    return b"".join([header, *parts, words.astype("<u4").tobytes()])


def _block_of(
    values: NDArray[np.float32], grid: tuple[int, ...], index: int, block: int
) -> NDArray[np.float32]:
    """Return the view (band, y, x) of block number `index` of a grid of blocks."""
    s, y, x = (int(i) for i in np.unravel_index(index, grid))
    return values[s, :, y * block : (y + 1) * block, x * block : (x + 1) * block]


class _Reader:
    """A cursor over the bytes of a chunk that names what is cut short."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, size: int, what: str) -> memoryview:
        if size < 0 or self.at + size > len(self.data):
            raise ChunkError(
                f"the chunk ends within its {what} ({len(self.data)} bytes)", "fetch it again"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def count(self, what: str) -> int:
        return int(_COUNT.unpack(self.take(_COUNT.size, what))[0])

    def words(self, count: int, what: str) -> NDArray[np.uint32]:
        return np.frombuffer(self.take(4 * count, what), "<u4").astype(np.uint32)


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
    reader = _Reader(memoryview(data).cast("B"))
    version, flags, digest = _HEADER.unpack(reader.take(_HEADER.size, "header"))
    if version != FORMAT_VERSION:
        raise ChunkError(
            f"the chunk is of format version {version}, this package reads {FORMAT_VERSION}",
            "install a release of nec that reads it",
        )
    if digest != coding.digest:
        raise ChunkError(
            f"the chunk was coded with tables {digest.hex()}, zarr.json holds "
            f"{coding.digest.hex()}",
            "the chunk belongs to another store: fetch it again",
        )
    if flags & ~(_HAS_MASK | _HAS_VERBATIM):
        raise ChunkError(f"the chunk has unknown flags {flags:#x}", "fetch it again")
    samples, bands, height, width = shape
    if bands != coding.bands:
        raise ChunkError(
            f"the array has {bands} bands and the coding {coding.bands}", "check zarr.json"
        )
    valid = np.ones((samples, height, width), np.bool_)
    if flags & _HAS_MASK:
        words = reader.words(reader.count("mask"), "mask")
        mask = decode_mask(words, (samples, height, width))
        if mask is None:
            raise ChunkError("the chunk's validity mask does not decode", "fetch it again")
        valid = mask
    coded = _blocks(valid, coding.block)
    out = np.empty(shape, np.float32)
    verbatim: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    if flags & _HAS_VERBATIM:
        for i in reader.words(reader.count("verbatim blocks"), "verbatim blocks"):
            if i >= coded.size or not coded.flat[i]:
                raise ChunkError(f"the chunk has no block {i} to store verbatim", "fetch it again")
            coded.flat[i] = False
            target = _block_of(out, coded.shape, int(i), coding.block)
            raw = reader.take(4 * target.size, "verbatim blocks")
            verbatim.append((target, np.frombuffer(raw, "<f4").reshape(target.shape)))
    rest = len(reader.data) - reader.at
    if rest % 4:
        raise ChunkError("the chunk's stream is no whole number of words", "fetch it again")
    words = reader.words(rest // 4, "stream")
    scan = geometry(coding.block)
    symbols = np.zeros((*coded.shape, bands, coding.block**2), np.int32)
    extent = np.zeros(symbols.shape[:4], np.uint8)
    intact = decode_traversal(
        words,
        coded,
        scan.order,
        scan.edges,
        scan.ring,
        *coding.parameters,
        coding.cumulative,
        symbols,
        extent,
    )
    if not intact:
        raise ChunkError("the chunk's stream does not decode", "fetch it again")
    Quantised(valid, symbols, coded, ~coded).reconstruct(
        np.array(coding.steps, np.float32), coding.offsets, out, extent
    )
    for target, values in verbatim:
        target[...] = values
    return out
