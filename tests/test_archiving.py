"""Many scenes to a folder of stores: what fails is named, the others go on, runs resume."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CORNER, RasterWriter
from typer.testing import CliRunner

import nec
from nec.archive import StoreWriter
from nec.cli import app
from nec.errors import SceneError, SceneReadError, SchedulerError, StoreError
from nec.model import Model
from nec.production import Progress, Retries, find_scenes
from nec.scene import Scene

BANDS = ("blue", "red", "nir08")
ONCE = Retries(count=0)


@pytest.fixture(scope="module")
def model() -> Model:
    return nec.load_model("nec-tiny", precision="float32")


@pytest.fixture
def scenes(write_raster: RasterWriter, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        numbers = rng.integers(200, 3000, (3, 40, 48)).astype(np.uint16)
        # Strips, so that a file cut short can be read in part; across two shards.
        write_raster(
            f"scenes/{name}.tif",
            numbers,
            bands=BANDS,
            scales=(1e-4,) * 3,
            corner=(1024 * 10 * 39 - 240, CORNER[1]),
            blockysize=8,
        )
    return tmp_path / "scenes"


def objects(folder: Path) -> dict[str, bytes]:
    files = (f for f in folder.glob("*.zarr/**/*") if f.is_file())
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "encode.jsonl").read_text().splitlines()]


def test_bad_scenes_are_named_and_the_others_go_on(
    scenes: Path, model: Model, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    whole = (scenes / "b.tif").read_bytes()
    (scenes / "b.tif").write_bytes(whole[: len(whole) // 2])
    (scenes / "text.tif").write_text("no raster")
    (scenes / ".hidden.tif").write_text("does not count")
    told: list[Progress] = []
    report = nec.encode_archive(
        scenes, out, model=model, retries=Retries(1, delay=0.01), progress=told.append
    )
    assert not report.ok
    assert set(report.stores) >= {"a", "c"}
    assert all(report.stores[name].failed == 0 for name in ("a", "c"))
    assert "text.tif is not a raster" in report.failures["text"]
    broken = [reason for name, reason in report.failures.items() if name.startswith("b")]
    assert broken
    assert all("b.tif" in reason for reason in broken)
    last = told[-1]
    assert (last.scenes, last.scenes_done, last.scenes_failed) == (4, 4, 2)
    assert last.tasks == last.tasks_done
    assert last.bytes_out > 0
    log = events(out)
    assert [log[0]["event"], log[-1]["event"]] == ["start", "end"]
    assert log[-1]["failures"] == report.failures
    assert {e["scene"] for e in log if e["event"] == "failure"} == {"b", "text"}

    # The files come again, whole; what was done stays, and all is as if nothing had happened.
    (scenes / "b.tif").write_bytes(whole)
    (scenes / "text.tif").unlink()
    again = nec.encode_archive(scenes, out, model=model)
    assert again.ok
    assert again.stores["a"].resumed == again.stores["a"].written + again.stores["a"].missing
    assert again.stores["b"].resumed == 0
    nec.encode_archive(scenes, tmp_path / "straight", model=model, workers=1)
    assert objects(out) == objects(tmp_path / "straight")
    assert all(nec.verify(store).ok for store in out.glob("*.zarr"))


def test_a_scene_that_comes_again_after_a_part_failed_is_encoded_anew(
    scenes: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Scene.read

    def damaged(self: Scene, *window: slice) -> np.ndarray:
        if "b.tif" in self.sources:
            raise SceneError("b.tif cannot be read", "fetch it again")
        return read(self, *window)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Scene, "read", damaged)
        report = nec.encode_archive(scenes, out, model=model, retries=Retries(0))
    assert report.stores["b"].failed
    (scenes / "b.tif").write_bytes((scenes / "c.tif").read_bytes())
    assert nec.encode_archive(scenes, out, model=model).ok
    nec.encode_archive(scenes, tmp_path / "straight", model=model)
    assert objects(out) == objects(tmp_path / "straight")


def test_a_complete_store_of_a_changed_scene_is_left_alone(
    scenes: Path, model: Model, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert nec.encode_archive(scenes, out, model=model, sealing=True).ok
    before = objects(out)
    assert nec.encode_archive(scenes, out, model=model).sealed == ("a", "b", "c")
    (scenes / "b.tif").write_bytes((scenes / "c.tif").read_bytes())
    report = nec.encode_archive(scenes, out, model=model)
    assert list(report.failures) == ["b"]
    assert "is sealed" in report.failures["b"]
    assert objects(out) == before


def test_a_glitch_is_tried_again_and_a_lasting_one_reported(
    scenes: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failures = Scene.read, {"left": 2}

    def flaky(self: Scene, *window: slice) -> np.ndarray:
        if failures["left"]:
            failures["left"] -= 1
            raise SceneReadError("the network is gone", "wait")
        return read(self, *window)

    monkeypatch.setattr(Scene, "read", flaky)
    store = tmp_path / "s.zarr"
    retries = Retries(2, delay=0.01)
    assert nec.encode(scenes / "a.tif", store, model=model, workers=1, retries=retries).failed == 0
    failures["left"] = 10**6
    report = nec.encode(scenes / "a.tif", tmp_path / "t.zarr", model=model, retries=ONCE)
    assert report.failed == 2
    assert set(report.failures.values()) == {"the network is gone; wait"}
    failures["left"] = 0
    assert nec.encode(scenes / "a.tif", tmp_path / "t.zarr", model=model).failed == 0
    both = objects(tmp_path)
    a, b = ({k[7:]: v for k, v in both.items() if k.startswith(n)} for n in ("s.zarr", "t.zarr"))
    assert a == b


def test_a_scene_that_changes_while_it_is_read_is_not_stored(
    scenes: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Scene.read

    def meddle(self: Scene, *window: slice) -> np.ndarray:
        (scenes / "a.tif").touch()
        return read(self, *window)

    monkeypatch.setattr(Scene, "read", meddle)
    report = nec.encode(scenes / "a.tif", tmp_path / "s.zarr", model=model)
    assert report.written == 0
    assert "changed while it was being read" in next(iter(report.failures.values()))


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(
    scenes: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, done = StoreWriter.commit, []

    def fill_up(self: StoreWriter, *args: Any, **options: Any) -> Any:
        if len(done) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(args)
        return commit(self, *args, **options)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit", fill_up)
        with pytest.raises(StoreError, match="No space left"):
            nec.encode_archive(scenes, out, model=model, workers=1)
    assert events(out)[-1]["event"] == "stopped"
    report = nec.encode_archive(scenes, out, model=model)
    assert report.ok
    assert sum(store.resumed for store in report.stores.values()) == 2


def test_scenes_come_from_folders_lists_and_tables(scenes: Path, tmp_path: Path) -> None:
    safe = scenes / "S2A.SAFE" / "GRANULE" / "L1C" / "IMG_DATA"
    safe.mkdir(parents=True)
    (safe / "T33UUU_B02.jp2").touch()
    (scenes / "notes").mkdir()
    assert [entry.name for entry in find_scenes(scenes)] == ["S2A", "a", "b", "c"]
    for product in ("HLS.S30.T33UUU.2020123T101031", "HLS.S30.T33UUU.2020128T101031"):
        (tmp_path / "hls" / product).mkdir(parents=True)
        (tmp_path / "hls" / product / "B02.tif").touch()
    assert [entry.name for entry in find_scenes(tmp_path / "hls")] == [
        "HLS.S30.T33UUU.2020123T101031",
        "HLS.S30.T33UUU.2020128T101031",
    ]
    (signed,) = find_scenes("https://host/a%20b.tif?sig=x/SECRET1")
    assert signed.name == "a b"
    (tmp_path / "list.txt").write_text("scenes/a.tif  # the first\n\nhttps://host/b.tif\n")
    entries = find_scenes(tmp_path / "list.txt")
    assert [entry.source for entry in entries] == [
        str(tmp_path / "scenes/a.tif"),
        "https://host/b.tif",
    ]
    table = tmp_path / "table.csv"
    table.write_text("path,name,time,scale\nscenes/a.tif,north/a,2020-05-01,0.0001\n")
    (entry,) = find_scenes(table)
    assert entry.name == "north/a"
    assert entry.options == {"time": "2020-05-01", "scale": 1e-4}
    table.write_text("path,scale\nscenes/a.tif,lots\n")
    with pytest.raises(SceneError, match="line 2"):
        find_scenes(table)
    for line in ("foo", "foo,"):
        table.write_text(f"name,path\n{line}\n")
        with pytest.raises(SceneError, match=r"line 2 of .* has no path"):
            find_scenes(table)
    table.write_text("file\nscenes/a.tif\n")
    with pytest.raises(SceneError, match="needs path"):
        find_scenes(table)
    with pytest.raises(SceneError, match="would both be stored as a"):
        find_scenes([scenes / "a.tif", tmp_path / "other" / "a.tif"])
    with pytest.raises(SceneError, match="no scene"):
        find_scenes(scenes / "notes")


def test_the_command_line_reports_and_says_so_by_its_status(scenes: Path, tmp_path: Path) -> None:
    (scenes / "text.tif").write_text("no raster")
    out = tmp_path / "out"
    line = ["encode", str(scenes), str(out), "--each", "--retries", "0", "--seal"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 1, result.output
    assert "4 scenes, 3 complete, 1 failed" in result.output
    assert "text.tif is not a raster" in result.output
    (scenes / "text.tif").unlink()
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert "3 sealed before" in result.output
    assert "Mpx" in result.output


def test_no_scheduler_is_said_so(scenes: Path, model: Model, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="needs nec[cluster]")
    from nec.production import engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_PATIENCE", 0.3)
        with pytest.raises(SchedulerError, match="no Dask scheduler answers"):
            nec.encode(
                scenes / "a.tif", tmp_path / "s.zarr", model=model, scheduler="tcp://127.0.0.1:9"
            )


@pytest.mark.slow
def test_a_cluster_of_three_processes_loses_a_worker(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="needs nec[cluster]")
    sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
    try:
        from production_bench.kills import cluster
    finally:
        sys.path.pop(0)
    line = [sys.executable, "-m", "nec.cli", "encode", str(scenes), "--each"]
    subprocess.run([*line, str(tmp_path / "here")], check=True, capture_output=True)
    out = tmp_path / "there"
    with cluster(workers=2) as (address, workers):
        process = subprocess.Popen(
            [*line, str(out), "--scheduler", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        log = out / "encode.jsonl"
        while process.poll() is None:
            if log.exists() and '"event": "task"' in log.read_text():
                workers.kill(0)
                break
        told, errors = process.communicate(timeout=120)
    assert process.returncode == 0, told + errors
    assert objects(out) == objects(tmp_path / "here")
    assert "2 workers with 2 threads" in events(out)[0]["engine"]
