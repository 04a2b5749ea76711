"""`nec encode`: one source to a store, or many scenes to a folder of stores."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from nec.cli.terminal import Checkpoint, app, console, progress_bar, with_checkpoint
from nec.demo import size_text
from nec.errors import CompressorError, SceneError

if TYPE_CHECKING:
    import xarray as xr

    from nec.production import ArchiveReport, EncodeReport


RETRY = "where a remedy is given, follow it; then run the same command again"


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
            help="A scene (one raster, its band files, or their folder), or a folder of images. "
            "With --each or --series: a folder of scenes, a list (.txt) or table (.csv) of their "
            "paths, or scenes. The JSON of a STAC item is a scene, of an ItemCollection many."
        ),
    ],
    store: Annotated[
        Path,
        typer.Argument(
            help="Store to write, a new folder; with --each or --series, a folder of stores."
        ),
    ],
    each: Annotated[
        bool, typer.Option("--each", help="Every raster or folder is a scene, with its own store.")
    ] = False,
    series: Annotated[
        bool,
        typer.Option(
            "--series",
            help="Scenes of one grid to one store, a time a day (UTC), named by the grid; later "
            "runs append. Days come from --time, a table, file names or tags.",
        ),
    ] = False,
    reuse: Annotated[
        Path | None,
        typer.Option(
            help="With --series: folder of unsealed series, whose shards of the same scenes are "
            "taken over."
        ),
    ] = None,
    area: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            metavar="LEFT BOTTOM RIGHT TOP",
            help="With --series: where the store lies, in units of the scenes' CRS, whatever the "
            "size of each scene.",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Model name or folder; galileo:FOLDER; terratorch:BACKBONE with --checkpoint; a "
            "compressor (.json)."
        ),
    ] = "nec-tiny",
    checkpoint: Checkpoint = None,
    backend: Annotated[
        str,
        typer.Option(
            help="What runs nec's own encoders: torch, openvino where installed, or cuda, an "
            "NVIDIA GPU."
        ),
    ] = "torch",
    rate: Annotated[
        str,
        typer.Option(
            help="low (of nec-tiny: for classes of scenes), medium, high (for maps), bytes per "
            "vector, or a compressor (.json); [bold]nec models[/bold] tells their sizes."
        ),
    ] = "medium",
    bands: Annotated[
        str | None,
        typer.Option(help="Names in order (blue,green,red) or a mapping (blue=1,nir08=B8A)."),
    ] = None,
    scale: Annotated[float | None, typer.Option(help="reflectance = DN * scale + offset")] = None,
    offset: Annotated[float | None, typer.Option(help="see --scale")] = None,
    nodata: Annotated[float | None, typer.Option(help="Number that means missing.")] = None,
    mask: Annotated[
        str | None,
        typer.Option(help="Raster, nonzero where missing; or the name of a band (SCL)."),
    ] = None,
    mask_classes: Annotated[
        str | None,
        typer.Option(help="Classes of --mask that are missing; for Sentinel-2's SCL 0,1,3,8,9,10."),
    ] = None,
    time: Annotated[str | None, typer.Option(help="Time of acquisition, ISO 8601.")] = None,
    crs: Annotated[str | None, typer.Option(help="CRS of a scene that has none.")] = None,
    gsd: Annotated[
        float | None, typer.Option(help="Metres a pixel, for images without a place.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="Decoding rule of an int8 embedding product.")
    ] = None,
    min_cosine: Annotated[
        float | None, typer.Option(help="Smallest cosine of any vector, a guarantee.")
    ] = None,
    core: Annotated[
        int | None, typer.Option(help="Pixels from chip to chip, with --halo; the model's own.")
    ] = None,
    halo: Annotated[
        int | None, typer.Option(help="Pixels that chips overlap beyond their cores, with --core.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; all cores by default.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Dask scheduler whose workers do it (tcp://host:8786).")
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="Further attempts where reading or writing fails.")
    ] = 2,
    log: Annotated[
        Path | None,
        typer.Option(help="Log of JSON lines; of many scenes, encode.jsonl beside the stores."),
    ] = None,
    seal: Annotated[
        bool,
        typer.Option("--seal", help="With --each or --series: seal each store when complete."),
    ] = False,
    catalog: Annotated[
        bool,
        typer.Option("--catalog", help="With --each or --series: describe the stores by STAC."),
    ] = False,
) -> None:
    """Encode a scene, or a folder of images, to a compressed store; or many scenes to many stores.

    With a compressor that `nec fit` wrote as --model, the source is a file of embeddings.

    The same command finishes what an interrupted run left, and tries again what failed; it ends
    with status 1 where anything failed, and says what and why.

    [bold]Examples:[/bold] nec encode landsat.tif out.zarr --rate high

    nec encode scenes/ stores/ --each

    nec encode scenes.csv stores/ --each --scheduler tcp://10.0.0.1:8786

    nec encode items.json stores/ --each --seal --catalog

    nec encode T33UUU/ series/ --series, and again when scenes of new days are there
    """
    from nec.encoders.tiling import Tiling
    from nec.model import load_model
    from nec.production import Retries, encode_archive
    from nec.production import encode as run

    if (core is None) != (halo is None):
        raise SceneError("chips need --core and --halo", "give both, or neither")
    model = with_checkpoint(model, checkpoint)
    used: Any = model
    if backend != "torch":
        if model.endswith(".json"):
            raise CompressorError(f"--backend {backend} goes with an encoder", "leave it out")
        used = load_model(model, backend=backend)
    wanted: str | float = rate
    with suppress(ValueError):
        wanted = float(rate)
    options: dict[str, Any] = {
        "rate": wanted,
        "bands": _parse_bands(bands),
        "scale": scale,
        "offset": offset,
        "nodata": nodata,
        "mask": mask,
        "mask_classes": mask_classes,
        "time": time,
        "crs": crs,
        "gsd": gsd,
        "tiling": None if core is None or halo is None else Tiling(core=core, halo=halo),
        "min_cosine": min_cosine,
        "workers": workers,
        "scheduler": scheduler,
        "retries": Retries(retries),
        "log": log,
    }
    thing: Any = source[0] if len(source) == 1 else source
    if each and series:
        raise SceneError("--each and --series exclude each other", "give one of them")
    for name, value in (("--reuse", reuse), ("--area", area)):
        if value is not None and not series:
            raise SceneError(f"{name} goes with --series", "leave it out")
    if each or series:
        if model.endswith(".json") or rule is not None:
            raise CompressorError(
                "--each and --series take scenes, not embeddings", "encode them one by one"
            )
        with progress_bar("encoding") as progress:
            outcome = encode_archive(
                thing,
                store,
                model=used,
                sealing=seal,
                catalog=catalog,
                series=series,
                reuse=reuse,
                area=area,
                progress=progress,
                **options,
            )
        _tell_archive(outcome)
        return
    if seal:
        raise SceneError(
            "--seal goes with --each or --series", "run nec seal on the finished store"
        )
    if catalog:
        raise SceneError(
            "--catalog goes with --each or --series", "run nec catalog build on the folder"
        )
    if model.endswith(".json"):
        from nec.compressor import Compressor

        thing, used = _embeddings(source, rule), Compressor.load(model)
    elif rule is not None:
        raise CompressorError(f"--rule {rule} goes with a compressor", "give --model FILE.json")
    with progress_bar(f"encoding to {store.name}") as progress:
        report = run(thing, store, model=used, progress=progress, **options)
    _tell(report)


def _embeddings(source: list[str], rule: str | None) -> "xr.DataArray":
    from nec.products import open_embedding

    if len(source) > 1:
        raise CompressorError(
            f"{len(source)} sources of embeddings go to one store", "encode one at a time"
        )
    return open_embedding(source[0], rule=rule)


def _tell(report: "EncodeReport") -> None:
    payload = sum(report.payload_bytes.values())
    console.print(
        f"[bold]{escape(str(report.store))}[/bold]: {report.vectors:,} vectors in "
        f"{size_text(payload)} ({payload / max(report.vectors, 1):.3f} B a vector), "
        f"cosine {report.cosine_mean:.4f}"
    )
    console.print(
        f"shards: {report.written} written, {report.missing} all missing, {report.failed} failed"
        + (f"; {report.resumed} were there already" if report.resumed else "")
    )
    if report.failed:
        for task, reason in report.failures.items():
            console.print(f"[red]shard {task}[/red]: {escape(reason)}")
        console.print(RETRY)
        raise typer.Exit(1)
    if not report.vectors:
        console.print("[yellow]the source holds no valid pixel: the store is all missing[/yellow]")


def _tell_archive(report: "ArchiveReport") -> None:
    stores, now = report.stores.values(), report.progress
    payload = sum(sum(store.payload_bytes.values()) for store in stores)
    vectors = sum(store.vectors for store in stores)
    console.print(
        f"[bold]{escape(str(report.folder))}[/bold]: {now.scenes} scenes, "
        f"{now.scenes - now.scenes_failed} complete, {now.scenes_failed} failed"
        + (f", {len(report.sealed)} sealed before" if report.sealed else "")
    )
    console.print(
        f"{vectors:,} vectors in {size_text(payload)} ({payload / max(vectors, 1):.3f} B a vector)"
    )
    console.print(
        f"this run: {now.pixels / 1e6:,.1f} Mpx, {size_text(now.bytes_in)} in, "
        f"{size_text(now.bytes_out)} out, {now.seconds:,.0f} s on {now.engine}"
    )
    if not report.ok:
        for name, reason in report.failures.items():
            console.print(f"[red]{escape(name)}[/red]: {escape(reason)}")
        console.print(RETRY)
        raise typer.Exit(1)
