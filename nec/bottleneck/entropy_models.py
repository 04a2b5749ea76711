"""CompressAI's entropy models without the rest of CompressAI.

Its package imports all of its networks and data sets at once: seconds, hundreds of megabytes,
and libraries (torchvision, torch-geometric) whose absence or another build ends the import. The
entropy models need none of them.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from nec.errors import MissingLibraryError

# What compressai's own __init__ holds beside its subpackages, and its entropy models ask for.
CODER = "ans"


def load_entropy_models() -> ModuleType:
    """Return the module ``compressai.entropy_models``.

    Where CompressAI is not imported yet, its name stands for a package whose subpackages are
    imported when they are asked for.

    Raises
    ------
    MissingLibraryError
        If CompressAI is not installed.
    """
    if "compressai" not in sys.modules:
        spec = importlib.util.find_spec("compressai")
        if spec is None or spec.submodule_search_locations is None:
            raise MissingLibraryError("compressai is not installed", "pip install 'nec[train]'")
        sys.modules["compressai"] = _lazy_package(spec)
    return importlib.import_module("compressai.entropy_models")


def _lazy_package(spec: ModuleSpec) -> ModuleType:
    package = ModuleType("compressai", "CompressAI, each subpackage when it is asked for.")

    def subpackage(name: str) -> ModuleType:
        try:
            return importlib.import_module(f"compressai.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"compressai.{name}":
                raise
            raise AttributeError(f"module 'compressai' has no attribute {name!r}") from error

    vars(package).update(
        __spec__=spec,
        __file__=spec.origin,
        __path__=list(spec.submodule_search_locations or ()),
        __getattr__=subpackage,
        get_entropy_coder=lambda: CODER,
        available_entropy_coders=lambda: [CODER],
    )
    return package
