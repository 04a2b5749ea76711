"""The token grid: phase kept, shards shared, windows that cover the scene."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from nec.archive import TokenGrid
from nec.errors import StoreError

PIXELS = st.sampled_from([0.5, 3.0, 10.0, 28.5, 30.0, 0.000269494585235856, 1 / 3])
PHASES = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.6180339887, 0.75])
INDEXES = st.integers(-900_000, 900_000)
SIZES = st.integers(1, 700)
PATCHES = st.sampled_from([1, 4, 8])


def geobox(pixel: float, phase: float, column: int, row: int, shape: tuple[int, int]) -> GeoBox:
    corner = Affine(pixel, 0, (column + phase) * pixel, 0, -pixel, -(row + phase) * pixel)
    return GeoBox(shape, corner, "EPSG:32611")


def grid(box: GeoBox, patch: int) -> TokenGrid:
    return TokenGrid.around(box, patch=patch, chunk=16, shard=32, cell=8)


@settings(max_examples=200, deadline=None)
@given(PIXELS, PHASES, INDEXES, INDEXES, SIZES, SIZES, PATCHES)
def test_keeps_the_pixel_phase(
    pixel: float, phase: float, column: int, row: int, height: int, width: int, patch: int
) -> None:
    box = geobox(pixel, phase, column, row, (height, width))
    tokens = grid(box, patch)
    left, dx, _, top, _, dy = tokens.transform
    assert (dx, dy) == (pixel * patch, -pixel * patch)
    offset_row, offset_column = tokens.scene_offset
    assert abs(left + offset_column * pixel - box.affine.c) < 1e-6 * pixel
    assert abs(top - offset_row * pixel - box.affine.f) < 1e-6 * pixel
    # Shards are counted from the CRS's origin, in this phase.
    span = pixel * patch * 32
    for corner in (left - phase * pixel, top + phase * pixel):
        assert abs(corner / span - round(corner / span)) * span < 1e-6 * pixel
    rows, columns = tokens.shape
    assert rows % 8 == columns % 8 == 0
    assert 0 <= rows * patch - offset_row - height < 8 * patch
    assert 0 <= columns * patch - offset_column - width < 8 * patch
    assert abs(tokens.y()[0] - (top + dy / 2)) < 1e-6 * pixel
    assert abs(tokens.cell_x()[-1] - tokens.x()[-8:].mean()) < 1e-6 * pixel


@settings(max_examples=100, deadline=None)
@given(PIXELS, PHASES, INDEXES, INDEXES, st.integers(-400, 400), st.integers(-400, 400), PATCHES)
def test_scenes_of_one_lattice_share_tokens_and_shards(
    pixel: float, phase: float, column: int, row: int, right: int, down: int, patch: int
) -> None:
    first = grid(geobox(pixel, phase, column, row, (600, 500)), patch)
    second = grid(geobox(pixel, phase, column + right, row + down, (500, 600)), patch)
    for axis, sign in ((0, 1), (1, -1)):
        shards = sign * (second.origin[axis] - first.origin[axis]) / (pixel * patch * 32)
        assert abs(shards - round(shards)) * patch * 32 < 1e-6
    common = np.intersect1d(np.round(first.x() / pixel, 5), np.round(second.x() / pixel, 5))
    ends = [(g.x()[0], g.x()[-1]) for g in (first, second)]
    overlap = min(e[1] for e in ends) - max(e[0] for e in ends)
    assert len(common) == pytest.approx(max(0, overlap / (pixel * patch) + 1), abs=0.1)


def test_pixel_windows_tile_the_scene() -> None:
    tokens = grid(geobox(10.0, 0.5, 1234, 777, (301, 222)), 4)
    seen = np.zeros((301, 222), dtype=int)
    for task in tokens.tasks():
        rows, columns = tokens.pixel_window(task)
        assert (rows.stop - rows.start) // 4 == tokens.task_rows(task).stop - (
            tokens.task_rows(task).start
        )
        seen[max(rows.start, 0) : rows.stop, max(columns.start, 0) : columns.stop] += 1
        wider = tokens.pixel_window(task, halo=7)
        assert wider == tuple(slice(s.start - 7, s.stop + 7) for s in (rows, columns))
    assert (seen == 1).all()


def test_refuses_what_is_not_north_up() -> None:
    for affine in (Affine(10, 0, 0, 0, 10, 0), Affine(10, 1, 0, 1, -10, 0)):
        with pytest.raises(StoreError, match="not north-up"):
            grid(GeoBox((10, 10), affine, "EPSG:32611"), 4)
