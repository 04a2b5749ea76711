"""From decoded coefficients to values: the inverse transform of every box, patches, blanks."""

import numpy as np
from numpy.typing import NDArray

from nec.codec.codebook import Codebook
from nec.codec.coding import Coding
from nec.codec.kernels import kernel
from nec.codec.model import Blocks
from nec.codec.partition import Partition
from nec.codec.transform import (
    OUTPUT_BITS,
    Scratch,
    fits,
    integer_matrices,
    inverse,
    largest_factors,
    scratch,
)


@kernel
def _is_patched(patch_of: NDArray[np.int32]) -> bool:
    """Return whether any token has a patch."""
    for y in range(patch_of.shape[0]):
        for x in range(patch_of.shape[1]):
            if patch_of[y, x] >= 0:
                return True
    return False


@kernel
def _reconstruct(
    symbols: NDArray[np.int32],
    extent: NDArray[np.uint8],
    blocks: Blocks,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    box: NDArray[np.int64],
    offsets: NDArray[np.int64],
    matrices: NDArray[np.int32],
    largest: NDArray[np.int64],
    scale: NDArray[np.float32],
    root: np.float32,
    patch_of: NDArray[np.int32],
    patches: NDArray[np.int64],
    narrow: Scratch,
    wide: Scratch,
    out: NDArray[np.float32],
) -> None:
    """Write the decoded values of coded blocks; all else is left."""
    block = matrices.shape[2]
    samples, bands = out.shape[:2]
    for s in range(samples):
        for r in range(len(rows) - 1):
            for c in range(len(columns) - 1):
                if not blocks.coded[s, r, c]:
                    continue
                y0, y1, x0, x1 = box[s, r, c]
                height, width = y1 - y0, x1 - x0
                down, across = matrices[height], matrices[width]
                refinement = blocks.refinement[s, r, c]
                finer = np.float32(2.0 ** -(refinement >> 1))
                # A slice of one sample: there is nothing to take a sample from without patches.
                patch = patch_of[s : s + 1, y0:y1, x0:x1]
                patched = len(patches) > 0 and _is_patched(patch_of[s, y0:y1, x0:x1])
                for b in range(bands):
                    k, m = np.int64(extent[s, r, c, b, 0]), np.int64(extent[s, r, c, b, 1])
                    if k == 0 and not patched:
                        for y in range(y0, y1):
                            out[s, b, y, x0:x1] = 0
                        continue
                    factor = scale[b] * finer
                    if refinement & 1:
                        factor = factor * root
                    here = symbols[s, r, c, b]
                    total = np.int64(0)
                    for u in range(k):
                        for v in range(m):
                            total += abs(here[u * block + v])
                    if not patched and fits(total, largest[height], largest[width]):
                        inverse(
                            here,
                            k,
                            m,
                            height,
                            width,
                            offsets,
                            down,
                            across,
                            narrow,
                            factor,
                            False,
                            patch,
                            patches,
                            b,
                            out[s, b],
                            y0,
                            x0,
                        )
                    else:
                        inverse(
                            here,
                            k,
                            m,
                            height,
                            width,
                            offsets,
                            down,
                            across,
                            wide,
                            factor,
                            patched,
                            patch,
                            patches,
                            b,
                            out[s, b],
                            y0,
                            x0,
                        )


@kernel
def _blank(
    valid: NDArray[np.bool_],
    coded: NDArray[np.bool_],
    box: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Set the missing tokens of coded boxes to NaN; most boxes have none."""
    for s in range(coded.shape[0]):
        for r in range(coded.shape[1]):
            for c in range(coded.shape[2]):
                if not coded[s, r, c]:
                    continue
                y0, y1, x0, x1 = box[s, r, c]
                missing = 0
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        missing += 0 if valid[s, y, x] else 1
                if missing == 0:
                    continue
                for b in range(out.shape[1]):
                    for y in range(y0, y1):
                        for x in range(x0, x1):
                            if not valid[s, y, x]:
                                out[s, b, y, x] = np.nan


def _added(
    patches: tuple[NDArray[np.int32], NDArray[np.int32]],
    codes: NDArray[np.uint8] | None,
    blocks: Blocks,
    partition: Partition,
    valid: NDArray[np.bool_],
    codebook: Codebook | None,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return what is added to single tokens: which row each takes, or -1; and rows by band.

    Rows are in 2**-OUTPUT_BITS of a step: patches, and vectors of a codebook.
    """
    patch_of, steps = patches
    rows = steps.astype(np.int64) << (OUTPUT_BITS - 1)
    if codebook is None:
        return patch_of, rows
    centres = np.zeros((int(blocks.coded.sum()), codebook.centres.shape[1]), np.int64)
    codes = np.zeros(len(centres), np.uint8) if codes is None else codes
    refinement = blocks.refinement[blocks.coded]
    for r in np.unique(refinement):
        own = refinement == r
        centres[own] = codebook.refined(int(r))[codes[own]]
    # With a codebook, a block is a token.
    sample, row, column = np.nonzero(blocks.coded)
    box = partition.box[sample, row, column]
    row_of = np.full(valid.shape, -1, np.int32)
    row_of[sample, box[:, 0], box[:, 2]] = np.arange(len(centres))
    if len(rows):
        both = (patch_of >= 0) & (row_of >= 0)
        centres[row_of[both]] += rows[patch_of[both]]
    return row_of, centres


def reconstruct(
    symbols: NDArray[np.int32],
    extent: NDArray[np.uint8],
    blocks: Blocks,
    partition: Partition,
    valid: NDArray[np.bool_],
    coding: Coding,
    patches: tuple[NDArray[np.int32], NDArray[np.int32]],
    codes: NDArray[np.uint8] | None,
    out: NDArray[np.float32],
) -> None:
    """Write decoded values to `out` (sample, band, y, x): NaN where missing or not coded."""
    if not (valid.all() and blocks.coded.all()):
        out[:] = np.nan
    _reconstruct(
        symbols,
        extent,
        blocks,
        partition.rows,
        partition.columns,
        partition.box,
        coding.offset_values,
        integer_matrices(partition.edge),
        largest_factors(partition.edge),
        coding.step_values[: out.shape[1]] * np.float32(2.0**-OUTPUT_BITS),
        np.float32(np.sqrt(0.5)),
        *_added(patches, codes, blocks, partition, valid, coding.vectors),
        scratch(partition.edge, np.int32),
        scratch(partition.edge, np.int64),
        out,
    )
    if not valid.all():
        _blank(valid, blocks.coded, partition.box, out)
