"""Linear and nearest-neighbour probes over resamples of the training labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from main_job.intervals import confusions, estimates
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from nec.heads import SceneClassifier

STRENGTHS = (0.003, 0.03, 0.3, 3.0)
NEIGHBOURS = (5, 10, 20)
SEED = 11

Split = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class Row:
    """Vectors of one row of a table.

    Attributes
    ----------
    vectors : ndarray of shape (n, d), float32
    metric : {"cosine", "euclidean"}
        What is near; hand-made statistics are standardised first, and euclidean.
    """

    vectors: NDArray[np.float32]
    metric: str = "cosine"


def probe(
    rows: Mapping[str, Row],
    labels: NDArray[Any],
    splits: list[Split],
    units: NDArray[np.intp],
    *,
    reference: str,
) -> dict[str, dict[str, Any]]:
    """Fit both heads to each row on each split; accuracies with paired intervals.

    Hyperparameters are chosen by row on a fifth of the first split's training labels. The
    predictions of all splits that test an image count.

    Parameters
    ----------
    rows : mapping of str to Row
    labels : ndarray of shape (n,)
    splits : list of (training index, test index)
    units : ndarray of shape (n,), int
        The test unit of each image: what the bootstrap draws.
    reference : str
        Row that the others are compared with.
    """
    classes, truth = np.unique(labels, return_inverse=True)
    tested = np.unique(np.concatenate([test for _, test in splits]))
    names, unit = np.unique(units[tested], return_inverse=True)
    place = np.full(len(labels), -1)
    place[tested] = unit
    shape = (len(names), len(classes))
    table: dict[str, dict[str, Any]] = {}
    for head in ("linear", "k-NN"):
        counts, chosen = {}, {}
        for name, row in rows.items():
            X = row.vectors
            if row.metric == "euclidean":
                X = StandardScaler().fit(X[splits[0][0]]).transform(X)
            estimator = _tuned(head, X, truth, splits[0][0], row.metric)
            total = np.zeros((len(names), len(classes), len(classes)), np.float32)
            for train, test in splits:
                found = estimator.fit(X[train], truth[train]).predict(X[test])
                total += confusions(truth[test], found, place[test], shape)
            counts[name] = total
            chosen[name] = estimator.C if head == "linear" else estimator.n_neighbors
        if head == "linear":
            total = np.zeros_like(next(iter(counts.values())))
            for train, test in splits:
                most = np.full(len(test), np.bincount(truth[train]).argmax())
                total += confusions(truth[test], most, place[test], shape)
            counts["majority class"] = total
        found = estimates(counts, reference=reference, metrics=("accuracy",), seed=SEED)
        for name, entry in found.items():
            entry["chosen"] = chosen.get(name)
            table.setdefault(name, {})[head] = entry
    return table


def _tuned(
    head: str, X: NDArray[np.float32], truth: NDArray[np.intp], train: NDArray[np.intp], metric: str
) -> SceneClassifier:
    order = np.random.default_rng(SEED).permutation(train)
    validation, fitted = np.split(order, [len(order) // 5])
    if head == "linear":
        candidates = [SceneClassifier(C=C, max_iter=300) for C in STRENGTHS]
    else:
        candidates = [
            SceneClassifier(method="knn", n_neighbors=k, metric=metric)
            for k in NEIGHBOURS
            if k <= len(fitted)
        ]
    scores = [
        c.fit(X[fitted], truth[fitted]).score(X[validation], truth[validation]) for c in candidates
    ]
    return candidates[int(np.argmax(scores))]
