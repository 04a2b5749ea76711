"""Commands that train and run heads."""

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress

from nec.archive.temporaries import put
from nec.cli.labels import (
    at_time,
    chosen,
    one_time,
    places_of,
    read_labels,
    sampled,
)
from nec.cli.terminal import StorageOption, Store, app, check_folder, console, storage_options
from nec.errors import HeadError

if TYPE_CHECKING:
    import xarray as xr

    from nec.heads import BiomassRegressor


logger = logging.getLogger(__name__)

# Mean cosine below which maps lose points that can be told (docs/heads.md).
FAITHFUL = 0.99


class Task(StrEnum):
    """What a head gives for each token."""

    CLASSES = "classes"
    BIOMASS = "biomass"


# Options that mean something, by task and by where its labels come from.
_TAKEN: dict[Task, dict[str, tuple[str, ...]]] = {
    Task.CLASSES: {
        "--labels": ("--ignore", "--band", "--decoder", "--decoder-option", "--steps", "--time"),
        "--points": ("--column", "--ignore", "--method", "--time"),
        "--label": ("--where", "--method"),
    },
    Task.BIOMASS: {
        "--labels": ("--ignore", "--band", "--error-band", "--units", "--se-floor", "--time"),
        "--points": (
            *("--column", "--error-column", "--ignore", "--units", "--se-floor", "--time"),
        ),
    },
}
TimeOption = Annotated[
    str | None,
    typer.Option("--time", help="Day of a store of several, as 2024-07-31; points take all."),
]


