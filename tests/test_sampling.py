import logging

import geopandas as gpd
import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr

from nec.errors import HeadError
from nec.sampling import Lattice, sample

BANDS, ROWS, COLUMNS = 3, 8, 10
CORNER_X, CORNER_Y, STEP = 500_000.0, 5_700_000.0, 40.0


def scene(*, lazy=False):
    """An embedding whose vectors say where they are: band 0 is the row, band 1 the column."""
    rows, columns = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    values = np.stack([rows, columns, np.ones_like(rows)]).astype(np.float32)
    values[:, 0, 0] = np.nan
    array = xr.DataArray(
        values,
        dims=("band", "y", "x"),
        coords={
            "y": CORNER_Y - (np.arange(ROWS) + 0.5) * STEP,
            "x": CORNER_X + (np.arange(COLUMNS) + 0.5) * STEP,
        },
        attrs={"nec_basis": "b1", "nec_model": "nec-tiny"},
        name="embedding",
    ).rio.write_crs(32633)
    return array.chunk(y=4, x=5) if lazy else array


def points(places, **columns):
    x = [CORNER_X + column * STEP for _, column in places]
    y = [CORNER_Y - row * STEP for row, _ in places]
    return gpd.GeoDataFrame(columns, geometry=gpd.points_from_xy(x, y), crs=32633)


@pytest.mark.parametrize("lazy", [False, True])
def test_points_of_another_crs_meet_their_tokens(lazy):
    places = [(2.5, 3.5), (7.9, 9.9), (0.1, 1.1)]
    table = sample(scene(lazy=lazy), points(places, kind=["a", "b", "c"]).to_crs(4326))
    assert table[["band_0", "band_1"]].to_numpy().tolist() == [[2, 3], [7, 9], [0, 1]]
    assert table["kind"].tolist() == ["a", "b", "c"]
    assert table["band_2"].dtype == np.float32
    assert table.filter(like="band_").attrs["nec_basis"] == "b1"


def test_only_chunks_that_hold_points_are_read_and_counted():
    read = set()

    def spy(block, block_info=None):
        read.add(tuple(block_info[0]["chunk-location"][1:]))
        return block

    lazy = scene(lazy=True)
    meta = np.empty((0, 0, 0), np.float32)
    lazy = lazy.copy(data=lazy.data.map_blocks(spy, dtype=np.float32, meta=meta))
    table = sample(lazy, points([(2.5, 3.5), (1.5, 4.5), (7.9, 9.9)]))
    assert read == {(0, 0), (1, 1)}
    assert (table.attrs["nec_chunks_read"], table.attrs["nec_chunks"]) == (2, 4)


def test_points_without_a_vector_are_left_out_and_counted(caplog):
    places = [(-0.5, 3), (0.5, 0.5), (4.5, 4.5), (4.5, COLUMNS + 0.1)]
    given = points(places, kind=["north", "nodata", "in", "east"])
    with caplog.at_level(logging.WARNING):
        table = sample(scene().to_dataset(), given)
    assert table["kind"].tolist() == ["in"]
    assert table.index.tolist() == [2]
    assert "2 of 4 points lie outside" in caplog.text
    assert "1 of 4 points lie on missing tokens" in caplog.text


def test_a_store_on_disk_and_its_cells(tmp_path):
    store = scene().to_dataset()
    cells = scene().coarsen(y=4, x=5).mean().rename(y="cell_y", x="cell_x")
    store["scene_embedding"] = cells
    for name in store.data_vars:
        store[name].encoding = {"grid_mapping": "spatial_ref"}
    store.to_zarr(tmp_path / "store.zarr", zarr_format=3, consolidated=False)
    opened = xr.open_zarr(tmp_path / "store.zarr", consolidated=False, decode_coords="all")
    table = sample(opened, points([(5.5, 7.5), (1, 1)]), variable="scene_embedding")
    assert table[["band_0", "band_1"]].to_numpy()[0].tolist() == [5.5, 7.0]


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        (scene(), points([(99, 99)]), "none of the 1 points"),
        (scene(), points([(0.5, 0.5)]), "missing tokens"),
        (scene(), points([(3, 3)]).set_crs(None, allow_override=True), "no CRS"),
        (scene().drop_vars("spatial_ref"), points([(3, 3)]), "no CRS"),
        (scene(), points([(3, 3)]).buffer(5).to_frame("geometry"), "Polygon"),
        (scene(), points([(3, 3)], band_0=[1]), "already have a column"),
        (scene().to_dataset(name="other"), points([(3, 3)]), "has: other"),
        (scene().drop_vars("x"), points([(3, 3)]), "no coordinates"),
        (scene(), points([(3, 3)]).geometry, "GeoSeries"),
        (scene().expand_dims(time=[0, 1]).isel(time=slice(0, 0)), points([(3, 3)]), "of no time"),
    ],
)
def test_what_cannot_be_sampled_says_why(source, given, message):
    with pytest.raises(HeadError, match=message):
        sample(source, given)


def test_a_lattice_of_one_row_takes_its_step_from_the_transform():
    row = scene().isel(y=[3])
    row.spatial_ref.attrs["GeoTransform"] = f"{CORNER_X} {STEP} 0 {CORNER_Y} 0 {-STEP}"
    lattice = Lattice.of(row)
    assert lattice.transform == (CORNER_X, STEP, 0.0, CORNER_Y - 3 * STEP, 0.0, -STEP)
    assert Lattice.of(scene()[:, ::-1]).step == (STEP, STEP)
