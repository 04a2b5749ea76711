"""The command line: ``nec encode | info | train | predict | seal | verify | models | demo``."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from nec.demo import size_text
from nec.errors import HeadError, MissingLibraryError, NecError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Neural embedding compression for Earth observation.\n\n"
    "Encode scenes to small stores of embeddings that plain xarray opens; train heads on them.",
)
console = Console(highlight=False, soft_wrap=True)
Store = Annotated[str, typer.Argument(help="Store of embeddings: a folder or an http(s) URL.")]


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what is going on.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False, show_time=False)],
    )


@contextmanager
def _progress(title: str) -> Iterator[Any]:
    """Yield a callable (done, total) that moves a bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _parse_bands(text: str | None) -> Any:
    """Read "blue,green" or "blue=1,green=2" as `nec.encode` takes it."""
    if not text:
        return None
    parts = [p.strip() for p in text.split(",")]
    if not all("=" in p for p in parts):
        return tuple(parts)
    pairs = (p.split("=", 1) for p in parts)
    return {name: int(value) if value.isdigit() else value for name, value in pairs}


@app.command()
def encode(
    source: Annotated[
        list[str],
        typer.Argument(
            help="A scene (one raster, its band files, or their folder), or a folder of images."
        ),
    ],
    store: Annotated[Path, typer.Argument(help="Store to write, a new folder.")],
    model: Annotated[str, typer.Option(help="Model name or folder.")] = "nec-tiny",
    rate: Annotated[str, typer.Option(help="low, medium, high, or bytes per vector.")] = "medium",
    bands: Annotated[
        str | None,
        typer.Option(help="Names in order (blue,green,red) or a mapping (blue=1,nir08=B8A)."),
    ] = None,
    scale: Annotated[float | None, typer.Option(help="reflectance = DN * scale + offset")] = None,
    offset: Annotated[float | None, typer.Option(help="see --scale")] = None,
    nodata: Annotated[float | None, typer.Option(help="Number that means missing.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Raster, nonzero where missing.")] = None,
    time: Annotated[str | None, typer.Option(help="Time of acquisition, ISO 8601.")] = None,
    crs: Annotated[str | None, typer.Option(help="CRS of a scene that has none.")] = None,
    gsd: Annotated[
        float | None, typer.Option(help="Metres a pixel, for images without a place.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; all cores by default.")] = None,
) -> None:
    """Encode a scene, or a folder of images, to a compressed store.

    An interrupted run is finished by the same command.

    [bold]Example:[/bold] nec encode landsat.tif out.zarr --rate medium
    """
    from nec.production import encode as run

    wanted: str | float = rate
    with suppress(ValueError):
        wanted = float(rate)
    with _progress(f"encoding to {store.name}") as progress:
        report = run(
            source[0] if len(source) == 1 else source,
            store,
            model=model,
            rate=wanted,
            bands=_parse_bands(bands),
            scale=scale,
            offset=offset,
            nodata=nodata,
            mask=mask,
            time=time,
            crs=crs,
            gsd=gsd,
            workers=workers,
            progress=progress,
        )
    payload = sum(report.payload_bytes.values())
    console.print(
        f"[bold]{escape(str(store))}[/bold]: {report.vectors:,} vectors in {size_text(payload)} "
        f"({payload / max(report.vectors, 1):.3f} B a vector), cosine {report.cosine_mean:.4f}"
    )
    console.print(
        f"shards: {report.written} written, {report.missing} all missing, {report.failed} failed"
        + (f"; {report.resumed} were there already" if report.resumed else "")
    )
    if report.failed:
        for task, reason in report.failures.items():
            console.print(f"[red]shard {task}[/red]: {escape(reason)}")
        console.print("run the same command again to retry them")
        raise typer.Exit(1)
    if not report.vectors and not report.failed:
        console.print("[yellow]the source holds no valid pixel: the store is all missing[/yellow]")


@app.command()
def info(
    store: Store,
    quicklook: Annotated[
        Path | None, typer.Option(help="Write the first three components as a PNG.")
    ] = None,
) -> None:
    """Say what a store holds.

    [bold]Example:[/bold] nec info out.zarr --quicklook out.png
    """
    from nec.archive import open_store

    dataset = open_store(store)
    own = dataset.nec.info
    table = Table(title=escape(str(store)), show_header=False)
    for name, array in dataset.data_vars.items():
        sizes = ", ".join(f"{d} {n}" for d, n in array.sizes.items())
        table.add_row(f"[bold]{name}[/bold]", f"{array.dtype} ({sizes})")
    rows = {
        "model": own.get("model"),
        "rate": own.get("rate"),
        "bands": ", ".join(own.get("bands", [])),
        "sources": ", ".join(own.get("sources", [])),
        "time": str(dataset.time.values[0]) if "time" in dataset.dims else None,
        "CRS": dataset.spatial_ref.attrs.get("crs_wkt", "")[:60]
        if "spatial_ref" in dataset.coords
        else None,
        "shards": ", ".join(f"{n} {k}" for k, n in own["tasks"].items())
        if "tasks" in own
        else "unfinished: run nec encode again",
        "valid vectors": f"{own['vectors']:,}" if "vectors" in own else None,
        "bytes a vector": own.get("bytes_per_vector"),
        "payload": ", ".join(f"{k} {size_text(v)}" for k, v in own["payload_bytes"].items())
        if "payload_bytes" in own
        else None,
        "cosine": own.get("cosine"),
        "seam": own.get("seam"),
        "basis": own.get("basis"),
        "format version": own.get("format_version"),
        "sealed": "yes" if "seal" in own else "no",
    }
    for key, value in rows.items():
        if value not in (None, ""):
            table.add_row(key, escape(str(value)))
    console.print(table)
    if quicklook is not None:
        console.print(f"quicklook: {escape(str(dataset.nec.quicklook(quicklook)))}")


