"""Heads on disk: one safetensors file with the arrays, and JSON metadata in its header."""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nec.errors import HeadError

if TYPE_CHECKING:
    from nec.heads.estimator import EmbeddingHead

FORMAT_VERSION = 1
KEY = "nec_head"

Head = TypeVar("Head", bound="EmbeddingHead")


def save_state(head: "EmbeddingHead", path: str | Path) -> Path:
    """Write a fitted head, atomically.

    Raises
    ------
    HeadError
        The labels or hyperparameters are neither numbers nor strings, or there is no such folder.
    """
    from safetensors.numpy import save

    path = Path(path)
    if not path.parent.is_dir():
        raise HeadError(f"there is no folder {path.parent}", "make it")
    names = getattr(head, "feature_names_in_", None)
    learned, arrays = head._learned()
    state = {
        "version": FORMAT_VERSION,
        "head": type(head).__name__,
        "parameters": {name: _plain(value) for name, value in head.get_params().items()},
        "n_features": head.n_features_in_,
        "feature_names": None if names is None else names.tolist(),
        "basis": head.basis_,
        "model": head.model_,
        "bands": _plain(head.bands_),
        **{name: _plain(value) for name, value in learned.items()},
    }
    # One key, because the order of several in the header is not fixed.
    header = {KEY: json.dumps(state, sort_keys=True)}
    tensors = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(save(tensors, metadata=header))
        Path(temporary).chmod(0o644)  # mkstemp makes files that only their owner can read
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
    return path


def read_state(path: str | Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read the metadata and the arrays of a head.

    Raises
    ------
    HeadError
        The file is not there, is no head, or is of a version that is not known.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise HeadError(f"{path} is not a file", "give the path that save() wrote")
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise HeadError(
            f"{path} is no safetensors file ({error})", "save the head again"
        ) from error
    try:
        state = json.loads(header[KEY])
        version = state["version"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise HeadError(
            f"{path} holds no head of nec", "give the path that save() wrote"
        ) from error
    if version != FORMAT_VERSION:
        raise HeadError(
            f"{path} is a head of format version {version}, and this nec reads {FORMAT_VERSION}",
            "update nec",
        )
    return state, tensors


def load_state(kind: type[Head], path: str | Path) -> Head:
    """Read a head of one class.

    Raises
    ------
    HeadError
        As :func:`read_state`; the head is of another class; its parts do not fit together.
    """
    state, tensors = read_state(path)
    if state.get("head") != kind.__name__:
        raise HeadError(
            f"{path} is a {state.get('head')}, not a {kind.__name__}", "use nec.heads.load_head"
        )
    try:
        head: Head = kind(**{name: _value(value) for name, value in state["parameters"].items()})
        head.n_features_in_ = int(state["n_features"])
        if state["feature_names"] is not None:
            head.feature_names_in_ = np.array(state["feature_names"], dtype=object)
        head.basis_, head.model_ = state["basis"], state["model"]
        # Heads of earlier releases do not say.
        head.bands_ = None if state.get("bands") is None else tuple(state["bands"])
        head._restore(state, tensors)
    except HeadError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HeadError(f"{path} is damaged ({error!r})", "save the head again") from error
    return head


def _plain(value: Any) -> Any:
    """Bring a value into what JSON holds exactly; a dictionary becomes pairs."""
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, dict):
        return {"pairs": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise HeadError(f"{value!r} ({type(value).__name__}) cannot be saved", "use numbers or strings")


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _value(item) if isinstance(item, dict) else item for key, item in value["pairs"]
        }
    return tuple(value) if isinstance(value, list) else value
