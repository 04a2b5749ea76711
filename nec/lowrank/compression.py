"""What low rank saves: of the converted layers, of the whole model, and in arithmetic."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nec.lowrank.conversion import deploy, lowrank_layers, merge


@dataclass(frozen=True)
class Compression:
    """Weights and operations of a low-rank model and of its dense twin.

    Attributes
    ----------
    layer_parameters, dense_layer_parameters : int
        Of the converted layers, biases included.
    parameters, dense_parameters : int
        Of the whole model.
    operations, dense_operations : int or None
        Floating-point operations of a forward pass of the whole model: matrix products,
        attention and convolutions, a multiplication with its addition as two.
    """

    layer_parameters: int
    dense_layer_parameters: int
    parameters: int
    dense_parameters: int
    operations: int | None = None
    dense_operations: int | None = None

    @property
    def layers(self) -> float:
        """Fraction saved of the converted layers' parameters: the rate that papers report."""
        return 1 - self.layer_parameters / self.dense_layer_parameters

    @property
    def model(self) -> float:
        """Fraction saved of the whole model's parameters."""
        return 1 - self.parameters / self.dense_parameters

    @property
    def flops(self) -> float | None:
        """Fraction saved of the whole model's operations; None where no input was given."""
        if self.operations is None or not self.dense_operations:
            return None
        return 1 - self.operations / self.dense_operations

    def __str__(self) -> str:
        """Return the three rates."""
        flops = "not measured" if self.flops is None else f"{self.flops:.1%}"
        return f"saved: converted layers {self.layers:.1%}, model {self.model:.1%}, FLOPs {flops}"


def compression(model: nn.Module, *inputs: object, deployed: bool = False) -> Compression:
    """Measure how much smaller a converted model is than its dense twin.

    Parameters
    ----------
    model : nn.Module
        With low-rank layers; left as it is. Truncate first (`LowRankTrainer.truncate`): the
        augmented cores in the middle of a cycle are counted as they stand.
    *inputs
        Arguments of one forward pass; without them no operations are counted.
    deployed : bool
        Count what `deploy` makes of the model, two factors a matrix, and not U, S and V, which
        is what is trained, stored in checkpoints, and counted in papers.

    Returns
    -------
    Compression

    Raises
    ------
    LowRankError
        If the model has no low-rank layer.
    """
    names = list(lowrank_layers(model))
    small = deploy(copy.deepcopy(model)) if deployed else copy.deepcopy(model).eval()
    dense = merge(copy.deepcopy(model)).eval()
    return Compression(
        sum(_parameters(small.get_submodule(name)) for name in names),
        sum(_parameters(dense.get_submodule(name)) for name in names),
        _parameters(small),
        _parameters(dense),
        _operations(small, inputs) if inputs else None,
        _operations(dense, inputs) if inputs else None,
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _operations(model: nn.Module, inputs: tuple[object, ...]) -> int:
    counter = FlopCounterMode(display=False)
    # The counter knows nothing of the CPU's fused attention; plain products it counts.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*inputs)
    return int(counter.get_total_flops())
