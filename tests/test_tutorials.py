import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_window(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")


def test_a_land_cover_map_from_fifty_points(tmp_path, capsys):
    accuracy = runpy.run_path(str(FOLDER / "land_cover.py"))["main"](None, tmp_path)
    assert accuracy > 0.6
    assert "50 labels" in capsys.readouterr().out
    assert {"land_cover.tif", "land_cover.png", "head.safetensors"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_biomass_from_shots(tmp_path):
    r2 = runpy.run_path(str(FOLDER / "biomass.py"))["main"](None, tmp_path)
    assert r2 > 0.2
    assert {"biomass.tif", "biomass.png"} <= {p.name for p in tmp_path.iterdir()}


def test_places_like_this_are_found(tmp_path):
    share = runpy.run_path(str(FOLDER / "retrieval.py"))["main"](tmp_path, limit=300)
    assert share > 0.5  # by chance a tenth
    assert (tmp_path / "retrieval.csv").read_text().count("\n") == 201
