"""Splits by place: what lies together is tested together."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nec.errors import HeadError


def spatial_blocks(x: ArrayLike, y: ArrayLike, *, size: float) -> NDArray[np.intp]:
    """Return the number of the square block that each place lies in.

    Parameters
    ----------
    x, y : array_like
        (n,) coordinates in one metric CRS.
    size : float
        Edge of a block, in their unit.

    Returns
    -------
    numpy.ndarray
        (n,) numbers from 0.

    Raises
    ------
    HeadError
        A coordinate is missing, or the size is not positive.
    """
    place = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], axis=1)
    if not np.isfinite(place).all() or not size > 0:
        raise HeadError(
            f"{(~np.isfinite(place)).sum()} coordinates are missing, or size={size} is no edge",
            "leave places without coordinates out",
        )
    return np.unique(np.floor(place / size), axis=0, return_inverse=True)[1].ravel()


def spatial_folds(
    groups: ArrayLike, *, folds: int, seed: int | np.random.Generator = 0
) -> NDArray[np.intp]:
    """Deal whole groups into folds of about as many groups each.

    Parameters
    ----------
    groups : array_like
        (n,) group of each sample, as `spatial_blocks` gives them.
    folds : int
        At least 2; more than there are groups leave some empty.
    seed : int or numpy.random.Generator
        A generator deals anew each time.

    Returns
    -------
    numpy.ndarray
        (n,) fold of each sample, from 0.

    Raises
    ------
    HeadError
        There is one group only, or one fold.
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2 or folds < 2:
        raise HeadError(
            f"{len(names)} group(s) cannot be dealt into {folds} fold(s)",
            "use smaller blocks, and two folds at least",
        )
    dealt = np.random.default_rng(seed).permutation(np.arange(len(names)) % folds)
    return np.asarray(dealt[group.ravel()], dtype=np.intp)


def spatial_split(
    groups: ArrayLike,
    *,
    share: float = 0.25,
    seed: int = 0,
    places: ArrayLike | None = None,
    buffer: float = 0.0,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Put whole groups on one side: indices that train, and indices that test.

    Parameters
    ----------
    groups : array_like
        (n,) group of each sample, as `spatial_blocks` gives them.
    share : float, default 0.25
        Of the groups that test; one at least.
    seed : int
    places : array_like, optional
        (n, 2) coordinates, for `buffer`.
    buffer : float, default 0
        Samples nearer than this to a tested one train nothing.

    Raises
    ------
    HeadError
        There is one group only, or nothing is left to train on.
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise HeadError(f"all samples lie in {len(names)} group", "use smaller blocks")
    count = min(max(1, round(share * len(names))), len(names) - 1)
    chosen = np.random.default_rng(seed).permutation(len(names))[:count]
    tested = np.isin(group.ravel(), chosen)
    train, test = np.flatnonzero(~tested), np.flatnonzero(tested)
    if buffer > 0:
        train = train[beyond_buffer(places, train, test, buffer)]
    if not train.size:
        raise HeadError("nothing is left to train on", "use a smaller buffer or share")
    return train, test


def beyond_buffer(
    places: ArrayLike | None, train: NDArray[np.intp], test: NDArray[np.intp], buffer: float
) -> NDArray[np.bool_]:
    """Say which of the samples `train` lie no nearer than `buffer` to any of `test`.

    Raises
    ------
    HeadError
        There are no places.
    """
    from scipy.spatial import cKDTree

    if places is None:
        raise HeadError("buffer= needs places=", "pass (n, 2) coordinates")
    place: NDArray[Any] = np.asarray(places, np.float64)
    near, _ = cKDTree(place[test]).query(place[train])
    return np.asarray(near >= buffer)
