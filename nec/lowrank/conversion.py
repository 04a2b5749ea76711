"""Dense layers of a model into low-rank ones, back, and into plain factors for deployment."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from nec.errors import LowRankError
from nec.lowrank.bases import Rank
from nec.lowrank.layers import LowRankConv2d, LowRankLayer, LowRankLinear

# What the name of a low-rank layer's core ends in.
_CORE = ".core"
# Glob patterns of dotted layer names, or a predicate of name and layer.
Selection = str | Sequence[str] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class ConvertedLayer:
    """One layer that `convert` replaced.

    Attributes
    ----------
    name : str
        Dotted name in the model.
    shape : tuple of int
        Of the dense weight.
    ranks : tuple of int
        Output and input rank.
    error : float
        ‖W - W_low‖_F / ‖W‖_F.
    """

    name: str
    shape: tuple[int, ...]
    ranks: tuple[int, int]
    error: float


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes
    ----------
    layers : tuple of ConvertedLayer
        In the model's order.
    skipped : dict of str
        Why a linear or convolutional layer stayed dense, by name.
    """

    layers: tuple[ConvertedLayer, ...]
    skipped: dict[str, str]

    def __str__(self) -> str:
        """Return one line a layer."""
        lines = [
            f"{layer.name}: {'x'.join(map(str, layer.shape))}, "
            f"rank {'x'.join(map(str, layer.ranks))}, error {layer.error:.3f}"
            for layer in self.layers
        ]
        return "\n".join(lines + [f"{name}: dense, {why}" for name, why in self.skipped.items()])


def convert(
    model: nn.Module,
    *,
    rank: Rank,
    include: Selection | None = None,
    exclude: Selection | None = None,
    minimum: int = 16,
    keep_norm: bool = False,
) -> Conversion:
    """Replace linear and convolutional layers of a model by low-rank ones, in place.

    Build the optimiser afterwards: the parameters are new. Layers of `nn.Linear` and
    `nn.Conv2d` themselves are replaced, subclasses are not, because other modules may read
    their weights.

    Parameters
    ----------
    model : nn.Module
        Modified. A layer used in several places stays shared.
    rank : int or float
        Initial rank, or fraction in (0, 1] of each layer's full rank (1 is rank one, 1.0 full).
    include, exclude : str, sequence of str, or callable, optional
        Layers to take and to leave: glob patterns of dotted names, or a predicate of name and
        layer.
    minimum : int
        Layers with fewer input or output channels stay dense.
    keep_norm : bool
        Scale each core to the Frobenius norm of the dense weight: for training from scratch,
        where an initialisation loses most of its norm with its rank.

    Returns
    -------
    Conversion

    Raises
    ------
    LowRankError
        If the model is itself a layer, a pattern matches nothing, or nothing is converted.
    """
    if isinstance(model, nn.Linear | nn.Conv2d):
        raise LowRankError(
            f"the model is itself a {type(model).__name__}, which cannot be replaced in place",
            "wrap it in nn.Sequential",
        )
    candidates: dict[str, nn.Module] = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    wanted = _chosen(candidates, include, "include") if include is not None else set(candidates)
    unwanted = _chosen(candidates, exclude, "exclude") if exclude is not None else set()
    owners = _owners(model)
    new: dict[nn.Module, nn.Module] = {}
    converted: list[ConvertedLayer] = []
    skipped: dict[str, str] = {}
    for name, layer in candidates.items():
        if name not in wanted or name in unwanted:
            skipped[name] = "not chosen"
        elif reason := _obstacle(layer, minimum, owners):
            skipped[name] = reason
        else:
            low, record = _converted(name, layer, rank, keep_norm)
            new[layer] = low
            converted.append(record)
    if not converted:
        raise LowRankError(
            f"no layer was converted ({_listed(skipped) or 'the model has none'})",
            "widen include=, lower minimum=",
        )
    _replace(model, new)
    return Conversion(tuple(converted), skipped)


def merge(model: nn.Module) -> nn.Module:
    """Replace low-rank layers by dense ones of the same weight, in place.

    The products are formed in float64 and rounded once to the layer's type.

    Returns
    -------
    nn.Module
        The model itself; only where it is a low-rank layer, a new one.

    Raises
    ------
    LowRankError
        If the model has no low-rank layer.
    """
    if isinstance(model, LowRankLayer):
        return model.dense()
    _replace(model, {layer: layer.dense() for layer in lowrank_layers(model).values()})
    return model