@app.command()
def train(
    store: Store,
    head: Annotated[Path, typer.Argument(help="Head to write (.safetensors).")],
    labels: Annotated[
        Path | None, typer.Option(help="Raster of classes: trains a segmentation head.")
    ] = None,
    ignore: Annotated[int, typer.Option(help="Value of --labels that is no class.")] = -1,
    points: Annotated[
        Path | None, typer.Option(help="Vector file of labelled points, with --column.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of --points.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Coordinate of an image collection with the classes.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="Train on samples of this kind only, as set=train; the others test."),
    ] = None,
    method: Annotated[str, typer.Option(help="linear or knn (not with --labels).")] = "linear",
) -> None:
    """Train a head on the embeddings of a store.

    [bold]Examples:[/bold] nec train out.zarr head.safetensors --labels classes.tif

    nec train out.zarr head.safetensors --points places.gpkg --column class

    nec train catalogs/eurosat/embeddings.zarr head.safetensors --label label --where set=train
    """
    from nec.archive import open_store
    from nec.heads import SceneClassifier, Segmenter

    dataset = open_store(store)
    if sum(option is not None for option in (labels, points, label)) != 1:
        raise HeadError("the classes come from one place", "give --labels, --points or --label")
    if labels is not None and method != "linear":
        raise HeadError(f"--labels takes no --method {method}", "leave it out")
    if labels is not None:
        segmenter = Segmenter(ignore_index=ignore)
        truth = _read_labels(labels)
        segmenter.fit(_undated(dataset["embedding"]), truth)
        segmenter.save(head)
        score = segmenter.score(_undated(dataset["embedding"]), truth)
        console.print(
            f"[bold]{escape(str(head))}[/bold]: {len(segmenter.classes_)} classes, "
            f"accuracy on its own training data {score:.3f}"
        )
        return
    classifier = SceneClassifier(method=method)
    if points is not None:
        import geopandas

        from nec.sampling import sample

        if column is None:
            raise HeadError("--points needs --column", "name the column with the classes")
        try:
            places = geopandas.read_file(points)
        except Exception as error:  # drivers' errors have no common parent
            raise HeadError(
                f"{points} cannot be read as a vector file ({error})", "give a GeoPackage"
            ) from error
        table = sample(dataset, places)
        if column not in table:
            raise HeadError(f"{points} has no column {column!r}", f"has: {list(table.columns)}")
        classifier.fit(table.filter(regex=r"^band_\d+$"), table[column].to_numpy())
        console.print(
            f"[bold]{escape(str(head))}[/bold]: {len(table)} points, "
            f"{len(classifier.classes_)} classes"
        )
    else:
        if label not in dataset.coords or dataset[label].dims != ("sample",):
            raise HeadError(
                f"{store} has no coordinate {label!r} of its samples",
                f"coordinates: {', '.join(map(str, dataset.coords))}; for a scene give --labels",
            )
        vectors, classes = dataset["scene_embedding"].load(), dataset[label].to_numpy()
        chosen = _chosen(dataset, where)
        classifier.fit(vectors[chosen], classes[chosen])
        console.print(
            f"[bold]{escape(str(head))}[/bold]: {int(chosen.sum())} images, "
            f"{len(classifier.classes_)} classes"
        )
        if not chosen.all():
            score = classifier.score(vectors[~chosen], classes[~chosen])
            console.print(f"accuracy on the other {int((~chosen).sum())} images: {score:.4f}")
    classifier.save(head)


def _chosen(dataset: "xr.Dataset", where: str | None) -> "np.ndarray[Any, Any]":
    import numpy as np

    if where is None:
        return np.ones(dataset.sizes["sample"], bool)
    name, _, value = where.partition("=")
    if name not in dataset.coords or not value:
        raise HeadError(
            f"--where {where!r} names no coordinate and value",
            f"as set=train; coordinates: {', '.join(map(str, dataset.coords))}",
        )
    chosen: np.ndarray[Any, Any] = dataset[name].to_numpy().astype(str) == value
    if not chosen.any():
        raise HeadError(
            f"no sample has {where}", f"values: {sorted(set(map(str, dataset[name].values)))[:8]}"
        )
    return chosen


def _read_labels(path: Path) -> "xr.DataArray":
    import rioxarray

    try:
        opened = rioxarray.open_rasterio(path)
    except Exception as error:  # rasterio's errors have no common parent
        raise HeadError(f"{path} cannot be read as a raster ({error})", "give a GeoTIFF") from error
    if opened.sizes["band"] != 1:  # type: ignore[union-attr]
        raise HeadError(f"{path} has {opened.sizes['band']} bands", "give one band of classes")  # type: ignore[union-attr]
    return opened.squeeze("band", drop=True)  # type: ignore[union-attr,return-value]


def _undated(embedding: "xr.DataArray") -> "xr.DataArray":
    return embedding.isel(time=0) if "time" in embedding.dims else embedding


@app.command()
def predict(
    store: Store,
    head: Annotated[Path, typer.Argument(help="Head that `nec train` wrote.")],
    out: Annotated[Path, typer.Argument(help="Map to write: a cloud-optimised GeoTIFF.")],
    cells: Annotated[
        bool, typer.Option("--cells", help="Classify pooled cells of 16 x 16 tokens.")
    ] = False,
) -> None:
    """Map a store with a head.

    [bold]Example:[/bold] nec predict out.zarr head.safetensors map.tif
    """
    from nec.archive import open_store
    from nec.heads import load_head, write_map

    dataset = open_store(store)
    if "y" not in dataset["embedding"].coords:
        raise HeadError(f"{store} is an image collection without a place", "map a scene's store")
    fitted = load_head(head)
    classes = fitted.predict(_undated(dataset["scene_embedding" if cells else "embedding"]))
    write_map(classes, out)
    console.print(f"[bold]{escape(str(out))}[/bold]: {dict(classes.sizes)}")


@app.command()
def seal(store: Annotated[Path, typer.Argument(help="Finished store.")]) -> None:
    """Publish a store: write the manifest of every object; it never changes after.

    [bold]Example:[/bold] nec seal out.zarr
    """
    from nec.archive import seal as run

    run(store)
    console.print(f"[bold]{escape(str(store))}[/bold] is sealed")


@app.command()
def verify(store: Annotated[Path, typer.Argument(help="Store, sealed or not.")]) -> None:
    """Check every object of a store; name what is missing or damaged.

    [bold]Example:[/bold] nec verify out.zarr
    """
    from nec.archive import verify as run

    report = run(store)
    for problem in report.problems:
        console.print(f"[red]{escape(str(problem))}[/red]")
    if report.pending:
        console.print(f"[yellow]not done yet: shards {', '.join(report.pending)}[/yellow]")
    if report.failed:
        console.print(f"[red]failed: shards {', '.join(report.failed)}[/red]")
    if report.problems or report.pending or report.failed:
        raise typer.Exit(1)
    console.print(f"[bold]{escape(str(store))}[/bold]: all objects are as written")


@app.command()
def models() -> None:
    """List the built-in models.

    [bold]Example:[/bold] nec models
    """
    from nec.model import list_models, load_model

    table = Table("model", "parameters", "bands", "dimensions", "patch", "rates (B a vector)")
    for name in list_models():
        model = load_model(name, precision="float32")
        encoder = model.card["encoder"]
        rates = (f"{r} {c.fidelity.bytes_per_vector:.2f}" for r, c in model.compressors.items())
        table.add_row(
            name,
            f"{model.card['parameters'] / 1e6:.2f} M",
            ", ".join(encoder["bands"]),
            str(encoder["dim"]),
            f"{encoder['patch_size']} px",
            ", ".join(rates),
        )
    console.print(table)


@app.command()
def demo(
    scene: Annotated[
        Path | None, typer.Option(help="Scene to encode; a rendered one by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("demo_output"),
) -> None:
    """Run the main job: encode a scene, open it, train a head, map the scene.

    [bold]Example:[/bold] nec demo --scene landsat.tif --out demo_output
    """
    from nec.demo import run

    with _progress("encoding") as progress:
        outcome = run(scene, out, progress=progress)
    for table in outcome.tables():
        console.print(table)
    console.print("[bold]Files:[/bold] " + ", ".join(escape(str(f)) for f in outcome.files))


def main() -> None:
    """Run the command line; errors of `nec` end it with a line and status 1."""
    try:
        app()
    except ModuleNotFoundError as error:
        missing = MissingLibraryError.of(error)
        if missing is None:
            raise
        _end(missing)
    except NecError as error:
        _end(error)


def _end(error: NecError) -> NoReturn:
    text = f"[red]{type(error).__name__}:[/red] {escape(str(error))}"
    Console(stderr=True, highlight=False, soft_wrap=True).print(text)
    sys.exit(1)


if __name__ == "__main__":
    main()