@app.command()
def train(
    store: Store,
    head: Annotated[Path, typer.Argument(help="Head to write (.safetensors).")],
    task: Annotated[
        Task,
        typer.Option(help="classes; or biomass: any quantity of the ground, from measurements."),
    ] = Task.CLASSES,
    labels: Annotated[
        Path | None,
        typer.Option(help="Raster of classes (trains a segmentation head) or of measurements."),
    ] = None,
    ignore: Annotated[
        float | None,
        typer.Option(help="Number that is no label; in a raster of classes -1. Nodata never is."),
    ] = None,
    band: Annotated[
        int | None,
        typer.Option(help="Band of --labels that holds them, from 1.", show_default="1"),
    ] = None,
    error_band: Annotated[
        int | None, typer.Option(help="Band of --labels with their standard errors (biomass).")
    ] = None,
    points: Annotated[
        Path | None, typer.Option(help="Vector file of labelled points, with --column.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of --points with the labels.")] = None,
    error_column: Annotated[
        str | None, typer.Option(help="Column of --points with standard errors (biomass).")
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(help="Of the measurements (biomass).", show_default="Mg/ha"),
    ] = None,
    se_floor: Annotated[
        float | None,
        typer.Option(
            help="Smallest standard error that is believed (biomass), in --units.",
            show_default="10",
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Coordinate of an image collection with the classes.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="Train on samples of this kind only, as set=train; the others test."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="linear, knn or mlp, of --points and --label.", show_default="linear"),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(
            help="Of classes of --labels: linear labels tokens; conv, fpn, or a decoder of "
            "TerraTorch by name, such as UperNetDecoder, label pixels.",
            show_default="linear",
        ),
    ] = None,
    decoder_option: Annotated[
        list[str] | None,
        typer.Option(help="Of TerraTorch's decoder, as channels=32 (JSON); may be repeated."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of a --decoder.")] = None,
    time: TimeOption = None,
    option: StorageOption = None,
) -> None:
    """Train a head on the embeddings of a store; a model card (.md) is written beside it.

    Labels lie over the store by their coordinates, at any resolution; rasters in another CRS
    are brought over, which is said. Tokens without a label train nothing, so a few points or
    shots are enough.

    [bold]Classes:[/bold] nec train out.zarr head.safetensors --labels classes.tif

    nec train out.zarr head.safetensors --labels classes.tif --decoder UperNetDecoder
    --decoder-option channels=32

    nec train out.zarr head.safetensors --points places.gpkg --column class

    nec train catalogs/eurosat/embeddings.zarr head.safetensors --label label --where set=train

    [bold]Biomass:[/bold] nec train out.zarr agb.safetensors --task biomass --labels agbd.tif
    --ignore 0 --band 1 --error-band 2

    nec train out.zarr height.safetensors --task biomass --points shots.gpkg --column rh95
    --units m --se-floor 1
    """
    from nec.archive import open_store
    from nec.heads import BiomassRegressor, load_head

    sources = {"--labels": labels, "--points": points, "--label": label}
    source = [name for name, given in sources.items() if given is not None]
    if len(source) != 1:
        raise HeadError("the labels come from one place", "give --labels, --points or --label")
    if source[0] not in _TAKEN[task]:
        raise HeadError(f"--task {task} takes no {source[0]}", "give --labels or --points")
    _check_options(
        f"{source[0]} of {task}",
        _TAKEN[task][source[0]],
        {
            "--ignore": ignore,
            "--band": band,
            "--error-band": error_band,
            "--column": column,
            "--error-column": error_column,
            "--units": units,
            "--se-floor": se_floor,
            "--where": where,
            "--method": method,
            "--decoder": decoder,
            "--decoder-option": decoder_option or None,
            "--steps": steps,
            "--time": time,
        },
    )
    check_folder(head)
    dataset = at_time(open_store(store, storage_options=storage_options(option)), time)
    if label is None:
        _check_place(store, dataset)
    if task is Task.BIOMASS:
        units = units or "Mg/ha"
        regressor = BiomassRegressor(units=units, se_floor=10.0 if se_floor is None else se_floor)
        if labels is not None:
            _measured_raster(regressor, dataset, labels, ignore, band or 1, error_band)
        elif points is not None:
            _measured_points(regressor, dataset, points, ignore, column, error_column)
        regressor.save(head)
        told = (
            f"{regressor.n_labels_} labels, RMSE of held-out blocks "
            f"{regressor.held_out_rmse_:.3g} {units}"
        )
    elif labels is not None:
        network = _network(decoder or "linear", decoder_option or [], steps)
        told = _segmentation(dataset, head, labels, ignore, band or 1, network)
    elif points is not None:
        told = _classes_of_points(dataset, head, points, column, ignore, method or "linear")
    else:
        told = _classes_of_images(store, dataset, head, str(label), where, method or "linear")
    card = _card_of(head)
    learned = labels or points or f"coordinate `{label}`"
    put(card, load_head(head).card(data=f"{learned} over {store}").encode())
    console.print(f"[bold]{escape(str(head))}[/bold]: {told}; card: {escape(str(card))}")


def _card_of(head: Path) -> Path:
    """Where the card of a head goes: never on the head, nor on that of another one."""
    return head.with_suffix(".md") if head.suffix == ".safetensors" else Path(f"{head}.md")


def _check_options(what: str, taken: tuple[str, ...], given: dict[str, Any]) -> None:
    """Refuse options that would do nothing."""
    for name, value in given.items():
        if value is not None and name not in taken:
            raise HeadError(
                f"{what} takes no {name} (got {value!r})", f"it takes {', '.join(taken)}"
            )


def _check_place(store: str, dataset: "xr.Dataset") -> None:
    """Refuse images without a place; warn where the store's rate was made for less than maps."""
    if "y" not in dataset.nec.array("embedding").coords:
        raise HeadError(
            f"{store} is an image collection without a place", "give --label, or a scene's store"
        )
    cosine = dataset.nec.info.get("cosine", {}).get("mean", 1.0)
    if cosine < FAITHFUL:
        logger.warning(
            "%s holds vectors at a mean cosine of %.3f: maps and quantities lose by that; where "
            "they count, encode at a higher rate (nec encode --rate high)",
            store,
            cosine,
        )


def _segmentation(
    dataset: "xr.Dataset",
    head: Path,
    labels: Path,
    ignore: float | None,
    band: int,
    network: dict[str, Any],
) -> str:
    from nec.heads import Segmenter

    segmenter = Segmenter(ignore_index=-1 if ignore is None else _whole(ignore), **network)
    truth = read_labels(labels, band)
    with Progress(console=console, disable=not network) as bar:
        step = bar.add_task("training", total=None)
        segmenter.fit(
            one_time(dataset, "embedding"),
            truth,
            progress=lambda done, total: bar.update(step, completed=done, total=total),
        )
    segmenter.save(head)
    score = segmenter.score(one_time(dataset, "embedding"), truth)
    count = len(segmenter.classes_)
    return f"{count} classes, accuracy on its own training data {score:.3f}"


def _measured_raster(
    regressor: "BiomassRegressor",
    dataset: "xr.Dataset",
    labels: Path,
    ignore: float | None,
    band: int,
    error_band: int | None,
) -> None:
    from nec.heads.labels import numbers_of

    measured = numbers_of(read_labels(labels, band), ignore)
    errors = None
    if error_band is not None:
        errors = numbers_of(read_labels(labels, error_band), None, errors=True)
    regressor.fit(one_time(dataset, "embedding"), measured, standard_error=errors)


def _measured_points(
    regressor: "BiomassRegressor",
    dataset: "xr.Dataset",
    points: Path,
    ignore: float | None,
    column: str | None,
    error_column: str | None,
) -> None:
    import numpy as np

    table = sampled(dataset, points, column)
    numbers = []
    for name in (column, error_column):
        if name is None:
            continue
        if name not in table:
            raise HeadError(f"{points} has no column {name!r}", f"has: {list(table.columns)}")
        try:
            numbers.append(table[name].to_numpy(np.float64))
        except (TypeError, ValueError) as error:
            raise HeadError(
                f"column {name!r} of {points} holds no numbers ({error})",
                "choose another column, or leave out --task biomass",
            ) from error
    values = numbers[0] if ignore is None else np.where(numbers[0] == ignore, np.nan, numbers[0])
    regressor.fit(
        table.filter(regex=r"^band_\d+$"),
        values,
        standard_error=numbers[1] if len(numbers) > 1 else None,
        groups=places_of(dataset, table, regressor.block_size, regressor.folds),
    )


def _classes_of_points(
    dataset: "xr.Dataset",
    head: Path,
    points: Path,
    column: str | None,
    ignore: float | None,
    method: str,
) -> str:
    from nec.heads import SceneClassifier

    table = sampled(dataset, points, column)
    if ignore is not None:
        table = table[table[column] != ignore]
    classifier = SceneClassifier(method=method)
    classifier.fit(table.filter(regex=r"^band_\d+$"), table[column].to_numpy())
    classifier.save(head)
    return f"{len(table)} points, {len(classifier.classes_)} classes"


def _classes_of_images(
    store: str, dataset: "xr.Dataset", head: Path, label: str, where: str | None, method: str
) -> str:
    from nec.heads import SceneClassifier

    if label not in dataset.coords or dataset[label].dims != ("sample",):
        raise HeadError(
            f"{store} has no coordinate {label!r} of its samples",
            f"coordinates: {', '.join(map(str, dataset.coords))}; for a scene give --labels",
        )
    classifier = SceneClassifier(method=method)
    vectors, classes = dataset["scene_embedding"].load(), dataset[label].to_numpy()
    known = chosen(dataset, where)
    classifier.fit(vectors[known], classes[known])
    classifier.save(head)
    told = f"{int(known.sum())} images, {len(classifier.classes_)} classes"
    if not known.all():
        score = classifier.score(vectors[~known], classes[~known])
        told += f"\naccuracy on the other {int((~known).sum())} images: {score:.4f}"
    return told


def _network(decoder: str, options: list[str], steps: int | None) -> dict[str, Any]:
    """Return the parameters of a segmenter that are not the defaults; values are JSON or words."""
    if decoder == "linear":
        if options or steps is not None:
            raise HeadError(
                "--decoder-option and --steps go with networks", "give --decoder, or leave them out"
            )
        return {}
    found: dict[str, Any] = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not (name and sign and value):
            raise HeadError(f"--decoder-option {option!r} has no value", "as channels=32")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    network: dict[str, Any] = {"decoder": decoder, "decoder_options": found or None}
    return network if steps is None else {**network, "steps": steps}


def _whole(value: float) -> float | int:
    return int(value) if value.is_integer() else value


@app.command()
def predict(
    store: Store,
    head: Annotated[Path, typer.Argument(help="Head that `nec train` wrote.")],
    out: Annotated[
        Path, typer.Argument(help="Map to write: a cloud-optimised GeoTIFF, or Zarr (.zarr).")
    ],
    cells: Annotated[
        bool, typer.Option("--cells", help="Classify pooled cells of 16 x 16 tokens.")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(help="Of biomass: write the bounds that hold this share, 0.9, beside it."),
    ] = None,
    time: TimeOption = None,
    option: StorageOption = None,
) -> None:
    """Map a store with a head: classes, or a quantity in its units.

    [bold]Example:[/bold] nec predict out.zarr head.safetensors map.tif

    nec predict out.zarr agb.safetensors agb.tif --interval 0.9

    The second one writes agb.lower.tif and agb.upper.tif too: about that share of measurements
    falls between, in places like those that were learned from. Scenes may be larger than memory.
    """
    from nec.archive import open_store
    from nec.heads import BiomassRegressor, load_head, write_map

    check_folder(out)
    dataset = at_time(open_store(store, storage_options=storage_options(option)), time)
    if "y" not in dataset.nec.array("embedding").coords:
        raise HeadError(f"{store} is an image collection without a place", "map a scene's store")
    fitted = load_head(head)
    if isinstance(fitted, BiomassRegressor) and cells:
        raise HeadError("a biomass head maps tokens", "leave out --cells")
    if interval is not None and not 0 < interval < 1:
        raise HeadError(f"--interval {interval} is no share", "give one between 0 and 1, as 0.9")
    if interval is not None and not isinstance(fitted, BiomassRegressor):
        raise HeadError(f"{head} gives classes, which have no interval", "leave out --interval")
    vectors = one_time(dataset, "scene_embedding" if cells else "embedding")
    bounds = None
    if interval is not None and isinstance(fitted, BiomassRegressor):
        bounds = fitted.predict_interval(vectors, coverage=interval)
    mapped = fitted.predict(vectors)
    write_map(mapped, out)
    console.print(f"[bold]{escape(str(out))}[/bold]: {dict(mapped.sizes)}")
    if bounds is not None:
        for bound in ("lower", "upper"):
            beside = out.with_suffix(f".{bound}{out.suffix}")
            told = f"{bound} bound of {interval:.0%}"
            write_map(bounds.sel(bound=bound, drop=True).assign_attrs(long_name=told), beside)
            console.print(f"[bold]{escape(str(beside))}[/bold]: {told}")
