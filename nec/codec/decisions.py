"""The encoder's side of a chunk: transform, quantise, and decide by rate and distortion."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nec.codec.codes import Coded, choose_codes
from nec.codec.coding import Coding
from nec.codec.contexts import (
    FLAG_NEIGHBOURS,
    LARGEST,
    NEIGHBOURS,
    Scan,
    scan_of,
)
from nec.codec.encoding import Events, Trace, encode_segment
from nec.codec.kernels import kernel
from nec.codec.model import FULL, Blocks, State, magnitude_at, new_state, tile_rows
from nec.codec.partition import Partition, blocks_of, partition_of
from nec.codec.transform import cosine_matrices, forward
from nec.errors import ChunkError


@kernel
def _transform(  # noqa: PLR0912 - one loop nest
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
    box: NDArray[np.int64],
    matrices: NDArray[np.float32],
    plane: NDArray[np.float32],
    scratch: NDArray[np.float32],
    coefficients: NDArray[np.float32],
) -> None:
    """Transform every box that holds a valid token; missing ones take the mean of the valid."""
    samples, rows, columns, bands, _ = coefficients.shape
    for s in range(samples):
        for r in range(rows):
            for c in range(columns):
                y0, y1, x0, x1 = box[s, r, c]
                if y1 == 0:
                    continue
                height, width = y1 - y0, x1 - x0
                seen = valid[s, y0:y1, x0:x1]
                count = int(seen.sum())
                whole = count == height * width
                for b in range(bands):
                    for y in range(height):
                        for x in range(width):
                            plane[y, x] = values[s, b, y0 + y, x0 + x]
                    if not whole:
                        total = 0.0
                        for y in range(height):
                            for x in range(width):
                                if seen[y, x]:
                                    total += plane[y, x]
                        mean = np.float32(total / count)
                        for y in range(height):
                            for x in range(width):
                                if not seen[y, x]:
                                    plane[y, x] = mean
                    out = coefficients[s, r, c, b]
                    forward(plane, height, width, matrices[width], matrices[height], scratch, out)


@kernel
def _quantise(
    coefficients: NDArray[np.float32],
    steps: NDArray[np.float32],
    scan: Scan,
    blocks: Blocks,
    verbatim: NDArray[np.bool_],
    symbols: NDArray[np.int32],
    energy: NDArray[np.uint8],
) -> None:
    """Round coded blocks to steps; those out of range move from `coded` to `verbatim`.

    `energy` becomes the sums of magnitudes of the tiles.
    """
    samples, rows, columns, bands, size = coefficients.shape
    tiles = energy.shape[4]
    for s in range(samples):
        for y in range(rows):
            for x in range(columns):
                if not blocks.coded[s, y, x]:
                    continue
                finer = 2.0 ** (blocks.refinement[s, y, x] / 2)
                height, width = blocks.height[s, y, x], blocks.width[s, y, x]
                for b in range(bands):
                    scale = finer / np.float64(steps[b])
                    wave, found = coefficients[s, y, x, b], symbols[s, y, x, b]
                    beyond = 0
                    for p in range(size):
                        c = wave[p] * scale
                        magnitude = np.floor(abs(c) + 0.5)
                        beyond += 0 if magnitude < LARGEST else 1
                        q = np.int32(min(magnitude, LARGEST))
                        found[p] = -q if c < 0 else q
                    if beyond > 0:
                        blocks.coded[s, y, x] = False
                        symbols[s, y, x] = 0
                        energy[s, y, x] = 0
                        verbatim[s, y, x] = True
                        break
                    for t in range(1, tiles):
                        octave = scan.octave[t]
                        top, bottom, turn, far, near, end = tile_rows(
                            scan, t, octave, height, width
                        )
                        total = np.int64(0)
                        for u in range(top, bottom):
                            line = u << scan.bits
                            for v in range(far if u < turn else near, end):
                                total += magnitude_at(found, line + v)
                        energy[s, y, x, b, t] = FULL if total > FULL else total


class Decided(NamedTuple):
    """A chunk between the quantiser and the entropy coder.

    Attributes
    ----------
    values : ndarray of shape (sample, band, y, x), float32
    valid : ndarray of shape (sample, y, x), bool
    partition : Partition
    blocks : Blocks
    verbatim : ndarray of shape (sample, row, column), bool
        Blocks stored as float32: too large in magnitude for their steps, or beyond refinement.
    state : State
        After everything is coded: coefficients, and what was seen of them.
    events : list of Events
        What codes each segment.
    trace : Trace
        What the contexts saw; of size 0 unless it was asked for.
    patches : mapping of int to ndarray
        Corrections by token number in the chunk: half steps of every band.
    coded : Coded or None
        Codes of coded blocks, where there is a codebook.
    """

    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    partition: Partition
    blocks: Blocks
    verbatim: NDArray[np.bool_]
    state: State
    events: list[Events]
    trace: Trace
    patches: Mapping[int, NDArray[np.int64]]
    coded: Coded | None = None

    @property
    def symbols(self) -> NDArray[np.int32]:
        """Coefficients, shape (sample, row, column, band, edge**2)."""
        return self.state.symbols


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
    coefficients : ndarray of shape (sample, row, column, band, edge**2), float32
        `edge` is that of the partition.

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
        self.values = values
        self.valid: NDArray[np.bool_] = np.asarray(~np.isnan(values).any(axis=1))
        self.partition = partition_of(self.valid, block)
        edge = self.partition.edge
        shape = (*self.partition.box.shape[:3], values.shape[1], edge * edge)
        self.coefficients = np.zeros(shape, np.float32)
        plane = np.empty((edge, edge), np.float32)
        scratch = np.empty((5 + edge // 2, edge), np.float32)
        _transform(
            values,
            self.valid,
            self.partition.box,
            cosine_matrices(edge),
            plane,
            scratch,
            self.coefficients,
        )

    def decide(
        self,
        coding: Coding,
        *,
        refinement: NDArray[np.int64] | None = None,
        verbatim: NDArray[np.bool_] | None = None,
        trace: bool = False,
    ) -> Decided:
        """Quantise by rate and distortion, and list the events that code it.

        Parameters
        ----------
        coding : Coding
            Steps, contexts and costs.
        refinement : ndarray of shape (sample, row, column), int64, optional
            Halvings of the squared step; none by default.
        verbatim : ndarray of shape (sample, row, column), bool, optional
            Blocks to store as they are.
        trace : bool
            Record what the contexts saw.
        """
        occupied = self.partition.occupied
        verbatim = np.zeros_like(occupied) if verbatim is None else verbatim.copy()
        if refinement is None:
            refinement = np.zeros(occupied.shape, np.int64)
        blocks = blocks_of(self.partition, occupied & ~verbatim, refinement, self.block)
        scan = scan_of(self.block, self.partition.edge)
        steps = coding.step_values
        symbols = np.zeros(self.coefficients.shape, np.int32)
        state = new_state(symbols, len(scan.octave), coding.parameters)
        coded, waves = None, self.coefficients
        if coding.vectors is not None and blocks.coded.any():
            at, r = blocks.coded, blocks.refinement[blocks.coded]
            waves = waves.copy()
            lone = np.ascontiguousarray(waves[at][..., 0])
            coded = choose_codes(lone, r, coding.vectors, steps, coding.lagrangian)
            for finer in np.unique(r).tolist():
                own = r == finer
                near = coding.vectors.values(steps, finer)[coded.codes[own]]
                lone[own] = (lone[own] - near).astype(np.float32)
            waves[at] = lone[..., None]
        _quantise(waves, steps, scan, blocks, verbatim, state.symbols, state.energy)
        if coded is not None and len(coded.codes) > blocks.coded.sum():
            # Codes follow each other: without those that are out of range they are others.
            return self.decide(coding, refinement=refinement, verbatim=verbatim, trace=trace)
        # A flag a tile; a symbol, three of an escape, two of low bits and a sign a value.
        most = state.energy.size + 7 * state.symbols.size
        if trace:
            tiles, coefficients = state.energy.size, state.symbols.size
        else:
            tiles = coefficients = 0
        record = Trace(
            np.empty((coefficients, NEIGHBOURS), np.float32),
            np.empty((coefficients, 2), np.int32),
            np.empty((tiles, FLAG_NEIGHBOURS), np.float32),
            np.empty((tiles, 2), np.int32),
            np.zeros(2, np.int64),
            np.zeros(NEIGHBOURS, np.int64),
        )
        buffer = Events(np.empty(most, np.int32), np.empty(most, np.int32))
        octaves = np.arange(coding.octaves)
        lagrangians = coding.lagrangian * coding.falloff**octaves
        events = []
        for segment in coding.segments:
            count = encode_segment(
                segment,
                waves,
                steps,
                lagrangians,
                coding.offset_values,
                coding.cost,
                scan,
                blocks,
                coding.parameters,
                state,
                buffer,
                record,
            )
            events.append(Events(buffer.table[:count].copy(), buffer.value[:count].copy()))
        return Decided(
            self.values,
            self.valid,
            self.partition,
            blocks,
            verbatim,
            state,
            events,
            record,
            {},
            coded,
        )
