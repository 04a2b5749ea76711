"""Linear heads on the tokens of scenes: classes, and values; fitted without tested blocks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from encoder_bench.dense import Split
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nec.evaluate.intervals import MARGIN, confusions, misses
from nec.heads import SceneClassifier

# Tokens that a head learns from at most, in each fold.
LEARNED = 12_000
# Penalties that heads may have.
STRENGTHS, RIDGES = (0.003, 0.03, 0.3), (1.0, 10.0, 100.0, 1000.0)
SEED = 31

Floats = NDArray[np.float32]
Index = NDArray[np.intp]


@dataclass(frozen=True)
class MapHead(ABC):
    """What is asked of tokens.

    Attributes
    ----------
    truth : ndarray of shape (n,)
    margins : dict of str to float
        Scores of `nec.evaluate.intervals`, and the loss of each that is allowed.
    trivial : str
        Name of the row that sees no token.
    """

    truth: NDArray[Any]

    margins: ClassVar[dict[str, float]]
    trivial: ClassVar[str]

    @property
    @abstractmethod
    def there(self) -> NDArray[np.bool_]:
        """Which tokens have an answer."""

    @abstractmethod
    def heads(self) -> list[Any]:
        """Return estimators of each penalty, not fitted."""

    @abstractmethod
    def guess(self, learned: Index) -> Any:
        """Return the answer that suits the tokens best."""

    @abstractmethod
    def sums(self, at: Index, found: NDArray[Any], units: Index) -> Floats:
        """Return by unit what scores are made of, for tokens and what was found there."""

    def tested(self, vectors: Floats, splits: list[Split], units: Index) -> Floats:
        """Fit to tokens (n, dim) in each fold and sum up what is found in tested blocks."""
        there = self.there & np.isfinite(vectors).all(1)
        total = []
        for train, test in splits:
            rng = np.random.default_rng(SEED)
            learned = rng.permutation(np.flatnonzero(train & there))[:LEARNED]
            # A quarter of the training blocks chooses the penalty.
            held = rng.permutation(int(units.max()) + 1)[units[learned]] % 4 == 0
            fitted, checked = learned[~held], learned[held]
            heads = self.heads()
            scores = [
                h.fit(vectors[fitted], self.truth[fitted]).score(
                    vectors[checked], self.truth[checked]
                )
                for h in heads
            ]
            head = heads[int(np.argmax(scores))].fit(vectors[learned], self.truth[learned])
            inside = np.flatnonzero(test & there)
            total.append(self.sums(inside, head.predict(vectors[inside]), units))
        return np.sum(total, axis=0)

    def guessed(self, splits: list[Split], units: Index) -> Floats:
        """Return the same of the trivial row."""
        total = []
        for train, test in splits:
            inside = np.flatnonzero(test & self.there)
            guess = self.guess(np.flatnonzero(train & self.there))
            total.append(self.sums(inside, np.full(len(inside), guess), units))
        return np.sum(total, axis=0)


class Classes(MapHead):
    """Classes of tokens, numbered through, -1 where there is none."""

    # Of mean IoU two points, of accuracy one.
    margins: ClassVar[dict[str, float]] = {"mean_iou": 2 * MARGIN, "accuracy": MARGIN}
    trivial = "majority class"

    @classmethod
    def of(cls, labels: NDArray[np.int64]) -> "Classes":
        """Make it of labels with gaps; negative ones are none."""
        classes = np.unique(labels[labels >= 0])
        return cls(np.where(labels >= 0, np.searchsorted(classes, labels), -1))

    @property
    def there(self) -> NDArray[np.bool_]:
        """Which tokens have a class."""
        return self.truth >= 0

    def heads(self) -> list[Any]:
        """Return logistic regressions."""
        return [SceneClassifier(C=c, max_iter=300) for c in STRENGTHS]

    def guess(self, learned: Index) -> Any:
        """Return the commonest class."""
        return np.bincount(self.truth[learned]).argmax()

    def sums(self, at: Index, found: NDArray[Any], units: Index) -> Floats:
        """Return confusions."""
        shape = int(units.max()) + 1, int(self.truth.max()) + 1
        return confusions(self.truth[at], found, units[at], shape)


class Values(MapHead):
    """Values of tokens, NaN where there is none."""

    # Two points of the variance explained: where half is, 2 % of the error.
    margins: ClassVar[dict[str, float]] = {"r2": 2 * MARGIN}
    trivial = "mean of the training tokens"

    @property
    def there(self) -> NDArray[np.bool_]:
        """Which tokens have a value."""
        return ~np.isnan(self.truth)

    def heads(self) -> list[Any]:
        """Return ridge regressions."""
        return [make_pipeline(StandardScaler(), Ridge(a)) for a in RIDGES]

    def guess(self, learned: Index) -> Any:
        """Return the mean."""
        return self.truth[learned].mean()

    def sums(self, at: Index, found: NDArray[Any], units: Index) -> Floats:
        """Return sums of errors."""
        sums = misses(self.truth[at], found, units[at], int(units.max()) + 1)
        return sums.astype(np.float32)
