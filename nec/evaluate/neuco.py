"""NeuCo-Bench: embeddings and labels in its files, its score, and the bytes beside it.

The benchmark [1]_ takes a CSV file of embeddings, ``id,0,1,...,1023``, and a folder of labels, a
file ``TASK__regression.csv`` or ``TASK__classification.csv`` of ``id,label`` for each task.

References
----------
.. [1] Vinge et al., NeuCo-Bench: a novel benchmark framework for neural embeddings in Earth
   observation, arXiv 2510.17914; https://github.com/embed2scale/NeuCo-Bench
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nec.errors import EvaluationError, MissingLibraryError

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

# Of the benchmark: numbers of a vector, splits, the share that tests, the seed.
DIM, SPLITS, TEST_SHARE, SEED = 1024, 40, 0.1, 42
# What keeps the score finite where the splits agree.
_FLOOR = 0.02
# Its own names of the types of tasks, short and long.
_KINDS = {
    "classification": "classification",
    "cls": "classification",
    "regression": "regression",
    "regr": "regression",
}
# Of the ridge regression on standardised vectors.
_PENALTIES = np.logspace(-2, 5, 15)
# Of the logistic regression, inverse.
_STRENGTHS = (0.001, 0.01, 0.1, 1.0)


def write_embeddings(
    path: str | Path, ids: Sequence[str], vectors: ArrayLike, *, dim: int = DIM
) -> None:
    """Write embeddings as the benchmark reads them.

    Parameters
    ----------
    path : str or Path
        The CSV file to write.
    ids : sequence of str
        (n,) names of the samples.
    vectors : array_like of shape (n, d)
        One vector a sample; zeros fill it up to `dim`.
    dim : int
        Columns that the benchmark expects.

    Raises
    ------
    EvaluationError
        If the vectors are longer than `dim`, not finite (the benchmark would take them for
        zeros), of another number than the names, or a name occurs twice.
    """
    pandas = _pandas()
    values = np.asarray(vectors, np.float32)
    if values.ndim != 2 or values.shape[1] > dim or len(values) != len(ids):
        raise EvaluationError(
            f"vectors of shape {values.shape} for {len(ids)} names",
            f"give one vector of up to {dim} numbers for each",
        )
    if not np.isfinite(values).all():
        missing = int((~np.isfinite(values).all(1)).sum())
        raise EvaluationError(f"{missing} vectors are not finite", "leave those samples out")
    if len(set(ids)) != len(ids):
        raise EvaluationError(f"{len(ids) - len(set(ids))} names occur twice", "name each once")
    padded = np.pad(values, ((0, 0), (0, dim - values.shape[1])))
    table = pandas.DataFrame(padded, columns=[str(i) for i in range(dim)])
    table.insert(0, "id", list(ids))
    table.to_csv(path, index=False)


def read_embeddings(path: str | Path) -> "pd.DataFrame":
    """Read a file of embeddings.

    Returns
    -------
    pandas.DataFrame
        float32, columns in the order of their numbers, indexed by id; ``.zarr`` and ``.zarr.zip``
        at the end of a name are dropped.

    Raises
    ------
    EvaluationError
        If the file has no column ``id``, none of numbers, a number is missing, or a name
        occurs twice.
    """
    table = _pandas().read_csv(path, dtype={"id": str})
    columns = sorted((c for c in table.columns if c.isdigit()), key=int)
    if "id" not in table.columns or not columns:
        raise EvaluationError(
            f"{path} has the columns {list(table.columns)[:5]}", "it needs id,0,1,..."
        )
    table["id"] = table["id"].str.replace(r"\.zarr(\.zip)?$", "", regex=True)
    table = table.set_index("id")[columns].astype(np.float32)
    if not np.isfinite(table.to_numpy()).all() or not table.index.is_unique:
        raise EvaluationError(
            f"{path} lacks numbers, or has names twice", "give each sample once, and whole"
        )
    return table


def write_labels(
    folder: str | Path, task: str, kind: str, ids: Sequence[str], labels: ArrayLike
) -> Path:
    """Write the labels of a task as the benchmark reads them; return the file.

    Parameters
    ----------
    folder : str or Path
    task : str
        Name, without two underscores on end.
    kind : {"classification", "regression"}
        Classes are 0 and 1.
    ids, labels
        (n,) each.

    Raises
    ------
    EvaluationError
        Another kind, or a name that the benchmark would cut elsewhere.
    """
    if kind not in _KINDS or "__" in task or task.endswith("_"):
        raise EvaluationError(
            f"a task {task!r} of kind {kind!r}",
            f"kinds: {', '.join(_KINDS)}; no __ in a name, nor _ at its end",
        )
    if len(ids) != np.size(labels):
        raise EvaluationError(f"{len(ids)} names, {np.size(labels)} labels", "give as many")
    path = Path(folder) / f"{task}__{kind}.csv"
    _pandas().DataFrame({"id": list(ids), "label": np.asarray(labels)}).to_csv(path, index=False)
    return path


def score(
    embeddings: "pd.DataFrame",
    labels: str | Path,
    *,
    bytes_per_vector: float | None = None,
    splits: int = SPLITS,
    progress: Callable[[int, int], None] | None = None,
) -> "pd.DataFrame":
    """Score embeddings on every task of a folder of labels.

    ``Q = 2 * mean / (0.02 + std)`` over the splits, of F1 or R2 of a linear probe; vectors are
    standardised by one mean and one deviation of the whole file and labels brought between 0 and
    1, as in the benchmark. Its probe takes 10 epochs of AdamW and the epoch that is best on the
    test samples; ours (logistic or ridge regression, the penalty chosen on training samples) is
    fitted to its end and never sees them: compare it with scores of this function alone.

    Parameters
    ----------
    embeddings : pandas.DataFrame
        As from `read_embeddings`.
    labels : str or Path
        Folder of ``TASK__KIND.csv``; rows without a label, or without an embedding, are left out.
    bytes_per_vector : float, optional
        What a vector of these takes on disk.
    splits : int
        Random splits with a tenth of the samples to test.
    progress : callable, optional
        Called with (splits done, splits in all).

    Returns
    -------
    pandas.DataFrame
        Indexed by task: ``kind``, ``samples``, ``q``, ``mean``, ``std``, ``bytes_per_vector``.

    Raises
    ------
    EvaluationError
        If the folder has no labels, a file is of no known kind, classes are others than two, or
        a task has less than 20 samples.
    """
    pandas = _pandas()
    values = embeddings.to_numpy(np.float32)
    deviation = float(values.std())
    values = (values - values.mean()) / (deviation if deviation > 0 else 1)
    tasks = _tasks(Path(labels), embeddings.index)
    rows, done = {}, 0
    for name, (kind, ids, y) in tasks.items():
        X = values[embeddings.index.get_indexer(ids)]
        scores = []
        for one in _scores(X, y, kind, splits):
            scores.append(one)
            done += 1
            if progress is not None:
                progress(done, splits * len(tasks))
        mean, std = float(np.mean(scores)), float(np.std(scores))
        rows[name] = {
            "kind": kind,
            "samples": len(y),
            "q": q_score(scores),
            "mean": mean,
            "std": std,
            "bytes_per_vector": bytes_per_vector,
        }
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("task")


def q_score(scores: ArrayLike) -> float:
    """Return ``2 * mean / (0.02 + std)`` of the scores of splits."""
    values = np.asarray(scores, np.float64)
    return float(2 * values.mean() / (_FLOOR + values.std()))


def _tasks(folder: Path, known: Any) -> Mapping[str, tuple[str, Any, NDArray[np.float64]]]:
    files = sorted(folder.glob("*__*.csv"))
    if not files:
        raise EvaluationError(f"{folder} holds no TASK__KIND.csv", "give the folder of the labels")
    tasks = {}
    for file in files:
        name, kind = file.stem.split("__", 1)
        if kind not in _KINDS:
            raise EvaluationError(f"{file.name} is of kind {kind!r}", f"use {', '.join(_KINDS)}")
        table = _pandas().read_csv(file, dtype={"id": str})
        if not {"id", "label"} <= set(table.columns):
            raise EvaluationError(
                f"{file.name} has the columns {list(table.columns)[:5]}", "it needs id,label"
            )
        table = table.dropna(subset=["label"])
        if table["id"].duplicated().any():
            raise EvaluationError(
                f"{file.name} names {table['id'][table['id'].duplicated()].iloc[0]} twice",
                "give each sample once: else it trains and is tested",
            )
        table = table[table["id"].isin(known)]
        y = _pandas().to_numeric(table["label"], errors="coerce").to_numpy(np.float64)
        if not np.isfinite(y).all():
            raise EvaluationError(f"{file.name} holds labels that are no numbers", "number them")
        if len(y) < 20:
            raise EvaluationError(
                f"{file.name} has labels of {len(y)} of the embeddings", "at least 20 are needed"
            )
        distinct = np.unique(y).size
        if distinct < 2 or (_KINDS[kind] == "classification" and distinct > 2):
            raise EvaluationError(
                f"{file.name} has {distinct} different labels",
                "a classification has two classes, a regression varies",
            )
        y = (y - y.min()) / (y.max() - y.min())
        tasks[name] = (_KINDS[kind], table["id"], y)
    return tasks


def _scores(
    X: NDArray[np.float32], y: NDArray[np.float64], kind: str, splits: int
) -> Iterator[float]:
    from sklearn.metrics import f1_score, r2_score
    from sklearn.model_selection import ShuffleSplit

    parts = list(ShuffleSplit(splits, test_size=TEST_SHARE, random_state=SEED).split(X))
    if kind == "regression":
        probe, metric = _regression(), r2_score
    else:
        metric = partial(f1_score, zero_division=0.0)
    for train, test in parts:
        if kind != "regression":
            probe = _classification(X, y, train)
        if len(np.unique(y[train])) < 2:
            found = np.full(len(test), y[train][0])
        else:
            found = probe.fit(X[train], y[train]).predict(X[test])
        yield float(metric(y[test], found))


def _regression() -> Any:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(_PENALTIES))


def _classification(X: NDArray[np.float32], y: NDArray[np.float64], train: NDArray[np.intp]) -> Any:
    """Return a logistic regression; its strength is chosen within these samples."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    validation, fitted = np.split(train, [len(train) // 4])
    probes = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000)) for C in _STRENGTHS
    ]
    if len(np.unique(y[fitted])) < 2:
        return probes[0]
    scores = [p.fit(X[fitted], y[fitted]).score(X[validation], y[validation]) for p in probes]
    return probes[int(np.argmax(scores))]


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise (MissingLibraryError.of(error) or error) from error
    return pandas
