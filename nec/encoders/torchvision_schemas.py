"""Importing torchvision beside a torch that it was not built for.

A processor's build of torch beside the registry's torchvision, which is built for CUDA: importing
it ends with "operator torchvision::nms does not exist", because its library of operators cannot
be loaded and its meta kernels are registered all the same. What we import it for needs no operator
of it, so their schemas are enough.
"""

import importlib
import sys
from types import ModuleType

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_kept: list[object] = []


def import_torchvision() -> ModuleType:
    """Return torchvision, its missing schemas defined where it cannot be imported without.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    import torch

    for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        library.define(f"{name}{schema}")
    # Schemas live as long as the library object.
    _kept.append(library)
    return importlib.import_module("torchvision")
