"""Families of published encoders: names that stand for files which are not ours.

``FAMILY:WHERE`` names a model of a family; its card is made here, without torch, from the files
themselves. What a family's networks compute is in a module of its own.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nec.errors import ModelError

if TYPE_CHECKING:
    from nec.encoders.protocol import Encoder

_GALILEO_SIZES = {128: "nano", 192: "tiny", 768: "base"}


@dataclass(frozen=True)
class Published:
    """A published model before its network is made.

    Attributes
    ----------
    folder : Path
        Where its files lie; compressors fitted to it may lie there too.
    files : tuple of Path
        What its embeddings hang on: the weights, and what lies beside them.
    card : dict
        ``name``, ``architecture`` (the family), ``encoder``, ``reference`` and ``tiling``.
    """

    folder: Path
    files: tuple[Path, ...]
    card: dict[str, Any]


@dataclass(frozen=True)
class Family:
    """How models of a family are found and made.

    Attributes
    ----------
    find : callable
        From what stands behind the family's name to a `Published`; ModelError where there is none.
    make : callable
        From a card, its folder and a precision to the `Encoder`; imports torch.
    """

    find: Callable[[str], Published]
    make: "Callable[[dict[str, Any], Path, str], Encoder]"


def family_of(name: str) -> Family | None:
    """Return the family that a model's name begins with, if it is one."""
    return FAMILIES.get(name.partition(":")[0]) if ":" in name else None


def _find_galileo(where: str) -> Published:
    folder = Path(where)
    # Galileo's own names of files.
    try:
        config = json.loads((folder / "config.json").read_text())["model"]["encoder"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} holds no Galileo ({error})", "give the folder of its config.json, encoder.pt"
        ) from error
    width = config.get("embedding_size")
    card = {
        "name": f"galileo-{_GALILEO_SIZES.get(width, width)}",
        "architecture": "galileo",
        "reference": f"galileo:{folder.absolute()}",
        "encoder": config,
        # Chips of 64 pixels, the largest that it was trained for.
        "tiling": {"core": 32, "halo": 16},
    }
    return Published(folder, (folder / "encoder.pt",), card)


def _make_galileo(card: dict[str, Any], folder: Path, precision: str) -> "Encoder":
    from nec.encoders.galileo import Galileo, GalileoEncoder

    return Galileo(GalileoEncoder.load(folder), name=card["name"], precision=precision)


def statistics_file(checkpoint: Path) -> Path:
    """Return where a user says the statistics of a TerraTorch checkpoint's bands."""
    return checkpoint.with_name(f"{checkpoint.name}.statistics.json")


def _find_terratorch(where: str) -> Published:
    name, sign, file = where.partition("@")
    checkpoint = Path(file)
    if not (name and sign and checkpoint.is_file()):
        raise ModelError(
            f"terratorch:{where} names no backbone with a file of its weights",
            "write terratorch:BACKBONE@CHECKPOINT, as terratorch:prithvi_eo_v2_300@Prithvi.pt, or "
            "pass --checkpoint",
        )
    beside = statistics_file(checkpoint)
    statistics = None
    if beside.exists():
        try:
            document = json.loads(beside.read_text())
            statistics = {band: [float(m), float(s)] for band, (m, s) in document.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{beside} holds no statistics of bands ({error})",
                'write {"blue": [mean, deviation], ...} in reflectance times 10,000',
            ) from error
    # Chips of the size that it was trained on, of which three fifths are a chip's own.
    core, halo = (128, 64) if name.startswith("clay") else (128, 48)
    if name.startswith("prithvi_eo_v2_600"):  # patches of 14 pixels
        core, halo = 112, 56
    card = {
        "name": name,
        "architecture": "terratorch",
        "reference": f"terratorch:{name}@{checkpoint.absolute()}",
        "encoder": {"backbone": name, "checkpoint": checkpoint.name, "statistics": statistics},
        "tiling": {"core": core, "halo": halo, "batch": 4},
    }
    return Published(checkpoint.parent, (checkpoint, *([beside] if statistics else [])), card)


def _make_terratorch(card: dict[str, Any], folder: Path, precision: str) -> "Encoder":
    from nec.encoders.terratorch import TerraTorchEncoder

    settings = card["encoder"]
    return TerraTorchEncoder(
        settings["backbone"],
        folder / settings["checkpoint"],
        statistics=settings["statistics"],
        precision=precision,
    )


FAMILIES = {
    "galileo": Family(_find_galileo, _make_galileo),
    "terratorch": Family(_find_terratorch, _make_terratorch),
}
