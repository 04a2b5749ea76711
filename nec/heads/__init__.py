"""Task heads on embeddings: scikit-learn estimators that take xarray arrays."""

from pathlib import Path
from typing import Any

from nec.errors import HeadError
from nec.heads.biomass import BiomassRegressor
from nec.heads.classification import SceneClassifier
from nec.heads.maps import write_map
from nec.heads.segmentation import Segmenter

__all__ = ["BiomassRegressor", "SceneClassifier", "Segmenter", "load_head", "write_map"]


def load_head(path: str | Path) -> SceneClassifier | Segmenter | BiomassRegressor:
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

    kinds: dict[Any, type[SceneClassifier | Segmenter | BiomassRegressor]] = {
        kind.__name__: kind for kind in (SceneClassifier, Segmenter, BiomassRegressor)
    }
    name = read_state(path)[0].get("head")
    if name not in kinds:
        raise HeadError(
            f"{path} is a head of class {name!r} (known: {', '.join(kinds)})", "update nec"
        )
    return kinds[name].load(path)
