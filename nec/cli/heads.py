"""Commands that train and run heads."""

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress

from nec.cli.terminal import StorageOption, Store, app, console, storage_options
from nec.errors import HeadError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from nec.heads import BiomassRegressor


logger = logging.getLogger(__name__)

# Mean cosine below which maps lose points that can be told (docs/heads.md).
FAITHFUL = 0.99


class Task(StrEnum):
    """What a head gives for each token."""

    CLASSES = "classes"
    BIOMASS = "biomass"


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
        typer.Option(help="Value of --labels that is no label; of classes -1. Nodata never is."),
    ] = None,
    band: Annotated[int, typer.Option(help="Band of --labels that holds them, from 1.")] = 1,
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
    units: Annotated[str, typer.Option(help="Of the measurements (biomass).")] = "Mg/ha",
    se_floor: Annotated[
        float, typer.Option(help="Smallest standard error that is believed (biomass), in --units.")
    ] = 10.0,
    label: Annotated[
        str | None, typer.Option(help="Coordinate of an image collection with the classes.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="Train on samples of this kind only, as set=train; the others test."),
    ] = None,
    method: Annotated[str, typer.Option(help="linear, knn or mlp (not with --labels).")] = "linear",
    decoder: Annotated[
        str,
        typer.Option(
            help="Of classes of --labels: linear labels tokens; conv, fpn, or a decoder of "
            "TerraTorch by name, such as UperNetDecoder, label pixels."
        ),
    ] = "linear",
    decoder_option: Annotated[
        list[str] | None,
        typer.Option(help="Of TerraTorch's decoder, as channels=32 (JSON); may be repeated."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of a --decoder.")] = None,
    option: StorageOption = None,
) -> None:
    """Train a head on the embeddings of a store; a model card (.md) is written beside it.

    Labels lie over the store by their coordinates, at any resolution; rasters in another CRS
    are reprojected, which is said. Tokens without a label train nothing, so a few points or
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

    dataset = open_store(store, storage_options=storage_options(option))
    if sum(given is not None for given in (labels, points, label)) != 1:
        raise HeadError("the labels come from one place", "give --labels, --points or --label")
    if label is None:
        _check_place(store, dataset)
    network = _network(decoder, decoder_option or [], steps)
    if network and (labels is None or task is Task.BIOMASS):
        raise HeadError(
            f"--decoder {decoder} needs a raster of classes", "give --labels, or leave it out"
        )
    if task is Task.BIOMASS:
        if label is not None or where is not None or method != "linear":
            raise HeadError(
                "--task biomass takes no --label, --where or --method", "give --labels or --points"
            )
        regressor = BiomassRegressor(units=units, se_floor=se_floor)
        if labels is not None:
            _measured_raster(regressor, dataset, labels, ignore, band, error_band)
        elif points is not None:
            _measured_points(regressor, dataset, points, ignore, column, error_column)
        regressor.save(head)
        told = (
            f"{regressor.n_labels_} labels, RMSE of held-out blocks "
            f"{regressor.held_out_rmse_:.3g} {units}"
        )
    elif error_band is not None or error_column is not None:
        raise HeadError("classes have no standard errors", "leave it out, or --task biomass")
    elif labels is not None:
        if method != "linear":
            raise HeadError(f"--labels takes no --method {method}", "leave it out")
        told = _segmentation(dataset, head, labels, ignore, band, network)
    elif points is not None:
        told = _classes_of_points(dataset, head, points, column, method)
    else:
        told = _classes_of_images(store, dataset, head, str(label), where, method)
    card = head.with_suffix(".md")
    learned = labels or points or f"coordinate `{label}`"
    card.write_text(load_head(head).card(data=f"{learned} over {store}"))
    console.print(f"[bold]{escape(str(head))}[/bold]: {told}; card: {escape(str(card))}")


def _check_place(store: str, dataset: "xr.Dataset") -> None:
    """Refuse images without a place; warn where the store's rate was made for less than maps."""
    if "y" not in dataset["embedding"].coords:
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
    truth = _read_labels(labels, band)
    with Progress(console=console, disable=not network) as bar:
        step = bar.add_task("training", total=None)
        segmenter.fit(
            _undated(dataset["embedding"]),
            truth,
            progress=lambda done, total: bar.update(step, completed=done, total=total),
        )
    segmenter.save(head)
    score = segmenter.score(_undated(dataset["embedding"]), truth)
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
    measured = _numbers(_read_labels(labels, band), ignore)
    errors = None if error_band is None else _numbers(_read_labels(labels, error_band), None)
    regressor.fit(_undated(dataset["embedding"]), measured, standard_error=errors)


def _measured_points(
    regressor: "BiomassRegressor",
    dataset: "xr.Dataset",
    points: Path,
    ignore: float | None,
    column: str | None,
    error_column: str | None,
) -> None:
    import numpy as np

    table = _sampled(dataset, points, column)
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
        groups=_places(dataset, table, regressor.block_size, regressor.folds),
    )


def _places(
    dataset: "xr.Dataset", table: Any, edge: int, folds: int
) -> "np.ndarray[Any, Any] | None":
    """Return the block of `edge` tokens that each point lies in; smaller ones where these are few.

    None where there are not two even so: each point is a place of its own then.
    """
    import geopandas
    import numpy as np

    from nec.evaluate import spatial_blocks
    from nec.sampling import Lattice

    lattice = Lattice.of(dataset["embedding"])
    where = geopandas.GeoSeries(table["geometry"]).to_crs(lattice.crs.to_wkt())
    size = float(edge * max(map(abs, lattice.step)))
    for _ in range(edge.bit_length()):
        blocks = spatial_blocks(where.x.to_numpy(), where.y.to_numpy(), size=size)
        if len(np.unique(blocks)) >= folds:
            break
        size /= 2
    return blocks if len(np.unique(blocks)) > 1 else None


def _classes_of_points(
    dataset: "xr.Dataset", head: Path, points: Path, column: str | None, method: str
) -> str:
    from nec.heads import SceneClassifier

    table = _sampled(dataset, points, column)
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
    chosen = _chosen(dataset, where)
    classifier.fit(vectors[chosen], classes[chosen])
    classifier.save(head)
    told = f"{int(chosen.sum())} images, {len(classifier.classes_)} classes"
    if not chosen.all():
        score = classifier.score(vectors[~chosen], classes[~chosen])
        told += f"\naccuracy on the other {int((~chosen).sum())} images: {score:.4f}"
    return told


def _sampled(dataset: "xr.Dataset", points: Path, column: str | None) -> Any:
    """Return the vectors under points, with their columns."""
    import geopandas

    from nec.sampling import sample

    if column is None:
        raise HeadError("--points needs --column", "name the column with the labels")
    try:
        places = geopandas.read_file(points)
    except Exception as error:  # drivers' errors have no common parent
        raise HeadError(
            f"{points} cannot be read as a vector file ({error})", "give a GeoPackage"
        ) from error
    if column not in places:
        raise HeadError(f"{points} has no column {column!r}", f"has: {list(places.columns)}")
    return sample(dataset, places)


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
    # Strings of stores are of a numpy type that does not cast to plain ones.
    values = np.array([str(item) for item in dataset[name].to_numpy().tolist()])
    chosen: np.ndarray[Any, Any] = values == value
    if not chosen.any():
        raise HeadError(
            f"no sample has {where}", f"values: {sorted(set(map(str, dataset[name].values)))[:8]}"
        )
    return chosen


def _read_labels(path: Path, band: int) -> "xr.DataArray":
    import rioxarray

    try:
        opened: Any = rioxarray.open_rasterio(path)
    except Exception as error:  # rasterio's errors have no common parent
        raise HeadError(f"{path} cannot be read as a raster ({error})", "give a GeoTIFF") from error
    if not 1 <= band <= opened.sizes["band"]:
        raise HeadError(
            f"{path} has {opened.sizes['band']} bands, and band {band} is asked for",
            "give --band or --error-band, from 1",
        )
    plane: xr.DataArray = opened.isel(band=band - 1, drop=True)
    return plane


def _numbers(labels: "xr.DataArray", ignore: float | None) -> "xr.DataArray":
    """Bring numbers to float64 with NaN for what is none."""
    values = labels.astype("float64")
    for nothing in (labels.rio.nodata, ignore):
        if nothing is not None:
            values = values.where(values != nothing)
    return values.rio.write_nodata(float("nan"))  # type: ignore[no-any-return]


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


def _undated(embedding: "xr.DataArray") -> "xr.DataArray":
    return embedding.isel(time=0) if "time" in embedding.dims else embedding


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

    dataset = open_store(store, storage_options=storage_options(option))
    if "y" not in dataset["embedding"].coords:
        raise HeadError(f"{store} is an image collection without a place", "map a scene's store")
    fitted = load_head(head)
    if isinstance(fitted, BiomassRegressor) and cells:
        raise HeadError("a biomass head maps tokens", "leave out --cells")
    if interval is not None and not isinstance(fitted, BiomassRegressor):
        raise HeadError(f"{head} gives classes, which have no interval", "leave out --interval")
    vectors = _undated(dataset["scene_embedding" if cells else "embedding"])
    mapped = fitted.predict(vectors)
    write_map(mapped, out)
    console.print(f"[bold]{escape(str(out))}[/bold]: {dict(mapped.sizes)}")
    if interval is not None and isinstance(fitted, BiomassRegressor):
        bounds = fitted.predict_interval(vectors, coverage=interval)
        for bound in ("lower", "upper"):
            beside = out.with_suffix(f".{bound}{out.suffix}")
            write_map(bounds.sel(bound=bound, drop=True), beside)
            console.print(f"[bold]{escape(str(beside))}[/bold]: {bound} bound of {interval:.0%}")
