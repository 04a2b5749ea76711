"""Model cards of heads: what one learned, from what, and what it serves."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nec.heads.estimator import EmbeddingHead

# Learned figures that a card tells, by attribute.
_FIGURES = {
    "n_parameters_": "trained parameters",
    "n_labels_": "labelled vectors",
    "held_out_rmse_": "root mean square error of held-out places, {units}",
    "alpha_": "penalty",
    "n_iter_": "iterations",
    "threshold_": "threshold of the dissimilarity",
}


def card_text(
    head: "EmbeddingHead", *, data: str | None, licence: str | None, scores: Mapping[str, Any]
) -> str:
    """Return the card of a fitted head as Markdown; see `EmbeddingHead.card`."""
    figures = []
    for name, meaning in _FIGURES.items():
        value = getattr(head, name, None)
        if value is not None:
            told = meaning.format(units=getattr(head, "units", ""))
            figures.append((told, f"{value:,}" if isinstance(value, int) else f"{value:.4g}"))
    classes, counts = getattr(head, "classes_", None), getattr(head, "counts_", None)
    rows = [] if classes is None else classes.tolist()
    numbers = ["" if counts is None else f"{count:,}" for count in counts or [None] * len(rows)]
    bands = head.bands_ or tuple(range(head.n_features_in_))
    changed = {k: v for k, v in head.get_params().items() if v != type(head)().get_params()[k]}
    settings = ", ".join(f"`{k}={v!r}`" for k, v in sorted(changed.items())) or "the defaults"
    lines = [
        f"# {type(head).__name__}",
        "",
        f"- **Serves** embeddings of {head.model_ or 'a model that was not named'}"
        + (f", basis `{head.basis_}`" if head.basis_ else "")
        + f", {len(bands)} bands, at any rate; embeddings of another basis are refused.",
        f"- **Settings**: {settings}.",
        f"- **Learned from**: {data or 'not said'}.",
        f"- **Licence**: {licence or 'not said; that of the labels may bind it'}.",
        f"- **Made with** nec {version('nec')}, scikit-learn {version('scikit-learn')}, Python "
        f"{platform.python_version()}.",
    ]
    lines += _table(("what was learned", ""), figures)
    lines += _table(("class", "labelled vectors"), list(zip(map(str, rows), numbers, strict=True)))
    lines += _table(("score", ""), [(k, _number(v)) for k, v in scores.items()])
    lines += [
        "",
        "Scores of places that were learned from tell nothing of others. Where embeddings are",
        "unlike those (`nec.heads.DissimilarityIndex`), predictions are guesses.",
        "",
    ]
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    return ["", f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
