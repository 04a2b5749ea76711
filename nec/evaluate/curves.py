"""Label curves: how good a head is for how many labels, and in a region it does not know."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nec.errors import HeadError, TooFewLabelsError
from nec.evaluate.samples import RowSamples, Samples, SceneSamples
from nec.evaluate.splits import beyond_buffer, spatial_split

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]


def label_curve(
    head: Any,
    X: Any,
    y: Any,
    *,
    groups: ArrayLike | None = None,
    places: ArrayLike | None = None,
    block: int = 8,
    buffer: float = 0.0,
    fractions: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0),
    repeats: int = 5,
    share: float = 0.25,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> "pd.DataFrame":
    """Score a head for fractions of its labels, by splits that keep places together.

    Each repeat leaves another part of the groups out and orders the others' labels by chance;
    a fraction takes the first of them, so that larger fractions contain smaller ones and the
    points of a curve are paired. Fractions of labels are drawn from whole groups' samples alike.

    Parameters
    ----------
    head : estimator
        With `fit` and `score`; cloned for every fit.
    X : numpy.ndarray, table, xarray.DataArray or sequence of them
        (n, d) or (sample, ...): whatever the head takes and can be indexed along the samples. Or
        one scene or several, (band, y, x) each, possibly lazy.
    y : array_like, xarray.DataArray or sequence of them
        (n,) labels. Of scenes (y, x), numbers, matched as the head's `fit` matches them; NaN, a
        raster's nodata value and the head's ``ignore_index`` are none. Each pixel is a label: a
        fraction draws pixels, and the others are NaN in what the head is given.
    groups : array_like, optional
        (n,) place of each sample; each is a place of its own without. Heads whose `fit` takes
        groups get them too. Not of scenes.
    places : array_like, optional
        (n, 2) coordinates, for `buffer`. Not of scenes.
    block : int, default 8
        Of scenes: edge of the blocks that are kept together, tokens; a label pixel at least.
    buffer : float, default 0
        Samples nearer than this to a tested one train nothing; of scenes in tokens.
    fractions : sequence of float
        Of the labels on the training side, above 0 and up to 1.
    repeats : int
    share : float
        Of the groups that test.
    seed : int
    progress : callable, optional
        Called with (fits done, fits in all).

    Returns
    -------
    pandas.DataFrame
        A row for each fit: ``fraction``, ``labels``, ``repeat``, ``score``. Where a fraction
        holds too few labels for the head to fit (a single class), the score is NaN.

    Raises
    ------
    HeadError
        A fraction is out of range, the lengths differ, labels do not fit a scene, or there is one
        group only.
    """
    import pandas as pd
    from sklearn.base import clone

    _check_fractions(fractions)
    samples = _samples_of(X, y, groups, places, block, getattr(head, "ignore_index", None))
    found = []
    for repeat in range(repeats):
        train, test = spatial_split(
            samples.groups, share=share, seed=seed + repeat, places=samples.places, buffer=buffer
        )
        order = np.random.default_rng(seed + repeat).permutation(train)
        for fraction in sorted(fractions):
            chosen = order[: max(2, round(fraction * len(order)))]
            score = _fitted_score(clone(head), samples, chosen, test)
            found.append((fraction, len(chosen), repeat, score))
            if progress is not None:
                progress(len(found), repeats * len(fractions))
    return pd.DataFrame(found, columns=["fraction", "labels", "repeat", "score"])


def transfer_curve(
    head: Any,
    X: Any,
    y: ArrayLike,
    regions: ArrayLike,
    *,
    target: Any,
    counts: Sequence[int] = (0, 10, 30, 100),
    repeats: int = 5,
    groups: ArrayLike | None = None,
    places: ArrayLike | None = None,
    buffer: float = 0.0,
    seed: int = 0,
) -> "pd.DataFrame":
    """Score a head in one region, learned from the others and from a few labels there.

    Parameters
    ----------
    head, X, y, groups, places, buffer, seed
        As in :func:`label_curve`, of rows.
    regions : array_like
        (n,) region of each sample.
    target : scalar
        The region that is tested.
    counts : sequence of int
        Labels of the target region that are learned from too; half of its groups test in each
        repeat, whatever the count.
    repeats : int

    Returns
    -------
    pandas.DataFrame
        A row for each fit: ``labels`` (of the target region), ``repeat``, ``score`` with the other
        regions' labels, and ``alone`` without them (NaN where they are too few to fit).

    Raises
    ------
    HeadError
        The target is no region or the only one, a count is negative, or the lengths differ.
    """
    import pandas as pd
    from sklearn.base import clone

    if wrong := [count for count in counts if count < 0]:
        raise HeadError(f"count {wrong[0]} is negative", "give numbers of labels, 0 and more")
    samples, of_region = RowSamples(X, y, groups=groups, places=places), np.asarray(regions)
    if len(of_region) != len(samples.labels):
        raise HeadError(
            f"{len(samples.labels)} samples and {len(of_region)} regions", "pass one for each"
        )
    inside, outside = np.flatnonzero(of_region == target), np.flatnonzero(of_region != target)
    if not inside.size or not outside.size:
        raise HeadError(
            f"{inside.size} samples lie in region {target!r} and {outside.size} elsewhere",
            f"regions: {np.unique(of_region).tolist()}",
        )
    inner = None if samples.places is None else samples.places[inside]
    found = []
    for repeat in range(repeats):
        train, test = spatial_split(
            samples.groups[inside], share=0.5, seed=seed + repeat, places=inner, buffer=buffer
        )
        tested = inside[test]
        order = np.random.default_rng(seed + repeat).permutation(inside[train])
        elsewhere = _apart(samples, outside, tested, buffer)
        for count in counts:
            few = order[:count]
            score = _fitted_score(clone(head), samples, np.concatenate([elsewhere, few]), tested)
            alone = _fitted_score(clone(head), samples, few, tested)
            found.append((len(few), repeat, score, alone))
    return pd.DataFrame(found, columns=["labels", "repeat", "score", "alone"])


def _apart(
    samples: RowSamples, others: NDArray[np.intp], tested: NDArray[np.intp], buffer: float
) -> NDArray[np.intp]:
    """Return those of other samples that share no group with tested ones, and lie far enough."""
    apart = others[~np.isin(samples.groups[others], samples.groups[tested])]
    if buffer > 0:
        apart = apart[beyond_buffer(samples.places, apart, tested, buffer)]
    return apart


def _samples_of(
    X: Any,
    y: Any,
    groups: ArrayLike | None,
    places: ArrayLike | None,
    block: int,
    ignore_index: Any,
) -> Samples:
    scenes = [X] if hasattr(X, "dims") else X
    if not isinstance(scenes, list | tuple) or not scenes or not all(map(_is_scene, scenes)):
        return RowSamples(X, y, groups=groups, places=places)
    if groups is not None or places is not None:
        raise HeadError("a scene has its own places", "leave groups= and places= out, set block=")
    maps = y if isinstance(y, list | tuple) else [y]
    return SceneSamples(scenes, maps, block=block, ignore_index=ignore_index)


def _is_scene(array: Any) -> bool:
    return hasattr(array, "dims") and {"y", "x"} <= set(array.dims) and "sample" not in array.dims


def _fitted_score(
    head: Any, samples: Samples, train: NDArray[np.intp], test: NDArray[np.intp]
) -> float:
    # What a head cannot learn from so few labels is part of the curve, not an error of it.
    known = samples.labels[train]
    if len(train) < 2 or (_of_classes(head, known) and len(np.unique(known)) < 2):
        return float("nan")
    try:
        samples.fit(head, train)
    except TooFewLabelsError:
        return float("nan")
    return samples.score(head, test)


def _of_classes(head: Any, labels: NDArray[Any]) -> bool:
    from sklearn.base import is_classifier

    return bool(is_classifier(head)) or labels.dtype.kind not in "fc"


def _check_fractions(fractions: Sequence[float]) -> None:
    if wrong := [f for f in fractions if not 0 < f <= 1]:
        raise HeadError(f"fraction {wrong[0]} is out of range", "give shares above 0, up to 1")
