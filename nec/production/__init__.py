"""Production: sources to stores. The rooms to the left, put to work."""

from nec.production.archiving import ArchiveReport, encode_archive
from nec.production.encoding import embed, encode
from nec.production.fitting_sample import sample_features
from nec.production.journal import Progress
from nec.production.measures import EncodeReport
from nec.production.scenes import SceneEntry, find_scenes
from nec.production.task import Retries

__all__ = [
    "ArchiveReport",
    "EncodeReport",
    "Progress",
    "Retries",
    "SceneEntry",
    "embed",
    "encode",
    "encode_archive",
    "find_scenes",
    "sample_features",
]
