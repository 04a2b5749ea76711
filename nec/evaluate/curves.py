"""Label curves: how good a head is for how many labels, and in a region it does not know."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nec.errors import HeadError
from nec.evaluate.splits import spatial_split

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]


def label_curve(
    head: Any,
    X: Any,
    y: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    places: ArrayLike | None = None,
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
    X : numpy.ndarray, table or xarray.DataArray
        (n, d) or (sample, ...): whatever the head takes and can be indexed along the samples.
    y : array_like
        (n,) labels.
    groups : array_like, optional
        (n,) place of each sample; each is a place of its own without. Heads whose `fit` takes
        groups get them too.
    places : array_like, optional
        (n, 2) coordinates, for `buffer`.
    buffer : float, default 0
        Samples nearer than this to a tested one train nothing.
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
        A fraction is out of range, the lengths differ, or there is one group only.
    """
    import pandas as pd
    from sklearn.base import clone

    labels = np.asarray(y)
    _check_fractions(fractions)
    grouped = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if not len(X) == len(labels) == len(grouped):
        raise HeadError(
            f"{len(X)} samples, {len(labels)} labels, {len(grouped)} groups", "pass as many of each"
        )
    given = None if groups is None else grouped
    found = []
    for repeat in range(repeats):
        train, test = spatial_split(
            grouped, share=share, seed=seed + repeat, places=places, buffer=buffer
        )
        order = np.random.default_rng(seed + repeat).permutation(train)
        for fraction in sorted(fractions):
            chosen = order[: max(2, round(fraction * len(order)))]
            score = _fitted_score(clone(head), X, labels, given, chosen, test)
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
        As in :func:`label_curve`.
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
        regions' labels, and ``alone`` without them (NaN where the head cannot fit them).

    Raises
    ------
    HeadError
        The target is no region, or it is the only one.
    """
    import pandas as pd
    from sklearn.base import clone

    labels, of_region = np.asarray(y), np.asarray(regions)
    inside, outside = np.flatnonzero(of_region == target), np.flatnonzero(of_region != target)
    if not inside.size or not outside.size:
        raise HeadError(
            f"{inside.size} samples lie in region {target!r} and {outside.size} elsewhere",
            f"regions: {np.unique(of_region).tolist()}",
        )
    grouped = np.arange(len(labels)) if groups is None else np.asarray(groups)
    given = None if groups is None else grouped
    inner = None if places is None else np.asarray(places)[inside]
    found = []
    for repeat in range(repeats):
        train, test = spatial_split(
            grouped[inside], share=0.5, seed=seed + repeat, places=inner, buffer=buffer
        )
        order = np.random.default_rng(seed + repeat).permutation(inside[train])
        for count in counts:
            few = order[:count]
            score = _fitted_score(
                clone(head), X, labels, given, np.concatenate([outside, few]), inside[test]
            )
            alone = _fitted_score(clone(head), X, labels, given, few, inside[test])
            found.append((len(few), repeat, score, alone))
    return pd.DataFrame(found, columns=["labels", "repeat", "score", "alone"])


def _fitted_score(
    head: Any,
    X: Any,
    y: NDArray[Any],
    groups: NDArray[Any] | None,
    train: NDArray[np.intp],
    test: NDArray[np.intp],
) -> float:
    # What a head cannot learn from so few labels is part of the curve, not an error of it.
    if len(train) < 2 or (y.dtype.kind not in "fc" and len(np.unique(y[train])) < 2):
        return float("nan")
    options = {}
    if groups is not None and "groups" in signature(head.fit).parameters:
        options["groups"] = groups[train]
    try:
        head.fit(_rows(X, train), y[train], **options)
    except HeadError:
        return float("nan")
    return float(head.score(_rows(X, test), y[test]))


def _rows(X: Any, at: NDArray[np.intp]) -> Any:
    return X.iloc[at] if hasattr(X, "iloc") else X[at]


def _check_fractions(fractions: Sequence[float]) -> None:
    if wrong := [f for f in fractions if not 0 < f <= 1]:
        raise HeadError(f"fraction {wrong[0]} is out of range", "give shares above 0, up to 1")
