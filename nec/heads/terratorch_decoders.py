"""TerraTorch's decoders [1]_ by name: which there are, their options, and how each is fed.

References
----------
.. [1] TerraTorch: github.com/terrastackai/terratorch, Apache-2.0.
"""

import importlib.util
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from nec.errors import HeadError, MissingLibraryError

#: Margin in tokens around what is labelled, of all of them.
MARGIN = 8
#: Prefix of options of the head that follows a decoder, as in TerraTorch's own configurations.
HEAD = "head_"


class Size(NamedTuple):
    """What a decoder is made for: bands, classes, channels, pixels a token along each side."""

    bands: int
    classes: int
    width: int
    scale: int


@dataclass(frozen=True)
class Feeding:
    """How one of TerraTorch's decoders is fed.

    Attributes
    ----------
    pyramid : bool
        Whether it takes four levels, at 4, 2, 1 and 1/2 times the resolution of the tokens, or
        the tokens alone.
    listed : bool
        Whether its first argument is the list of its levels' channels.
    settled : tuple of (str, str)
        Arguments that are no options, with what they are: "bands" or "classes".
    """

    pyramid: bool = True
    listed: bool = True
    settled: tuple[tuple[str, str], ...] = ()


KINDS = {
    "ASPPHead": Feeding(pyramid=False, listed=False, settled=(("in_channels", "bands"),)),
    "ASPPSegmentationHead": Feeding(
        pyramid=False, settled=(("in_channels", "bands"), ("num_classes", "classes"))
    ),
    "FCNDecoder": Feeding(pyramid=False),
    "IdentityDecoder": Feeding(pyramid=False),
    "LinearDecoder": Feeding(pyramid=False, settled=(("num_classes", "classes"),)),
    "MLPDecoder": Feeding(pyramid=False),
    "UNetDecoder": Feeding(),
    "UperNetDecoder": Feeding(),
}
# What is registered beside them: a part of another, a regression, an autoencoder's decoder, and
# one that takes no encoder but timm's.
_NO_DECODERS = ("ASPPModule", "ASPPRegressionHead", "SatMAEHead", "SatMAEHeadViT", "smp_DPT")
# Arguments of segmentation_models_pytorch that TerraTorch sets, or that its decoders do not see.
_SMP_OWN = ("encoder_", "in_channels", "classes", "activation", "upsampling", "aux_params")


def check_decoder(name: str, options: Mapping[str, Any] | None) -> None:
    """Refuse a name or an option that TerraTorch does not have.

    Raises
    ------
    HeadError
        There is no such decoder, or it takes no such option; known ones are listed. An option
        is nothing that a file of a head can hold.
    MissingLibraryError
        TerraTorch, whose decoder this is, is not installed.
    """
    short = _found(name)
    own, of_head = _options(short)
    try:
        json.dumps(dict(options or {}))
    except (TypeError, ValueError) as error:
        raise HeadError(
            f"decoder_options={options!r} cannot be saved with the head ({error})",
            "give a dictionary of numbers, words and lists",
        ) from error
    for key in options or {}:
        if key not in own and key not in of_head:
            taken = ", ".join(own) or "none"
            told = f"; of the head after it {', '.join(of_head)}" if of_head else ""
            raise HeadError(f"{short} takes no option {key!r}", f"it takes {taken}{told}")


