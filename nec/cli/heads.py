"""Commands that train and run heads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from nec.cli.terminal import Store, app, console
from nec.errors import HeadError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr


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
    # Strings of stores are of a numpy type that does not cast to plain ones.
    values = np.array([str(item) for item in dataset[name].to_numpy().tolist()])
    chosen: np.ndarray[Any, Any] = values == value
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
