"""Task heads on embeddings: scikit-learn estimators that take xarray arrays."""

from pathlib import Path
from typing import Any

from nec.errors import HeadError
from nec.heads.biomass import BiomassRegressor
from nec.heads.classification import SceneClassifier
from nec.heads.dissimilarity import DissimilarityIndex
from nec.heads.maps import write_map
from nec.heads.segmentation import Segmenter

__all__ = [
    "BiomassRegressor",
    "DissimilarityIndex",
    "SceneClassifier",
    "Segmenter",
    "load_head",
    "write_map",
]

Head = SceneClassifier | Segmenter | BiomassRegressor | DissimilarityIndex


def load_head(path: str | Path) -> Head:
    """Read a head of whichever class from a safetensors file.

    Parameters
    ----------
    path : str or path
        What a head's ``save`` wrote.

    Raises
    ------
    HeadError
        No head, a damaged one, or one of a class or version that is not known.
    """
    from nec.heads.persistence import read_state

    kinds: dict[Any, type[Head]] = {
        kind.__name__: kind
        for kind in (SceneClassifier, Segmenter, BiomassRegressor, DissimilarityIndex)
    }
    name = read_state(path)[0].get("head")
    if name not in kinds:
        raise HeadError(
            f"{path} is a head of class {name!r} (known: {', '.join(kinds)})", "update nec"
        )
    return kinds[name].load(path)
