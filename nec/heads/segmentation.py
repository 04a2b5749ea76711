"""Segmentation: a label for every token or pixel, learned from maps or points."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from nec.errors import HeadError, TooFewLabelsError
from nec.heads.classifier import EmbeddingClassifier, weight_of_codes
from nec.heads.estimator import complete_rows
from nec.heads.rules import LinearRule, Rows, Rule
from nec.heads.terratorch_decoders import check_decoder, installed_version
from nec.heads.vectors import (
    Origin,
    labelled_count,
    labelled_rows,
    plain_labels,
    scene_pairs,
)
from nec.heads.windows import WINDOW
from nec.sampling import without_time

logger = logging.getLogger(__name__)

DECODERS = ("linear", "conv", "fpn")
# Of the vectors that are asked for: with so many that have data there are enough; and how many
# times as many are drawn next where hardly any had.
DRAWN, MORE = 0.9, 16


class Segmenter(EmbeddingClassifier):
    """Label every token, or every pixel, of a scene by its embedding.

    Parameters
    ----------
    decoder : {"linear", "conv", "fpn"} or str, default "linear"
        Logistic regression of each token; or a convolutional network that labels pixels:
        two 3 x 3 convolutions, or a small feature pyramid that sees 12 tokens around. Or, where
        ``nec[terratorch]`` is installed, a name in TerraTorch's registry of decoders, such as
        "UperNetDecoder", "UNetDecoder", "FCNDecoder" or "smp_FPN": it labels windows of 32 x 32
        tokens, each with 8 tokens around, and pools over no more. Networks need torch, and
        scenes to learn from; ``C`` and ``max_iter`` are of no effect on them.
    decoder_options : dict, optional
        Arguments of a decoder of TerraTorch by name, ``{"pool_scales": [1, 2]}``; those of the
        head that follows it with ``head_`` before, ``{"head_dropout": 0.1}``. Where no channels
        are given they follow from `width`.
    C : float, default 1.0
        Inverse strength of the L2 penalty.
    class_weight : dict, "balanced" or None, default None
        As in scikit-learn's LogisticRegression.
    max_iter : int, default 1000
        Limit of the L-BFGS iterations.
    ignore_index : int, str or None, default -1
        The label that means "no label"; None where every value is one. NaN never is a label,
        nor is the nodata value of a label raster.
    upsampling : int, default 4
        Pixels a token along each side, of networks.
    width : int, default 64
        Channels of networks.
    steps, batch_size, learning_rate
        Training of networks.
    max_samples : int or None, default 200_000
        Tokens that the linear decoder learns from or is scored on, about; of more labels a random
        part, so that scenes larger than memory can be learned from. None for all.
    max_windows : int, default 256
        Windows of 32 x 32 tokens that networks learn from, at most; of more a random part.
    random_state : int, default 0
        Seed of networks, and of which tokens are taken of more than `max_samples`.

    Attributes
    ----------
    classes_ : numpy.ndarray
        The labels, sorted.
    counts_ : list of int
        Vectors of each class that were learned from; of networks pixels.
    basis_, model_ : str or None
        Basis hash and model id of the embeddings the head was fitted on.
    rule_ : Rule
        What was learned, as plain arrays.
    n_iter_ : int
        Iterations, or steps, used.
    losses_ : numpy.ndarray
        (steps,) Cross-entropy of each step; of networks just fitted only.
    terratorch_version_ : str
        Version of TerraTorch that made the decoder; of TerraTorch's only.
    """

    n_iter_: int
    rule_: Any

    def __init__(
        self,
        *,
        decoder: str = "linear",
        decoder_options: Mapping[str, Any] | None = None,
        C: float = 1.0,
        class_weight: Any = None,
        max_iter: int = 1000,
        ignore_index: Any = -1,
        upsampling: int = 4,
        width: int = 64,
        steps: int = 300,
        batch_size: int = 8,
        learning_rate: float = 2e-3,
        max_samples: int | None = 200_000,
        max_windows: int = 256,
        random_state: int = 0,
    ) -> None:
        self.decoder = decoder
        self.decoder_options = decoder_options
        self.C = C
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.ignore_index = ignore_index
        self.upsampling = upsampling
        self.width = width
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_samples = max_samples
        self.max_windows = max_windows
        self.random_state = random_state

    @property
    def n_parameters_(self) -> int:
        """Trained parameters."""
        check_is_fitted(self)
        if self.decoder != "linear":
            return int(self.rule_.count)
        return sum(a.size for a in self.rule_.tensors().values())

    def fit(self, X: Any, y: Any, *, progress: Callable[[int, int], None] | None = None) -> Self:
        """Learn from labelled tokens.

        Parameters
        ----------
        X : xarray.DataArray, sequence of them, numpy.ndarray or table
            Embedding (band, y, x), possibly lazy: only chunks with labels are read and only
            labelled vectors are kept. Or (n, d) vectors.
        y : xarray.DataArray, numpy.ndarray or sequence of them
            Labels (y, x). With a CRS on both sides they are matched by coordinate: a token
            takes the majority of the label pixels whose centres lie in it (ties: the smallest
            label), or, where label pixels are larger, the one its centre lies in. Else
            by shape: that of the tokens, or an integer multiple of it. Or (n,) labels. For
            networks, pixels take the place of tokens in all of this.
        progress : callable, optional
            Called with (steps done, steps in all) while a network trains.

        Returns
        -------
        Segmenter
            Itself. Vectors with NaN are dropped, and their number is logged.

        Raises
        ------
        HeadError
            Labels that do not fit the embedding in shape, CRS or extent; a single class;
            everything missing; embeddings of several bases; a decoder that does not exist or
            does not take its options.
        MissingLibraryError
            The decoder is TerraTorch's, which is not installed.
        """
        for name in ("upsampling", "width", "steps", "batch_size"):
            if self.decoder != "linear" and not getattr(self, name) >= 1:
                raise HeadError(f"{name}={getattr(self, name)!r} is too small", "give 1 and more")
        if self.decoder not in DECODERS:
            check_decoder(self.decoder, self.decoder_options)
        elif self.decoder_options:
            raise HeadError(
                f"decoder={self.decoder!r} takes no decoder_options, and {self.decoder_options} "
                "is given",
                "leave them out, or take a decoder of TerraTorch",
            )
        scenes = scene_pairs(X, y)
        if scenes is None and self.decoder != "linear":
            raise HeadError(
                f"decoder={self.decoder!r} sees neighbours, and rows (n, d) have none",
                'pass scenes (band, y, x), or take decoder="linear"',
            )
        if scenes is None:
            return self._learn(X, y, Origin.of(X))
        origin = Origin.common([Origin.of(embedding) for embedding, _ in scenes])
        if self.decoder != "linear":
            return self._train(scenes, origin, progress)
        rows, labels = self._labelled(scenes)
        return self._learn(rows, labels, origin)

    def predict(self, X: Any) -> Any:
        """Give each vector, or each pixel of a scene, its most probable class.

        As :meth:`SceneClassifier.predict`; a network gives scenes in pixels, ``upsampling``
        times as many as tokens along each side.
        """
        check_is_fitted(self)
        return super().predict(X) if self.decoder == "linear" else self._pixels(X, shares=False)

    def predict_proba(self, X: Any) -> Any:
        """Give each vector, or each pixel of a scene, the probability of every class.

        As :meth:`SceneClassifier.predict_proba`, in the pixels of :meth:`predict`.
        """
        check_is_fitted(self)
        if self.decoder == "linear":
            return super().predict_proba(X)
        return self._pixels(X, shares=True)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy over the labelled tokens.

        Parameters
        ----------
        X, y
            As for :meth:`fit`.
        sample_weight : array_like, optional
            (n,) weights, for (n, d) vectors only.

        Returns
        -------
        float
            Share of right labels among the tokens or rows that have a label and no NaN.
        """
        check_is_fitted(self)
        scenes = scene_pairs(X, y)
        if scenes is None:
            self._check_origin(X)
            return self._accuracy(self._checked(X), plain_labels(y), sample_weight)
        if sample_weight is not None:
            raise HeadError("sample_weight goes with (n, d) vectors only", "leave it out")
        for embedding, _ in scenes:
            self._is_scene(embedding)
        if self.decoder != "linear":
            from nec.heads.pixels import pixel_accuracy

            return pixel_accuracy(self.rule_, self.classes_, self._pixel_scenes(scenes))
        return self._accuracy(*self._labelled(scenes))

    def _train(
        self,
        scenes: list[tuple[xr.DataArray, Any]],
        origin: Origin,
        progress: Callable[[int, int], None] | None,
    ) -> Self:
        import torch

        from nec.heads.decoders import make_decoder, margin_of, tile_of, try_decoder
        from nec.heads.pixels import DecoderRule, labelled_windows
        from nec.heads.training import Standard, class_weights, train_decoder

        labelled = self._pixel_scenes(scenes)
        margin = margin_of(self.decoder)
        windows, classes = labelled_windows(
            labelled,
            margin=margin,
            edge=WINDOW,
            most=self.max_windows,
            seed=self.random_state,
        )
        if classes.size < 2:
            raise TooFewLabelsError(
                f"labels of 1 class: {classes.tolist()}", "give two classes at least"
            )
        self.n_features_in_ = labelled[0].embedding.sizes["band"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            network = make_decoder(
                self.decoder,
                self.n_features_in_,
                classes.size,
                width=self.width,
                scale=self.upsampling,
                options=self.decoder_options,
            )
            if self.decoder not in DECODERS:
                bands = self.n_features_in_
                try_decoder(network, self.decoder, bands, classes.size, batch=self.batch_size)
                self.terratorch_version_ = installed_version()
            standard = Standard.of(windows)
            losses = train_decoder(
                network,
                windows,
                standard,
                scale=self.upsampling,
                weights=class_weights(self.class_weight, windows, classes),
                steps=self.steps,
                batch=self.batch_size,
                learning_rate=self.learning_rate,
                seed=self.random_state,
                progress=progress,
            )
        self.n_iter_, self.losses_ = len(losses), np.array(losses)
        self.rule_ = DecoderRule(
            network, standard, margin, self.upsampling, tile_of(self.decoder), classes.size
        )
        self.classes_ = classes
        codes = np.concatenate([window.codes[window.codes >= 0] for window in windows])
        self.counts_ = np.bincount(codes, minlength=classes.size).tolist()
        self._keep_origin(origin)
        return self

    def _pixel_scenes(self, scenes: list[tuple[xr.DataArray, Any]]) -> list[Any]:
        from nec.heads.pixels import PixelScene

        laid = [
            PixelScene.of(
                without_time(embedding),
                labels,
                scale=self.upsampling,
                ignore_index=self.ignore_index,
            )
            for embedding, labels in scenes
        ]
        if len({scene.embedding.sizes["band"] for scene in laid}) > 1:
            raise HeadError("the embeddings differ in their number of bands", "take the same bands")
        return laid

    def _pixels(self, X: Any, *, shares: bool) -> xr.DataArray:
        from nec.heads.pixels import pixel_map

        if not isinstance(X, xr.DataArray):
            raise HeadError(
                f"decoder={self.decoder!r} maps scenes", "pass a DataArray (band, y, x)"
            )
        self._is_scene(X)
        scene = without_time(X)
        if set(scene.dims) != {"band", "y", "x"}:
            raise HeadError(
                f"decoder={self.decoder!r} maps tokens, and the array has dimensions {X.dims}",
                "pass (band, y, x)",
            )
        return pixel_map(self.rule_, self.classes_, scene, shares=shares)

    def _learned(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        state, tensors = super()._learned()
        if self.decoder not in DECODERS:
            state["terratorch"] = self.terratorch_version_
        return state, tensors

    def _restore(self, state: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        if self.decoder in DECODERS:
            super()._restore(state, tensors)
            return
        check_decoder(self.decoder, self.decoder_options)
        self.terratorch_version_, here = str(state["terratorch"]), installed_version()
        try:
            super()._restore(state, tensors)
        except HeadError as error:
            if here == self.terratorch_version_:
                raise
            raise HeadError(
                f"the head was fitted with TerraTorch {self.terratorch_version_}, and {here} makes "
                f"another {self.decoder} ({error})",
                f"pip install terratorch=={self.terratorch_version_}",
            ) from error
        if here != self.terratorch_version_:
            logger.warning(
                "fitted with TerraTorch %s, running on %s", self.terratorch_version_, here
            )

    def _labelled(self, scenes: list[tuple[xr.DataArray, Any]]) -> tuple[Rows, NDArray[Any]]:
        ignored: dict[str, Any] = {"ignore_index": self.ignore_index}
        scenes = [(without_time(embedding), labels) for embedding, labels in scenes]
        if len({embedding.sizes.get("band") for embedding, _ in scenes}) > 1:
            raise HeadError("the embeddings differ in their number of bands", "take the same bands")
        most = self.max_samples
        low, high = 0.0, 1.0
        tokens = sum(e.size // max(e.sizes.get("band", 1), 1) for e, _ in scenes)
        if most is not None and tokens > most:
            there = sum(labelled_count(*scene, **ignored) for scene in scenes)
            high = min(1.0, most / max(there, 1))
            if high < 1:
                logger.warning("%d tokens have a label: learning from about %d", there, most)
        parts: list[tuple[Rows, NDArray[Any]]] = []
        while True:
            parts += [
                labelled_rows(e, y, drawn=(low, high), seed=self.random_state, **ignored)
                for e, y in scenes
            ]
            known = sum(int(complete_rows(rows).sum()) for rows, _ in parts)
            if most is None or high >= 1 or known > DRAWN * most:
                break
            # Of padding and holes there is nothing to learn: draw on, for as many that have data.
            low, high = high, min(1.0, high * most / max(known, most / MORE))
        # A scene without labels is no error among others.
        parts = [part for part in parts if len(part[1])]
        if not parts:
            raise TooFewLabelsError(
                "no token has a label", f"check the labels and ignore_index={self.ignore_index!r}"
            )
        return (
            np.concatenate([rows for rows, _ in parts]),
            np.concatenate([labels for _, labels in parts]),
        )

    def _ignored(self) -> tuple[Any, ...]:
        return () if self.ignore_index is None else (self.ignore_index,)

    def _maps(self, X: xr.DataArray) -> bool:
        if "y" not in X.dims and "cell_y" not in X.dims:
            raise HeadError(f"the array has dimensions {X.dims}", "pass (band, y, x), or X.values")
        return True

    def _make_rule(self, rows: Rows, codes: NDArray[np.intp], classes: NDArray[Any]) -> Rule:
        rule, self.n_iter_ = LinearRule.fit(
            rows,
            codes,
            C=self.C,
            max_iter=self.max_iter,
            class_weight=weight_of_codes(self.class_weight, classes),
        )
        return rule

    def _rule_of(self, tensors: dict[str, NDArray[Any]]) -> Any:
        if self.decoder != "linear":
            from nec.heads.pixels import DecoderRule

            return DecoderRule.of(
                tensors,
                self.decoder,
                self.n_features_in_,
                self.classes_.size,
                width=self.width,
                scale=self.upsampling,
                options=self.decoder_options,
            )
        return LinearRule.of(tensors, self.classes_.size, self.n_features_in_)
