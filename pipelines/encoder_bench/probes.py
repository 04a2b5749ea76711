"""Linear and nearest-neighbour probes over resamples of the training labels."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.evaluate.intervals import confusions, estimates
from nec.heads import SceneClassifier

STRENGTHS = (0.003, 0.03, 0.3, 3.0, 30.0)
NEIGHBOURS = (5, 10, 20)
# Parts of the training labels, of which one chooses among the candidates.
FIFTHS = 5
# The row that sees nothing.
TRIVIAL = "majority class"
SEED = 11

Split = tuple[NDArray[np.intp], NDArray[np.intp]]


def probe(
    rows: Mapping[str, NDArray[np.float32]],
    labels: NDArray[Any],
    splits: list[Split],
    units: NDArray[np.intp],
    *,
    reference: str,
    heads: tuple[str, ...] = ("linear", "k-NN"),
    validations: int = 1,
) -> dict[str, dict[str, Any]]:
    """Fit heads to each row on each split; accuracies with paired intervals.

    Hyperparameters are chosen by row on fifths of the training labels: the penalty of the linear
    probe; the number of neighbours, the metric, and whether vectors are standardised first. They
    are chosen once where no unit that trains is tested in any split, and for each split where one
    is. The predictions of all splits that test an image count.

    Parameters
    ----------
    rows : mapping of str to ndarray of shape (n, d)
    labels : ndarray of shape (n,)
    splits : list of (training index, test index)
    units : ndarray of shape (n,), int
        The test unit of each image: what the bootstrap draws.
    reference : str
        Row that the others are compared with.
    heads : tuple of {"linear", "k-NN"}
    validations : int
        How many of the fifths are held out, in turn: one of a few hundred labels tells the
        candidates apart by chance.
    """
    classes, truth = np.unique(labels, return_inverse=True)
    tested = np.unique(np.concatenate([test for _, test in splits]))
    names, unit = np.unique(units[tested], return_inverse=True)
    place = np.full(len(labels), -1)
    place[tested] = unit
    shape = (len(names), len(classes))
    crossed = any(np.isin(units[train], names).any() for train, _ in splits)
    table: dict[str, dict[str, Any]] = {}
    for head in heads:
        counts, chosen = {}, {}
        for name, X in rows.items():
            said: list[dict[str, Any]] = []
            total = np.zeros((len(names), len(classes), len(classes)), np.float32)
            for train, test in splits:
                if crossed or not said:
                    estimator = _tuned(head, X, truth, train, validations)
                    said.append(_said(estimator))
                found = estimator.fit(X[train], truth[train]).predict(X[test])
                total += confusions(truth[test], found, place[test], shape)
            counts[name] = total
            chosen[name] = _counted(said) if crossed else said[0]
        if head == "linear":
            total = np.zeros_like(next(iter(counts.values())))
            for train, test in splits:
                most = np.full(len(test), np.bincount(truth[train]).argmax())
                total += confusions(truth[test], most, place[test], shape)
            counts[TRIVIAL] = total
        found = estimates(counts, reference=reference, metrics=("accuracy",), seed=SEED)
        for name, entry in found.items():
            entry["chosen"] = chosen.get(name)
            table.setdefault(name, {})[head] = entry
    return table


def _candidates(head: str, count: int) -> list[SceneClassifier]:
    if head == "linear":
        return [SceneClassifier(C=C, max_iter=300) for C in STRENGTHS]
    return [
        SceneClassifier(method="knn", n_neighbors=k, metric=metric, standardize=standardize)
        for standardize in (False, True)
        for metric in ("cosine", "euclidean")
        for k in NEIGHBOURS
        if k <= count
    ]


def _tuned(
    head: str,
    X: NDArray[np.float32],
    truth: NDArray[np.intp],
    train: NDArray[np.intp],
    validations: int,
) -> SceneClassifier:
    order = np.random.default_rng(SEED).permutation(train)
    candidates = _candidates(head, len(order) - len(order) // FIFTHS)
    scores = np.zeros(len(candidates))
    for part in range(validations):
        held = np.zeros(len(order), bool)
        held[part * len(order) // FIFTHS : (part + 1) * len(order) // FIFTHS] = True
        known, asked = order[~held], order[held]
        scores += [c.fit(X[known], truth[known]).score(X[asked], truth[asked]) for c in candidates]
    return candidates[int(np.argmax(scores))]


def _said(estimator: SceneClassifier) -> dict[str, Any]:
    """Return the hyperparameters that were chosen."""
    if estimator.method == "linear":
        return {"C": estimator.C}
    return {
        "n_neighbors": estimator.n_neighbors,
        "metric": estimator.metric,
        "standardised": estimator.standardize,
    }


def _counted(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was chosen, the most frequent first, and on how many splits."""
    times = Counter(tuple(choice.items()) for choice in said)
    return [{**dict(choice), "splits": count} for choice, count in times.most_common()]
