"""The errors that `nec` raises: each says what was wrong, the value, and the remedy."""


class NecError(Exception):
    """Any error that `nec` raises on purpose.

    Parameters
    ----------
    what : str
        The thing that is wrong, with its name and value.
    remedy : str, optional
        What the caller can do about it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}; {remedy}" if remedy else what)


class SceneError(NecError, ValueError):
    """A scene cannot be read as asked: a missing band, no CRS, no raster."""


class SceneReadError(SceneError):
    """A scene's file cannot be opened or read: damaged, gone, or out of reach; it may come back."""


class ModelError(NecError, ValueError):
    """A model is unknown, damaged, or cannot take this input."""


class CompressorError(NecError, ValueError):
    """A compressor cannot be fitted, loaded or applied."""


class ChunkError(NecError, ValueError):
    """The bytes of a chunk are damaged or not of a known format."""


class StoreError(NecError, OSError):
    """A store cannot be written or read: sealed, foreign, damaged, incomplete."""


class SchedulerError(NecError, OSError):
    """A cluster's scheduler does not answer."""


class LowRankError(NecError, ValueError):
    """A network cannot be converted to low rank, or its training cannot go on."""


class HeadError(NecError, ValueError):
    """A head cannot be fitted on, or applied to, these embeddings."""


class TooFewLabelsError(HeadError):
    """A head cannot be fitted: too few labels are left, or of one class alone."""


class EvaluationError(NecError, ValueError):
    """Results cannot be compared or scored as asked."""


class CatalogError(NecError, ValueError):
    """A catalog cannot be built of these stores, or an item cannot be read as a scene."""


class RobustnessError(NecError, ValueError):
    """An attack or a measure of robustness cannot be run on this model or these images."""


# The extra that brings each library that the core install lacks.
_EXTRAS = {
    "torch": "encode",
    "safetensors": "encode",
    "rasterio": "encode",
    "rioxarray": "encode",
    "odc": "encode",
    "PIL": "encode",
    "distributed": "cluster",
    "scipy": "encode",
    "sklearn": "heads",
    "geopandas": "heads",
    "pandas": "heads",
    "matplotlib": "plot",
    "compressai": "train",
    "pystac": "stac",
    "jsonschema": "stac",
    "pyproj": "encode",
    "shapely": "encode",
    "terratorch": "terratorch",
    "icechunk": "icechunk",
}


class MissingLibraryError(NecError, ImportError):
    """A library that an extra brings is not installed."""

    @classmethod
    def of(cls, error: ModuleNotFoundError) -> "MissingLibraryError | None":
        """Say which extra brings what is missing; None where no extra does."""
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRAS:
            return None
        return cls(f"{library} is not installed", f"pip install 'nec[{_EXTRAS[library]}]'")
