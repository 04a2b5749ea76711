"""Commands that make, show, publish and check stores."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from nec.cli.terminal import (
    Checkpoint,
    StorageOption,
    Store,
    app,
    check_folder,
    console,
    progress_bar,
    storage_options,
    with_checkpoint,
)
from nec.demo import size_text
from nec.errors import CompressorError, StoreError

if TYPE_CHECKING:
    import xarray as xr


@app.command()
def fit(
    source: Annotated[
        Path,
        typer.Argument(
            help="Embeddings: .npy (\\[y, x,] feature), .tif, .zarr; or a scene with --model."
        ),
    ],
    compressor: Annotated[Path, typer.Argument(help="Compressor to write (.json).")],
    size: Annotated[float | None, typer.Option("--bytes", help="Bytes a vector to hit.")] = None,
    cosine: Annotated[float | None, typer.Option(help="Mean cosine to hit.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="Decoding rule of an int8 product: alphaearth.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The source is a scene, to be embedded by this model.")
    ] = None,
    checkpoint: Checkpoint = None,
    gamma: Annotated[
        float, typer.Option(help="Steps ~ variance ** gamma: 0 for cosine, 0.125 for heads.")
    ] = 0.0,
    min_cosine: Annotated[
        float, typer.Option(help="Smallest cosine of any vector, a guarantee.")
    ] = 0.0,
    codebook: Annotated[
        str | None,
        typer.Option(
            help="Code vectors as one of so many and a difference: a number, auto, or 0; auto for "
            "vectors without a place, none for maps. A number without --bytes and --cosine: no "
            "difference, the fewest bytes."
        ),
    ] = None,
) -> None:
    """Fit a compressor to embeddings that are there already, of any product.

    [bold]Example:[/bold] nec fit alphaearth.tif ae.json --bytes 1 --rule alphaearth

    then: nec encode alphaearth.tif out.zarr --model ae.json --rule alphaearth

    nec fit scene.tif g.json --bytes 2 --model galileo:FOLDER

    then: nec encode scene.tif out.zarr --model galileo:FOLDER --rate g.json

    nec fit vectors.npy v.json --bytes 2

    of vectors (sample, feature); then: nec encode vectors.npy out.zarr --model v.json
    """
    from nec.compressor import Compressor

    basis = None
    if model is not None:
        from nec.model import load_model
        from nec.production import sample_features

        if rule is not None:
            raise CompressorError(f"--rule {rule} does not go with --model", "leave it out")
        loaded = load_model(with_checkpoint(model, checkpoint))
        if loaded.compressors:
            basis = loaded.basis  # heads of the model read stores of any of its rates
        sample: Any = sample_features(source, model=loaded)
    else:
        from nec.products import open_embedding

        sample = open_embedding(source, rule=rule)
    if codebook is None:
        codebook = "auto" if getattr(sample, "dims", ())[:1] == ("sample",) else "0"
    check_folder(compressor)
    fitted = Compressor.fit(
        sample,
        bytes_per_vector=size,
        cosine=cosine,
        basis=basis,
        gamma=gamma,
        min_cosine=min_cosine,
        codebook=int(codebook) if codebook.isdigit() else codebook,
    )
    fitted.save(compressor)
    console.print(
        f"[bold]{escape(str(compressor))}[/bold]: {fitted.fidelity.bytes_per_vector:.3f} "
        f"B a vector, cosine {fitted.fidelity.cosine_mean:.4f}"
    )


@app.command()
def info(
    store: Store,
    quicklook: Annotated[
        Path | None, typer.Option(help="Write the first three components as a PNG.")
    ] = None,
    option: StorageOption = None,
) -> None:
    """Say what a store holds.

    [bold]Example:[/bold] nec info out.zarr --quicklook out.png
    """
    from nec.archive import open_store

    options = storage_options(option)
    dataset = open_store(store, storage_options=options)
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
        "time": _times(dataset),
        "CRS": _crs(dataset),
        "shards": ", ".join(f"{n} {k}" for k, n in own["tasks"].items())
        if "tasks" in own
        else "unfinished: run nec encode again",
        "valid vectors": f"{own['vectors']:,}" if "vectors" in own else None,
        "bytes a vector": own.get("bytes_per_vector"),
        "payload": ", ".join(f"{k} {size_text(v)}" for k, v in own["payload_bytes"].items())
        if "payload_bytes" in own
        else None,
        "cosine": _figures(own.get("cosine")),
        "seam": _figures(own.get("seam")),
        "masked fraction": _masked(own.get("masked_fraction")),
        "basis": own.get("basis"),
        "format version": own.get("format_version"),
        "sealed": "yes" if "seal" in own else "no",
    }
    for key, value in rows.items():
        if value not in (None, ""):
            table.add_row(key, escape(str(value)))
    console.print(table)
    _print_shares(store, options)
    if quicklook is not None:
        check_folder(quicklook)
        console.print(f"quicklook: {escape(str(dataset.nec.quicklook(quicklook)))}")


def _crs(dataset: "xr.Dataset") -> str | None:
    """Name the CRS of a store by its code, or else as its WKT does."""
    if "spatial_ref" not in dataset.coords:
        return None
    code = dataset.attrs.get("proj:code")
    _, _, rest = dataset.spatial_ref.attrs.get("crs_wkt", "").partition('"')
    return str(code or rest.partition('"')[0])


def _figures(named: object) -> str | None:
    """Tell numbers by name: mean 0.994, p01 0.984."""
    if not isinstance(named, dict):
        return None if named is None else str(named)
    return ", ".join(f"{name} {value}" for name, value in named.items())


def _times(dataset: "xr.Dataset") -> str | None:
    """Say which times a store holds; none where it has no such dimension."""
    if "time" not in dataset.dims:
        return None
    times = dataset["time"].values
    if len(times) == 1:
        return str(times[0])
    first, last = (str(time)[:10] for time in (times[0], times[-1]))
    return f"{len(times)} from {first} to {last}"


def _masked(fraction: float | list[float | None] | None) -> str | None:
    """Say which share of pixels is missing, of all times or of each."""
    if not isinstance(fraction, list):
        return None if fraction is None else f"{fraction:.1%}"
    return ", ".join("-" if part is None else f"{part:.1%}" for part in fraction)


def _print_shares(store: str, options: dict[str, str]) -> None:
    """Print what subsets of a store cost, where it has any."""
    from nec.archive.objects import checked_store
    from nec.archive.subset import shares

    found: dict[int, dict[int, float]] = {}
    with suppress(StoreError):  # damage is for nec verify to tell
        found = shares(checked_store(store, storage_options=options))
    if not found or min(min(row.values()) for row in found.values()) > 0.99:
        return
    edges = list(next(iter(found.values())))
    table = Table(
        "bands",
        *map(str, edges),
        title="share of the bytes that `bands` and `overview` need",
    )
    for bands, row in found.items():
        table.add_row(str(bands), *(f"{row[edge]:.0%}" for edge in edges))
    console.print(table)


@app.command()
def seal(
    store: Annotated[Path, typer.Argument(help="Finished store.")],
    allow_failed: Annotated[
        bool,
        typer.Option("--allow-failed", help="Seal though shards failed: they read as missing."),
    ] = False,
) -> None:
    """Publish a store: write the manifest of every object; it never changes after.

    [bold]Example:[/bold] nec seal out.zarr
    """
    from nec.archive import seal as run

    run(store, allow_failed=allow_failed)
    console.print(f"[bold]{escape(str(store))}[/bold] is sealed")


@app.command()
def publish(
    store: Annotated[Path, typer.Argument(help="Sealed store on this machine.")],
    url: Annotated[str, typer.Argument(help="Where it is to be: s3://bucket/name.zarr, gs://…")],
    option: StorageOption = None,
) -> None:
    """Copy a sealed store to object storage, where nobody sees it half there.

    Run it again after an interruption: what is there already is not sent again. Keys come from
    the environment or the storage's own configuration.

    [bold]Example:[/bold] nec publish out.zarr s3://archive/out.zarr
    """
    from nec.archive import publish as run

    options = storage_options(option)
    with Progress(console=console) as bar:
        task = bar.add_task(escape(f"publishing {store}"), total=None)
        done = run(
            store,
            url,
            storage_options=options,
            progress=lambda now, total: bar.update(task, completed=now, total=total),
        )
    console.print(
        f"[bold]{escape(done.url)}[/bold]: {done.objects} objects, {done.sent} of them sent now "
        f"({size_text(done.bytes)})"
    )


@app.command()
def commit(
    store: Annotated[Path, typer.Argument(help="Finished store on this machine, sealed or not.")],
    repository: Annotated[
        str, typer.Argument(help="Icechunk repository: a folder, s3://bucket/name, gs://, az://.")
    ],
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="What the history shall say.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Name for this state; a tag never moves.")] = None,
    branch: Annotated[str, typer.Option(help="Branch to commit to.")] = "main",
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Commit though the branch holds another run's store, or scenes that STORE lacks; "
            "they stay in the history.",
        ),
    ] = False,
    allow_failed: Annotated[
        bool,
        typer.Option("--allow-failed", help="Commit though shards failed: they read as missing."),
    ] = False,
    option: StorageOption = None,
) -> None:
    """Commit a store's state to an Icechunk repository: earlier states stay readable.

    Only what changed since the last commit is written, in one transaction. Open a state with
    nec.open("icechunk:REPOSITORY#tag=NAME"), or with #snapshot=ID, #as_of=2026-05-01.

    [bold]Example:[/bold] nec commit series/T33UUU.zarr archive/ --tag 2026-05
    """
    from nec.archive import commit as run

    options = storage_options(option)
    with Progress(console=console) as bar:
        task = bar.add_task(escape(f"committing {store}"), total=None)
        done = run(
            store,
            repository,
            message=message,
            tag=tag,
            branch=branch,
            replace=replace,
            allow_failed=allow_failed,
            storage_options=options,
            progress=lambda now, total: bar.update(task, completed=now, total=total),
        )
    if not done.new:
        console.print(f"nothing changed since [bold]{escape(done.name)}[/bold]")
        return
    console.print(
        f"[bold]{escape(done.name)}[/bold]: {done.objects} objects, {done.written} written "
        f"({size_text(done.bytes)}), {done.removed} removed"
    )


@app.command()
def history(
    repository: Annotated[
        str, typer.Argument(help="Icechunk repository; with #tag=NAME the commits up to there.")
    ],
    option: StorageOption = None,
) -> None:
    """List the commits of an Icechunk repository, the last first.

    [bold]Example:[/bold] nec history archive/
    """
    from nec.archive import history as run

    table = Table()
    # Whole: a snapshot's name is what #snapshot= takes.
    table.add_column("snapshot", no_wrap=True, overflow="fold", min_width=20)
    for name in ("time (UTC)", "tags", "written", "message"):
        table.add_column(name, overflow="fold")
    for one in run(repository, storage_options=storage_options(option)):
        table.add_row(
            one.id,
            f"{one.time:%Y-%m-%dT%H:%M:%S}",
            escape(", ".join(one.tags)),
            size_text(one.details["bytes"]) if "bytes" in one.details else "",
            escape(one.message),
        )
    console.print(table)


@app.command()
def verify(store: Store, option: StorageOption = None) -> None:
    """Check every object of a store, or of a commit; name what is missing or damaged.

    [bold]Example:[/bold] nec verify out.zarr

    nec verify icechunk:archive/#tag=2026-05
    """
    from nec.archive import verify as run

    report = run(store, storage_options=storage_options(option))
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

    names = list_models()
    first = Column("model", min_width=max(map(len, names)))
    table = Table(
        first, "parameters", "bands", "dimensions", "patch", "rates (B a vector, as fitted)"
    )
    for name in names:
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

    with progress_bar("encoding") as progress:
        outcome = run(scene, out, progress=progress)
    for table in outcome.tables():
        console.print(table)
    console.print("[bold]Files:[/bold] " + ", ".join(escape(str(f)) for f in outcome.files))
