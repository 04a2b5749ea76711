"""Tables: what the benchmark found, for the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table


def show(results: dict[str, Any]) -> None:
    """Print a table for each part that was run."""
    console = Console(width=165)
    if "scenes" in results:
        console.print(_sizes(results["scenes"]))
        console.print(_checks(results["scenes"]))
    for part, metrics in (
        ("segmentation", ("accuracy", "mean_iou")),
        ("points", ("accuracy", "balanced_accuracy")),
        ("images", ("accuracy",)),
    ):
        if part in results:
            console.print(_accuracies(results[part], metrics))
    if "images" in results:
        found = results["images"]
        console.print(f"JPEG: {found['jpeg_bytes_per_image']:,.0f} bytes an image")
        console.print(f"Catalog: {found['catalog_bytes']}")
    console.print(f"Seconds: {results['seconds']}")


def _sizes(scenes: dict[str, Any]) -> Table:
    table = Table(title="Scenes: kB on disk")
    for name in ("scene", "rate", "embedding", "scene_embedding", "fixed", "total", "B a token"):
        table.add_column(name, justify="left" if name in ("scene", "rate") else "right")
    for name in ("raw file", "raw uint16", "float32", "int8"):
        table.add_column(name, justify="right")
    for scene, found in scenes.items():
        others = [
            found["raw"]["file"],
            found["raw"]["uint16"],
            found["embedding_bytes"]["float32"],
            found["embedding_bytes"]["int8"],
        ]
        for rate, entry in found["rates"].items():
            own = [*entry["payload"].values(), entry["fixed_bytes"], entry["total"]]
            table.add_row(
                scene,
                rate,
                *(f"{v / 1e3:,.1f}" for v in own),
                f"{entry['bytes_per_token']:.3f}",
                *(f"{v / 1e3:,.0f}" for v in others),
            )
    return table


def _checks(scenes: dict[str, Any]) -> Table:
    table = Table(title="Scenes: place, seams, fidelity, time")
    names = ("scene", "rate", "corner error, px", "lattice error, px", "tokens missing wrongly")
    for name in (
        *names,
        "nodata NaN",
        "cosine",
        "1 %",
        "min",
        "variance kept",
        "neighbours inside / across / worst",
    ):
        table.add_column(name)
    table.add_column("encode s")
    table.add_column("read s")
    for scene, found in scenes.items():
        for rate, entry in found["rates"].items():
            place, fidelity = entry["place"], entry["fidelity"]
            table.add_row(
                scene,
                rate,
                f"{place['corner_error_pixels']:.6f}",
                f"{place['lattice_error_pixels']:.6f}",
                str(place["mask_differences"]),
                str(place["nodata_is_nan"]),
                f"{fidelity['cosine_mean']:.4f}",
                f"{fidelity['cosine_p01']:.4f}",
                f"{fidelity['cosine_min']:.3f}",
                f"{fidelity['variance_kept']:.3f}",
                " / ".join(f"{v:.4f}" for v in entry["seam"].values()),
                f"{entry['encode_seconds']:.1f}",
                f"{entry['open_and_read_seconds']:.2f}",
            )
    return table


def _accuracies(found: dict[str, Any], metrics: tuple[str, ...]) -> Table:
    table = Table(title=found["task"])
    table.add_column("row")
    table.add_column("bytes", justify="right")
    for metric in metrics:
        table.add_column(f"{metric}, %", justify="right")
        table.add_column("against float32", justify="right")
        table.add_column("no worse", justify="center")
    for name, entry in found["rows"].items():
        size = entry.get("bytes_per_token", entry.get("bytes_per_image"))
        cells = [name, "" if size is None else f"{size:.3f}"]
        for metric in metrics:
            value = entry[metric]
            cells.append(_percent(value))
            difference = value.get("difference")
            cells.append("" if difference is None else _percent(difference, sign="+"))
            cells.append("" if difference is None else ("yes" if value["no_worse"] else "no"))
        table.add_row(*cells)
    return table


def _percent(value: dict[str, float], sign: str = "") -> str:
    mean, low, high = (100 * value[key] for key in ("value", "low", "high"))
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"
