"""nec: neural embedding compression for Earth observation.

Open a store with ``xarray.open_zarr``; ``import nec`` adds the accessor ``ds.nec``. Everything
else is found from `encode`, `open`, `load_model`, `Compressor` and `nec.heads`. Heavy libraries
are imported when they are first needed.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from nec import accessor as _accessor  # noqa: F401 - registers ds.nec
from nec.errors import MissingLibraryError, NecError

if TYPE_CHECKING:
    from nec.archive import commit, history, publish, seal, verify
    from nec.archive import open_store as open  # noqa: A004
    from nec.compressor import Compressor
    from nec.model import Model, list_models, load_model
    from nec.production import embed, encode, encode_archive
    from nec.sampling import sample

__version__ = version("nec")
__all__ = [
    "Compressor",
    "Model",
    "NecError",
    "commit",
    "embed",
    "encode",
    "encode_archive",
    "history",
    "list_models",
    "load_model",
    "open",
    "publish",
    "sample",
    "seal",
    "verify",
]

_HOMES = {
    "Compressor": "nec.compressor",
    "Model": "nec.model",
    "commit": "nec.archive",
    "embed": "nec.production",
    "encode": "nec.production",
    "encode_archive": "nec.production",
    "history": "nec.archive",
    "list_models": "nec.model",
    "load_model": "nec.model",
    "open": "nec.archive",
    "publish": "nec.archive",
    "sample": "nec.sampling",
    "seal": "nec.archive",
    "verify": "nec.archive",
}
_ORIGINAL = {"open": "open_store"}


def __getattr__(name: str) -> Any:
    rooms = (
        *("archive", "catalog", "codec", "encoders", "errors", "evaluate", "heads", "production"),
        "scene",
    )
    if name not in _HOMES and name not in rooms:
        raise AttributeError(f"module 'nec' has no attribute {name!r}")
    try:
        if name in rooms:
            return import_module(f"nec.{name}")
        return getattr(import_module(_HOMES[name]), _ORIGINAL.get(name, name))
    except ModuleNotFoundError as error:
        raise (MissingLibraryError.of(error) or error) from error
