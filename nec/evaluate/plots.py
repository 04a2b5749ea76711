"""Plots of what heads do: confusions, maps with legend, measured against predicted, curves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from nec.errors import HeadError, MissingLibraryError

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from matplotlib.axes import Axes


# Above this, a cell of a confusion matrix has no room for two lines.
MANY_CLASSES = 12


def draw_confusion(
    matrix: ArrayLike, classes: Sequence[Any], *, ax: "Axes | None" = None
) -> "Axes":
    """Draw a confusion matrix: shares of each true class, with counts written in.

    Of many classes the counts stand alone, and those of zero are left out.

    Parameters
    ----------
    matrix : array_like
        (true class, found class) counts.
    classes : sequence
        Names.
    ax : matplotlib Axes, optional
    """
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.shape != (len(classes), len(classes)):
        raise HeadError(
            f"a matrix of shape {counts.shape} for {len(classes)} classes", "give one name a row"
        )
    ax = _axes(ax)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    many = len(classes) > MANY_CLASSES
    for (row, column), share in np.ndenumerate(shares):
        count = f"{counts[row, column]:,.0f}"
        text = f"{share:.0%}\n{count}" if not many else count if count != "0" else ""
        colour = "white" if share > 0.6 else "black"
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    names = [str(name) for name in classes]
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="found", ylabel="true")
    return ax


def draw_map(
    labels: xr.DataArray,
    *,
    colours: Sequence[Any] | None = None,
    legend: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw a class map with its legend, or a map of numbers with a colour bar.

    Parameters
    ----------
    labels : xarray.DataArray
        (y, x), as a head's `predict` gives it: class indices with ``flag_meanings``, -1 missing;
        or numbers, NaN missing.
    colours : sequence, optional
        One for each class. Those of :func:`nec.heads.write_map` when not given.
    legend : bool
        Of the classes that occur; or the colour bar.
    ax : matplotlib Axes, optional
    """
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    from nec.heads.maps import class_colours

    ax = _axes(ax)
    ax.locator_params(nbins=4)
    values = labels.transpose("y", "x")
    place = {"extent": _extent(values), "interpolation": "nearest"}
    names = str(values.attrs.get("flag_meanings", "")).split()
    if not names:
        image = ax.imshow(values.to_numpy(), cmap="viridis", **place)  # type: ignore[arg-type]
        if legend:
            text = str(values.attrs.get("long_name", ""))
            units = str(values.attrs.get("units", ""))
            ax.figure.colorbar(image, ax=ax, label=f"{text}, {units}".strip(", "), shrink=0.8)
        return ax
    table: Any = colours
    if table is None:
        table = [tuple(c / 255 for c in colour) for colour in class_colours(len(names))]
    ax.imshow(
        np.ma.masked_less(values.to_numpy(), 0),
        cmap=ListedColormap(table),
        norm=BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names)),
        **place,  # type: ignore[arg-type]
    )
    if legend:
        there = set(np.unique(values.to_numpy()).tolist())
        handles = [Patch(color=table[i], label=name) for i, name in enumerate(names) if i in there]
        ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return ax


def draw_measured_against_predicted(
    measured: ArrayLike,
    predicted: ArrayLike,
    *,
    interval: ArrayLike | None = None,
    units: str = "Mg/ha",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw predictions over measurements, with RMSE, bias and R2 written in.

    Parameters
    ----------
    measured, predicted : array_like
        (n,); pairs with NaN are left out.
    interval : array_like, optional
        (n, 2) prediction intervals, as a band of their running medians.
    units : str
    ax : matplotlib Axes, optional
    """
    true, found = (np.asarray(v, dtype=np.float64).ravel() for v in (measured, predicted))
    keep = np.isfinite(true) & np.isfinite(found)
    if not keep.any():
        raise HeadError("no pair of a measurement and a prediction", "check both for NaN")
    ax = _axes(ax)
    top = float(np.quantile(np.concatenate([true[keep], found[keep]]), 0.995)) * 1.05
    ax.plot([0, top], [0, top], color="black", lw=1, zorder=1)
    ax.plot(true[keep], found[keep], ".", ms=3, alpha=0.35, zorder=2)
    if interval is not None:
        bounds = np.asarray(interval, dtype=np.float64).reshape(-1, 2)[keep]
        order = np.array_split(np.argsort(found[keep]), min(20, int(keep.sum())))
        middle = [np.median(found[keep][part]) for part in order]
        low, high = ([np.median(bounds[part, i]) for part in order] for i in (0, 1))
        ax.fill_betweenx(middle, low, high, alpha=0.2, color="tab:orange", label="interval")
    error = found[keep] - true[keep]
    r2 = 1 - (error**2).sum() / max(((true[keep] - true[keep].mean()) ** 2).sum(), 1e-12)
    text = f"n = {keep.sum():,}\nRMSE {np.sqrt((error**2).mean()):.3g}\n"
    text += f"bias {error.mean():+.3g}\nR2 {r2:.2f}"
    ax.text(0.03, 0.97, text, transform=ax.transAxes, va="top", fontsize=8)
    ax.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    ax.set(xlabel=f"measured, {units}", ylabel=f"predicted, {units}")
    return ax


def draw_label_curve(
    curve: "pd.DataFrame", *, label: str | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw the scores of `label_curve` over the labels: the mean, and the range of the repeats."""
    ax = _axes(ax)
    found = curve.groupby("fraction").agg(
        labels=("labels", "mean"),
        mean=("score", "mean"),
        low=("score", "min"),
        high=("score", "max"),
    )
    line = ax.plot(found["labels"], found["mean"], marker="o", label=label)
    ax.fill_between(
        found["labels"], found["low"], found["high"], alpha=0.15, color=line[0].get_color()
    )
    ax.set_xscale("log")
    ax.set_xticks(found["labels"], [f"{n:.0f}" for n in found["labels"]])
    ax.minorticks_off()
    ax.set(xlabel="labels", ylabel="score (mean and range of the repeats)")
    ax.grid(alpha=0.3)
    if label:
        ax.legend()
    return ax


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise (MissingLibraryError.of(error) or error) from error
    return plt.subplots(layout="constrained")[1]


def _extent(values: xr.DataArray) -> tuple[float, float, float, float] | None:
    if not {"y", "x"} <= set(values.coords) or min(values.shape) < 2:
        return None
    half = {d: float(values[d][1] - values[d][0]) / 2 for d in ("y", "x")}
    ends = {d: (float(values[d][0]) - h, float(values[d][-1]) + h) for d, h in half.items()}
    return (*ends["x"], *ends["y"][::-1])
