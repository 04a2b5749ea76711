"""Rate-accuracy curves: what methods cost at equal accuracy, and how much one saves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.errors import EvaluationError
from nec.evaluate.intervals import ERRORS

# Points of the common range of scores that a saving is averaged over.
_STEPS = 200


@dataclass(frozen=True)
class RateCurve:
    """The best score that a method reaches with at most so many bytes.

    Make one with `of`. Points that a smaller one equals or beats are left out; between the others
    the logarithm of the bytes is interpolated linearly in the score.

    Attributes
    ----------
    sizes : ndarray of shape (n,), float64
        Bytes, of a vector or of an image; strictly rising.
    scores : ndarray of shape (n,), float64
        More is better; strictly rising.
    """

    sizes: NDArray[np.float64]
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, points: Iterable[tuple[float, float]]) -> "RateCurve":
        """Make a curve of (bytes, score) in any order.

        Errors, which are better when small, are given with their sign turned.

        Raises
        ------
        EvaluationError
            If there is no point, a size is not above zero, or a number is not finite.
        """
        found = np.array(sorted(points, key=lambda p: (p[0], -p[1])), np.float64).reshape(-1, 2)
        if not len(found) or not np.isfinite(found).all() or found[0, 0] <= 0:
            raise EvaluationError(
                f"points {found.tolist()[:3]} make no curve",
                "give (bytes, score) with bytes above 0, all of them finite",
            )
        best = np.maximum.accumulate(found[:, 1])
        kept = np.concatenate([[True], best[1:] > best[:-1]])
        return cls(found[kept, 0], found[kept, 1])

    def bytes_at(self, score: float) -> float | None:
        """Return the bytes that a score takes; None where the curve does not reach it.

        A score below the curve's coarsest point has none either: how little would do is unknown.
        """
        if not self.scores[0] <= score <= self.scores[-1]:
            return None
        return float(np.exp(np.interp(score, self.scores, np.log(self.sizes))))

    def score_at(self, size: float) -> float | None:
        """Return the score that so many bytes give; None outside of the curve's sizes."""
        if not self.sizes[0] <= size <= self.sizes[-1]:
            return None
        return float(np.interp(np.log(size), np.log(self.sizes), self.scores))

    def saving_over(self, other: "RateCurve") -> float | None:
        """Return the share of the other's bytes saved at equal score, on average.

        The mean difference of the logarithms of the bytes over the scores that both curves span,
        as in Bjontegaard's rate difference [1]_, with straight lines in place of his cubic, which
        overshoots where points are few [2]_.

        Returns
        -------
        float or None
            0.5 is half of the bytes, negative takes more; None where no range is common.

        References
        ----------
        .. [1] Bjontegaard, Calculation of average PSNR differences between RD-curves, VCEG-M33,
           2001.
        .. [2] Herglotz et al., Beyond Bjontegaard: limits of video compression performance
           comparisons, ICIP 2022.
        """
        low = max(self.scores[0], other.scores[0])
        high = min(self.scores[-1], other.scores[-1])
        if high <= low:
            return None
        at = np.linspace(low, high, _STEPS)
        ours, theirs = (np.interp(at, c.scores, np.log(c.sizes)) for c in (self, other))
        return 1 - float(np.exp(np.trapezoid(ours - theirs, at) / (high - low)))


def bytes_at_levels(
    curves: Mapping[str, RateCurve], levels: Iterable[float]
) -> dict[float, dict[str, float | None]]:
    """Return what each method takes to reach each level, see `RateCurve.bytes_at`."""
    return {level: {name: c.bytes_at(level) for name, c in curves.items()} for level in levels}


def compare_rates(
    rows: Mapping[str, list[Mapping[str, Any]]],
    *,
    base: str,
    margin: float,
    size: str = "bytes_per_image",
    metric: str = "accuracy",
) -> dict[str, dict[str, Any]]:
    """Compare methods whose rows were estimated against one uncoded reference.

    Parameters
    ----------
    rows : mapping of str to list of mapping
        Of each method its points: a size, and under `metric` what
        :func:`nec.evaluate.intervals.estimates` gives, the paired difference to the reference
        included.
    base : str
        The method that savings are over.
    margin : float
        Loss against the reference that is allowed, in units of the metric: of an accuracy, 0.01
        is a point.
    size, metric : str
        Keys of a row; of `rmse` and `mae` less is better.

    Returns
    -------
    dict of str to dict
        By method: ``bytes_at_margin``, interpolated to a mean difference of minus the margin;
        ``bytes_no_worse``, where the lower bound of the 95 % interval of the difference reaches
        minus the margin (non-inferiority); ``smallest_no_worse``, the size of the smallest row
        whose own bound holds; ``saving_over_base``, see `RateCurve.saving_over`, and
        ``bytes_saved_at_margin``, ``bytes_saved_no_worse``, shares of the base's bytes. None
        where a curve does not come that far, up or down.

    Raises
    ------
    EvaluationError
        If the base is none of the methods, or one has no rows.
    """
    if base not in rows:
        raise EvaluationError(f"there is no method {base!r}", f"methods: {', '.join(rows)}")

    # Of errors less is better: all is turned, so that the upper bound is the lower one.
    sign, lower = (-1, "high") if metric in ERRORS else (1, "low")

    def change(entry: Mapping[str, Any], key: str) -> float:
        return sign * float(entry["difference"][key])

    def curve(method: str, key: str | None) -> RateCurve:
        entries = [(float(row[size]), row[metric]) for row in rows[method]]
        if key is None:
            return RateCurve.of((s, sign * e["value"]) for s, e in entries)
        return RateCurve.of((s, change(e, key)) for s, e in entries)

    def crossing(method: str, key: str) -> float | None:
        return curve(method, key).bytes_at(-margin)

    def saved(ours: float | None, theirs: float | None) -> float | None:
        return None if ours is None or theirs is None else 1 - ours / theirs

    at_margin, no_worse = crossing(base, "value"), crossing(base, lower)
    found = {}
    for method, points in rows.items():
        mean, bound = crossing(method, "value"), crossing(method, lower)
        held = [float(r[size]) for r in points if change(r[metric], lower) > -margin]
        found[method] = {
            "bytes_at_margin": mean,
            "bytes_no_worse": bound,
            "smallest_no_worse": min(held, default=None),
            "saving_over_base": curve(method, None).saving_over(curve(base, None)),
            "bytes_saved_at_margin": saved(mean, at_margin),
            "bytes_saved_no_worse": saved(bound, no_worse),
        }
    return found
