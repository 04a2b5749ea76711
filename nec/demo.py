"""The main job in one go, on a real scene where there is one: `nec demo`."""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from nec.errors import StoreError

if TYPE_CHECKING:
    from rich.table import Table

    from nec.heads import SceneClassifier
    from nec.production import Progress

log = logging.getLogger(__name__)

# Colours that land-cover maps are used to.
COLOURS = {
    "AnnualCrop": "#e8c35a",
    "Forest": "#1b6b36",
    "HerbaceousVegetation": "#a8c66c",
    "Highway": "#555555",
    "Industrial": "#b455a0",
    "Pasture": "#6fbf73",
    "PermanentCrop": "#c98a2b",
    "Residential": "#d7443e",
    "River": "#3f8fd2",
    "SeaLake": "#1f4e9c",
}

RENDERED = "a scene that the package rendered itself (no scene was given)"


def size_text(size: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:.3g} GB"


@dataclass
class Outcome:
    """What the demo measured.

    Attributes
    ----------
    scene : str
        What was encoded.
    sizes : dict of str to float
        Bytes, by what they are bytes of.
    scores : dict of str to float
        Shares and seconds, by what they say.
    files : list of Path
        Everything that was written.
    """

    scene: str
    sizes: dict[str, float] = field(default_factory=dict)
    scores: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def tables(self) -> "list[Table]":
        """Return the outcome as tables for the terminal."""
        from rich.table import Table

        sizes = Table("size", "bytes", "times the payload", title=f"Demo: {self.scene}")
        payload = self.sizes["compressed embeddings (payload)"]
        for name, value in self.sizes.items():
            sizes.add_row(name, size_text(value), f"{value / payload:,.1f}" if payload else "")
        scores = Table("what", "value")
        for name, text in self.scores.items():
            scores.add_row(name, text)
        return [sizes, scores]


def catalog() -> Path:
    """Return the store of EuroSAT embeddings that ships with the project.

    Raises
    ------
    StoreError
        If it is not there.
    """
    package = Path(__file__).parent
    for root in (package, package.parent):
        store = root / "catalogs" / "eurosat" / "embeddings.zarr"
        if store.is_dir():
            return store
    raise StoreError(
        "the EuroSAT catalog is not beside the package",
        "run the demo from a checkout, or reinstall nec",
    )


def run(
    scene: Path | None, out: Path, *, progress: Callable[["Progress"], None] | None = None
) -> Outcome:
    """Encode a scene, open it with plain xarray, train a head, map the scene.

    Parameters
    ----------
    scene : Path or None
        A scene; None renders one.
    out : Path
        Folder to write to; what an earlier demo left there is replaced.
    progress : callable, optional
        See `nec.encode`.

    Returns
    -------
    Outcome
    """
    from nec.heads import write_map
    from nec.production import encode
    from nec.rendered import render_scene
    from nec.scene import open_scene

    out.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(RENDERED if scene is None else scene.name)
    source = render_scene(out / "rendered_scene.tif") if scene is None else scene
    opened = open_scene(source)
    store = out / "demo_scene.zarr"  # a name that nothing else has: it is replaced
    if store.exists():
        shutil.rmtree(store)
    started = time.perf_counter()
    report = encode(opened, store, progress=progress)
    seconds = time.perf_counter() - started

    pixels = int(np.prod([int(s) for s in opened.geobox.shape]))
    payload = sum(report.payload_bytes.values())
    everything = sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
    dataset = xr.open_zarr(store)  # plain xarray: this is all that a consumer needs
    embedding = dataset["embedding"]
    dimensions = embedding.sizes["band"]
    outcome.sizes = {
        "raw pixels of all bands, at 16 bits": 2.0 * pixels * len(opened.bands),
        "embeddings as float32": 4.0 * dimensions * report.vectors,
        "embeddings as int8": float(dimensions * report.vectors),
        "compressed embeddings (payload)": payload,
        "  and all metadata, basis, coordinates": everything,
    }
    started = time.perf_counter()
    # As a map is made of it: chunk by chunk, so that a large scene fits.
    missing = float(embedding.isnull().mean())
    reading = time.perf_counter() - started
    quicklook = dataset.nec.quicklook(out / "embedding.png")

    head, accuracy, tested = _train(out / "head.safetensors")
    if "time" in embedding.dims:
        embedding = embedding.isel(time=0)
    classes = head.predict(embedding).compute()
    palette = [COLOURS[str(name)] for name in head.classes_]
    table = [tuple(bytes.fromhex(c[1:])) for c in palette]
    write_map(classes, out / "land_cover.tif", colours=[(r, g, b) for r, g, b in table])
    _draw(dataset, classes, dict(zip(head.classes_, palette, strict=True)), out / "land_cover.png")

    outcome.scores = {
        "pixels encoded": f"{pixels / 1e6:.2f} million in {seconds:.1f} s",
        "bytes a vector (4 x 4 pixels)": f"{payload / max(report.vectors, 1):.3f}",
        "cosine to the uncompressed features": f"{report.cosine_mean:.4f}",
        "read and decoded with xarray": f"{embedding.nbytes / 1e6:.0f} MB of float32 in "
        f"{reading:.2f} s",
        "missing tokens (nodata, padding)": f"{missing:.1%}",
        "EuroSAT accuracy of the head, test pool": f"{accuracy:.1%} of {tested} images",
        "classes on the map": ", ".join(_shares(classes, head)),
        "what that map is worth": "it shows the chain at work: the head learned from 8-bit RGB "
        "pictures, and this model does not yet carry them over to reflectance of other bands",
    }
    outcome.files = [
        quicklook,
        out / "land_cover.tif",
        out / "land_cover.png",
        out / "head.safetensors",
        store,
    ]
    return outcome


def _train(path: Path) -> "tuple[SceneClassifier, float, int]":
    """Train a scene classifier on the shipped catalog: (head, test accuracy, test images)."""
    from nec.heads import SceneClassifier

    images = xr.open_zarr(catalog()).load()
    vectors, labels = images["scene_embedding"], images["label"].to_numpy()
    test = images["set"].to_numpy() == "test"
    head = SceneClassifier().fit(vectors[~test], labels[~test])
    head.save(path)
    return head, float(head.score(vectors[test], labels[test])), int(test.sum())


def _shares(classes: xr.DataArray, head: "SceneClassifier") -> list[str]:
    valid = classes.to_numpy()[classes.to_numpy() >= 0]
    share = np.bincount(valid, minlength=len(head.classes_)) / max(len(valid), 1)
    order = np.argsort(-share)[:4]
    return [f"{head.classes_[i]} {share[i]:.0%}" for i in order if share[i] > 0]


def _draw(dataset: xr.Dataset, classes: xr.DataArray, palette: dict[str, str], path: Path) -> None:
    """Draw the embedding and the map side by side, with a legend."""
    import matplotlib.pyplot as plt

    from nec.evaluate import draw_map

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6.2), layout="constrained")
    dataset.nec.quicklook(ax=left)
    draw_map(classes, colours=list(palette.values()), ax=right)
    right.set(xlim=left.get_xlim(), ylim=left.get_ylim(), xlabel="x", title="EuroSAT classes")
    right.set_aspect(left.get_aspect())
    figure.savefig(path, dpi=110)
    plt.close(figure)