def decoder_parts(name: str, size: Size, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Make the modules of a decoder, untrained: its neck (or None), itself and its head.

    Parameters
    ----------
    name : str
        In TerraTorch's registry of decoders.
    size : Size
        Its ``bands`` are those of what is fed.
    options : mapping, optional
        Arguments of the decoder by name; those of the head with the prefix ``head_``.

    Returns
    -------
    dict
        ``neck`` (list of four tensors to list of four, or None), ``decoder`` (list of tensors to
        tensor) and ``head`` (None where the decoder gives logits itself).

    Raises
    ------
    HeadError
        As :func:`check_decoder`, or TerraTorch refuses a value.
    """
    short = _found(name)
    feeding = _feeding(short)
    own, _ = _options(short)
    given = _defaults(short, own, size) | {k: v for k, v in (options or {}).items() if k in own}
    given |= {key: getattr(size, which) for key, which in feeding.settled}
    of_head = {k.removeprefix(HEAD): v for k, v in (options or {}).items() if k not in own}
    from nec.encoders.terratorch_backbones import import_terratorch

    registry = import_terratorch("registry").DECODER_REGISTRY
    try:
        necks, channels = [], [size.bands]
        if feeding.pyramid:
            necks, channels = import_terratorch("models.necks").build_neck_list(
                [{"name": "LearnedInterpolateToPyramidal"}], 4 * channels
            )
        decoder = registry.build(short, *([channels] if feeding.listed else []), **given)
        head = None
        if not _gives_logits(short):
            wide = getattr(decoder, "out_channels", None) or decoder.channels
            heads = import_terratorch("models.heads")
            head = heads.SegmentationHead(wide, size.classes, **of_head)
    except Exception as error:  # its registry tries several libraries, each with errors
        raise HeadError(
            f"TerraTorch makes no {short} of {size.bands} bands with {given | of_head} ({error})",
            "choose other decoder_options",
        ) from error
    return {"neck": necks[0] if necks else None, "decoder": decoder, "head": head}


def takes_pyramid(name: str) -> bool:
    """Whether a decoder takes levels of several resolutions."""
    return KINDS.get(_short(name), Feeding()).pyramid


def installed_version() -> str:
    """Return the version of TerraTorch."""
    return version("terratorch")


def _short(name: str) -> str:
    return name.removeprefix("terratorch_")


def _found(name: str) -> str:
    """Return the name of a decoder that there is; a prefix of its registry may be left out."""
    short = _short(name) if isinstance(name, str) else str(name)
    ours = "linear, conv, fpn"
    if importlib.util.find_spec("terratorch") is None:
        if short in KINDS or short.startswith("smp_"):
            raise MissingLibraryError(
                f"decoder={name!r} is TerraTorch's, which is not installed",
                f"pip install 'nec[terratorch]', or use one of {ours}",
            )
        raise HeadError(
            f"decoder={name!r} is unknown",
            f"use one of {ours}, or with pip install 'nec[terratorch]' a decoder of TerraTorch: "
            + ", ".join(KINDS),
        )
    from nec.encoders.terratorch_backbones import import_terratorch

    registry = import_terratorch("registry").DECODER_REGISTRY
    known = sorted({_short(known) for known in registry} - set(_NO_DECODERS))
    if short not in known:
        raise HeadError(
            f"decoder={name!r} is unknown", f"use one of {ours}, or TerraTorch's {', '.join(known)}"
        )
    return short


def _class_of(short: str) -> Any:
    from nec.encoders.terratorch_backbones import import_terratorch

    return import_terratorch("registry").DECODER_REGISTRY.find_class(short)


def _feeding(short: str) -> Feeding:
    if short in KINDS:
        return KINDS[short]
    whole = getattr(_class_of(short), "includes_head", False)
    return Feeding(settled=(("num_classes", "classes"),) if whole else ())


def _gives_logits(short: str) -> bool:
    return "num_classes" in dict(_feeding(short).settled)


def _options(short: str) -> tuple[dict[str, inspect.Parameter], tuple[str, ...]]:
    """Return the options of a decoder, and those of the head that follows it."""
    feeding = _feeding(short)
    parameters = dict(inspect.signature(_class_of(short)).parameters)
    if short.startswith("smp_"):
        parameters = {k: p for k, p in parameters.items() if not k.startswith(_SMP_OWN)}
    elif feeding.listed:
        parameters.pop(next(iter(parameters)))
    settled = dict(feeding.settled)
    own = {
        key: parameter
        for key, parameter in parameters.items()
        if key not in settled and parameter.kind is not parameter.VAR_KEYWORD
    }
    of_head = () if _gives_logits(short) else (f"{HEAD}channel_list", f"{HEAD}dropout")
    return own, of_head


def _defaults(short: str, own: dict[str, inspect.Parameter], size: Size) -> dict[str, Any]:
    """Return options that follow from the size where they are not given."""
    width = size.width
    found: dict[str, Any] = {
        "channels": [8 * width, 4 * width, 2 * width, width] if short == "UNetDecoder" else width,
        "num_convs": max(1, math.ceil(math.log2(size.scale))),
        "upsampling_size": size.scale,
    }
    if "decoder_channels" in own:  # a number, or one for each step up
        single = isinstance(own["decoder_channels"].default, int)
        found["decoder_channels"] = width if single else (4 * width, 2 * width, width)
    return {key: value for key, value in found.items() if key in own}