def deploy(model: nn.Module, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Replace low-rank layers by plain factors for inference, in place.

    A linear layer becomes `nn.Sequential` of two, Vᵀ and U S; a convolution one, two or three
    convolutions. Whatever has the fewest weights is taken, the dense layer included. Products
    are formed in float64 before they are rounded. In torch's own `nn.TransformerEncoderLayer`,
    which reads the weights of its linear layers when it infers, these become dense ones.

    Parameters
    ----------
    model : nn.Module
        Modified; put into evaluation mode.
    dtype : torch.dtype, optional
        Type of the whole model afterwards, such as `torch.bfloat16`.

    Returns
    -------
    nn.Module
        The model itself; only where it is a low-rank layer, a new one.

    Raises
    ------
    LowRankError
        If the model has no low-rank layer.
    """
    if isinstance(model, LowRankLayer):
        model = model.factored()
    else:
        readers = [m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer)]
        read = {id(child) for reader in readers for child in reader.children()}
        _replace(
            model,
            {
                layer: layer.dense() if id(layer) in read else layer.factored()
                for layer in lowrank_layers(model).values()
            },
        )
    return model.to(dtype=dtype).eval() if dtype is not None else model.eval()


def load_lowrank(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load weights of which some layers are low-rank into a freshly made dense model, in place.

    Parameters
    ----------
    model : nn.Module
        The dense architecture; the layers that `state` has a core of are converted, whatever
        their ranks.
    state : mapping of str to Tensor
        `state_dict` of a converted model, or of a dense one.

    Returns
    -------
    nn.Module
        The model itself.

    Raises
    ------
    RuntimeError
        If the weights do not fit, as `load_state_dict` does.
    """
    names = [key.removesuffix(_CORE) for key in state if key.endswith(_CORE)]
    if names:
        dense = dict(model.named_modules())
        # Ranks come with the weights, and what may be converted was decided when they were.
        _replace(
            model,
            {
                dense[name]: _lowrank(dense[name], None)
                for name in names
                if isinstance(dense.get(name), nn.Linear | nn.Conv2d)
            },
        )
    model.load_state_dict(state)
    return model


def is_lowrank(model: nn.Module) -> bool:
    """Say whether any layer of a model is low-rank."""
    return any(isinstance(module, LowRankLayer) for module in model.modules())


def lowrank_layers(model: nn.Module) -> dict[str, LowRankLayer]:
    """Return the low-rank layers of a model by dotted name, each once.

    Raises
    ------
    LowRankError
        If it has none.
    """
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, LowRankLayer)
    }
    if not layers:
        raise LowRankError(
            f"{type(model).__name__} has no low-rank layer", "call nec.lowrank.convert(model) first"
        )
    return layers


def _chosen(candidates: dict[str, nn.Module], selection: Selection, role: str) -> set[str]:
    if callable(selection):
        return {name for name, layer in candidates.items() if selection(name, layer)}
    patterns = [selection] if isinstance(selection, str) else list(selection)
    chosen: set[str] = set()
    for pattern in patterns:
        matching = {name for name in candidates if fnmatchcase(name, pattern)}
        if not matching:
            raise LowRankError(
                f"{role}={pattern!r} matches no layer", f"layers are {_listed(candidates)}"
            )
        chosen |= matching
    return chosen


def _owners(model: nn.Module) -> dict[int, int]:
    """Count the modules that hold each parameter."""
    count: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            count[id(parameter)] = count.get(id(parameter), 0) + 1
    return count


def _obstacle(layer: nn.Module, minimum: int, owners: dict[int, int]) -> str:
    """Say why a layer cannot be converted; empty where it can."""
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"a {type(layer).__name__}, whose weight other code may read"
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        return f"{layer.groups} groups"
    if min(layer.weight.shape[:2]) < minimum:
        return f"fewer than {minimum} channels"
    return _obstacle_of_weight(layer, owners)


def _obstacle_of_weight(layer: nn.Module, owners: dict[int, int]) -> str:
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is made by a hook, such as spectral_norm's"
    if owners[id(weight)] > 1:
        return "its weight is shared with another module"
    if not weight.isfinite().all():
        return "its weight is not finite"
    if not weight.any():
        return "its weight is zero, so no gradient would reach the bases"
    return ""


def _lowrank(layer: nn.Module, rank: Rank | None) -> LowRankLayer:
    if isinstance(layer, nn.Conv2d):
        return LowRankConv2d.of(layer, rank).train(layer.training)
    assert isinstance(layer, nn.Linear)
    return LowRankLinear.of(layer, rank).train(layer.training)


def _converted(
    name: str, layer: nn.Module, rank: Rank, keep_norm: bool
) -> tuple[LowRankLayer, ConvertedLayer]:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    low = _lowrank(layer, rank)
    with torch.no_grad():
        dense = layer.weight
        if keep_norm:
            low.core.mul_(dense.norm() / low.core.norm())
        error = float((low.weight - dense).norm() / dense.norm())
    return low, ConvertedLayer(name, low.shape, low.ranks, error)


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    for parent, name, child in list(_children(model)):
        if child in new:
            setattr(parent, name, new[child])


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        # named_children names a module that a parent holds twice only once.
        for name, child in parent._modules.items():
            if child is not None:
                yield parent, name, child


def _listed(names: dict[str, str] | dict[str, nn.Module]) -> str:
    shown = [f"{name} ({why})" if isinstance(why, str) else name for name, why in names.items()]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
