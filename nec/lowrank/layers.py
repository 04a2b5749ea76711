"""Linear and convolutional layers whose weight is a small core between orthonormal bases.

A matrix is W = U S Vᵀ, a convolution a Tucker tensor on its two channel modes,
W = C ×₀ U ×₁ V, whose spatial modes stay whole. The bases U and V are parameters without
gradient, so that no optimiser steps or decays them; they move by `augment` and `truncate` [1]_,
which keep each parameter object and change its shape.

References
----------
.. [1] Schotthöfer, Yang and Schnake, Dynamical Low-Rank Compression of Neural Networks with
   Robustness under Adversarial Attacks, arXiv 2505.08022, Algorithm 1; after Ceruti, Kusch and
   Lubich, A rank-adaptive robust integrator for dynamical low-rank approximation, BIT 2022.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nec.errors import LowRankError
from nec.lowrank.bases import (
    BasisChange,
    Rank,
    contract,
    rank_within,
    resolve_rank,
    unfold,
    widened_basis,
    working_dtype,
)

Dense = TypeVar("Dense", nn.Linear, nn.Conv2d)
# Of the norm of a matrix that is kept in fewer bits than it is decomposed in, what the singular
# values that it does not have come to by rounding, in its unit roundoff; about 0.2 in bfloat16.
STORED = 0.25


class LowRankLayer(nn.Module, ABC):
    """What linear and convolutional low-rank layers share.

    Parameters
    ----------
    weight : Tensor of shape (out, in) or (out, in, y, x)
        Dense weight to approximate.
    bias : Tensor of shape (out,) or None
        Like the weight, trainable where it is handed over as such.
    rank : int, float or None
        Rank, or fraction of the full rank, of each channel mode. Where the weight has less,
        the layer has what the weight has. None: the weight itself between unit bases, for
        weights that are loaded into it.

    Attributes
    ----------
    output_basis : Parameter of shape (out, output rank)
    core : Parameter of shape (output rank, input rank) or (output rank, input rank, y, x)
    input_basis : Parameter of shape (in, input rank)
    bias : Parameter of shape (out,) or None
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rank: Rank | None) -> None:
        super().__init__()
        trainable, weight = weight.requires_grad, weight.detach()
        self.shape = tuple(weight.shape)
        out, inputs = self.shape[:2]
        eye = torch.eye(max(out, inputs), dtype=weight.dtype, device=weight.device)
        self.output_basis = nn.Parameter(eye[:out, :out].clone(), requires_grad=False)
        self.core = nn.Parameter(weight.clone(), requires_grad=trainable)
        self.input_basis = nn.Parameter(eye[:inputs, :inputs].clone(), requires_grad=False)
        self.bias: nn.Parameter | None = None
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        if rank is not None:
            self.truncate(0.0, max_rank=rank)

    @property
    def ranks(self) -> tuple[int, int]:
        """Rank of the output and of the input mode; equal in a truncated matrix."""
        return self.core.shape[0], self.core.shape[1]

    @property
    def weight(self) -> Tensor:
        """The dense weight, shape (out, in) or (out, in, y, x), differentiable."""
        return BasisChange(self.output_basis, self.input_basis).of(self.core)

    @property
    def is_matrix(self) -> bool:
        """Whether one singular value decomposition serves both modes: no spatial extent."""
        return self.core.shape[2:].numel() == 1

    @torch.no_grad()
    def augment(self, output_direction: Tensor, input_direction: Tensor) -> BasisChange:
        """Widen the bases by directions; the weight stays what it is.

        Parameters
        ----------
        output_direction : Tensor of shape (out, output rank)
            As [1]_ has it, the loss's gradient to the output basis. With a diagonal core, as
            `truncate` leaves it in a matrix, its columns are those of the gradient to K = U S.
        input_direction : Tensor of shape (in, input rank)
            Gradient to the input basis.

        Returns
        -------
        BasisChange
            For what else lives in the core's coordinates, such as an optimiser's state.
        """
        with torch.autocast(self.core.device.type, enabled=False):
            output, to_output = widened_basis(self.output_basis, output_direction)
            inputs, to_input = widened_basis(self.input_basis, input_direction)
            change = BasisChange(to_output, to_input)
            self._replace(output, change.of(self.core.to(to_output.dtype)), inputs)
        return change

    @torch.no_grad()
    def truncate(
        self, tau: float, *, min_rank: int = 1, max_rank: Rank | None = None
    ) -> BasisChange:
        """Cut singular values off the core while their norm is at most tau ‖core‖_F.

        A matrix is cut once. A convolution's core is cut in its output mode and then in its
        input mode, each by `tau` as in [1]_, so that the weight changes by at most √2 tau.

        Parameters
        ----------
        tau : float
            Relative norm of what goes; what is zero but for rounding goes in any case.
        min_rank : int
            Keep at least this many, where the core has them.
        max_rank : int or float, optional
            Keep at most this many, or this fraction of the full rank, whatever `tau` says.

        Returns
        -------
        BasisChange
        """
        with torch.autocast(self.core.device.type, enabled=False):
            core = self.core.to(working_dtype(self.core))
            norm = float(core.norm())
            rounding = torch.finfo(core.dtype).eps * max(core.shape[:2]) * norm
            if self.core.dtype != core.dtype:
                rounding += STORED * torch.finfo(self.core.dtype).eps * norm
            caps = self.rank_caps(max_rank)
            turns = [torch.eye(size, dtype=core.dtype, device=core.device) for size in self.ranks]
            # The last pass of a convolution drops what the cut in the other mode left empty.
            passes = ((0, tau), (1, 0.0)) if self.is_matrix else ((0, tau), (1, tau), (0, 0.0))
            for mode, tolerance in passes:
                left, values, _ = torch.linalg.svd(unfold(core, mode), full_matrices=False)
                rank = rank_within(values, max(tolerance * norm, rounding))
                rank = min(max(rank, min_rank), caps[mode], len(values))
                if self.is_matrix and mode == 1:
                    rank = core.shape[0]
                turn = left[:, :rank].T
                core = contract(core, turn, mode)
                turns[mode] = turn @ turns[mode]
            output = self.output_basis.to(core.dtype) @ turns[0].T
            inputs = self.input_basis.to(core.dtype) @ turns[1].T
            self._replace(output, core, inputs)
        return BasisChange(*turns)

    @torch.no_grad()
    def orthonormalise(self) -> None:
        """Make bases that were trained as plain matrices orthonormal again; the weight stays.

        What of them is not orthonormal goes into the core (U = Q R; C becomes R_U C R_Vᵀ).
        """
        with torch.autocast(self.core.device.type, enabled=False):
            wide = working_dtype(self.core)
            output, left = torch.linalg.qr(self.output_basis.to(wide))
            inputs, right = torch.linalg.qr(self.input_basis.to(wide))
            self._replace(output, BasisChange(left, right).of(self.core.to(wide)), inputs)

    @abstractmethod
    def dense(self) -> nn.Module:
        """Return the plain layer of the same weight."""

    @abstractmethod
    def factored(self) -> nn.Module:
        """Return plain layers in sequence, of the fewest weights, that do the same."""

    def rank_caps(self, max_rank: Rank | None) -> tuple[int, int]:
        """Return the highest rank of the output and of the input mode: full, or as given."""
        out, inputs = self.shape[:2]
        area = self.core.shape[2:].numel()
        full = (min(out, inputs * area), min(inputs, out * area))
        if max_rank is None:
            return full
        return resolve_rank(max_rank, full[0]), resolve_rank(max_rank, full[1])

    def _replace(self, output: Tensor, core: Tensor, inputs: Tensor) -> None:
        # The parameter objects stay, because optimisers refer to them.
        for parameter, value in (
            (self.output_basis, output),
            (self.core, core),
            (self.input_basis, inputs),
        ):
            parameter.data = value.to(parameter.dtype).contiguous()
            parameter.grad = None
        # An enclosing autocast region would go on with the copy of the old core.
        torch.clear_autocast_cache()

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.float64
        return (
            self.output_basis.detach().to(wide),
            self.core.detach().to(wide),
            self.input_basis.detach().to(wide),
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        names = ("output_basis", "core", "input_basis")
        stored = [state_dict.get(prefix + name) for name in names]
        if all(torch.is_tensor(value) for value in stored):
            output, core, inputs = (value for value in stored if value is not None)
            fits = (
                (output.shape[0], inputs.shape[0], *core.shape[2:]) == self.shape
                and core.ndim == self.core.ndim
                and (output.shape[1], inputs.shape[1]) == tuple(core.shape[:2])
            )
            # Where it does not fit, torch says what differs.
            if fits and core.shape != self.core.shape:
                self._replace(
                    *(self.core.new_empty(value.shape) for value in (output, core, inputs))
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Say shape and ranks where the module is printed."""
        return f"shape={self.shape}, ranks={self.ranks}, bias={self.bias is not None}"


class LowRankLinear(LowRankLayer):
    """`nn.Linear` with weight U S Vᵀ; see `LowRankLayer`."""

    @classmethod
    def of(cls, layer: nn.Linear, rank: Rank | None) -> Self:
        """Approximate a dense layer by its leading singular vectors."""
        return cls(layer.weight, layer.bias, rank)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        x = F.linear(F.linear(x, self.input_basis.T), self.core)
        return F.linear(x, self.output_basis, self.bias)

    def dense(self) -> nn.Linear:
        """Return an `nn.Linear` of the same weight."""
        output, core, inputs = self._factors()
        return self._linear(output @ core @ inputs.T, self.bias)

    def factored(self) -> nn.Module:
        """Return (U S) Vᵀ as two linear layers, or one where that is less."""
        output, core, inputs = self._factors()
        out, features = self.shape
        if min(self.ranks) * (out + features) >= out * features:
            return self.dense()
        if core.shape[0] < core.shape[1]:
            inputs = inputs @ core.T
        else:
            output = output @ core
        return nn.Sequential(self._linear(inputs.T, None), self._linear(output, self.bias))

    def _linear(self, weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
        out, features = weight.shape
        layer = nn.Linear(features, out, bias=bias is not None, device="meta")
        return _filled(layer, weight, bias, self.core).train(self.training)


class LowRankConv2d(LowRankLayer):
    """`nn.Conv2d` with a Tucker kernel: 1 × 1 into the input basis, core, 1 × 1 out of it.

    Parameters
    ----------
    weight, bias, rank
        As of `LowRankLayer`.
    stride, padding, dilation, padding_mode
        As of `nn.Conv2d`; the core has them all.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        rank: Rank | None,
        *,
        stride: tuple[int, ...] = (1, 1),
        padding: str | tuple[int, ...] = (0, 0),
        dilation: tuple[int, ...] = (1, 1),
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(weight, bias, rank)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.padding_mode = padding_mode

    @classmethod
    def of(cls, layer: nn.Conv2d, rank: Rank | None) -> Self:
        """Approximate a dense layer by higher-order SVD of its channel modes.

        Raises
        ------
        LowRankError
            If the convolution is grouped.
        """
        if layer.groups != 1:
            raise LowRankError(
                f"convolution has {layer.groups} groups, which share no channel basis",
                "leave it dense",
            )
        return cls(
            layer.weight,
            layer.bias,
            rank,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            padding_mode=layer.padding_mode,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in, y, x) to (n, out, y', x')."""
        x = F.conv2d(x, self.input_basis.T[:, :, None, None])
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, list(self._edges()), mode=self.padding_mode), (0, 0)
        x = F.conv2d(x, self.core, None, self.stride, padding, self.dilation)
        return F.conv2d(x, self.output_basis[:, :, None, None], self.bias)

    def dense(self) -> nn.Conv2d:
        """Return an `nn.Conv2d` of the same weight."""
        output, core, inputs = self._factors()
        return self._spatial(BasisChange(output, inputs).of(core), self.bias)

    def factored(self) -> nn.Module:
        """Return one to three convolutions: whatever of the bases is folded into the core."""
        output, core, inputs = self._factors()
        into, out_of = _pointwise(inputs.T), _pointwise(output)
        left, right = contract(core, output, 0), contract(core, inputs, 1)
        choices: tuple[tuple[Tensor, ...], ...] = (
            (contract(left, inputs, 1),),
            (into, left),
            (right, out_of),
            (into, core, out_of),
        )
        kernels = min(choices, key=lambda choice: sum(kernel.numel() for kernel in choice))
        spatial = 1 if kernels[0] is into else 0
        layers = []
        for i, kernel in enumerate(kernels):
            bias = self.bias if i == len(kernels) - 1 else None
            layers.append(
                self._spatial(kernel, bias) if i == spatial else self._plain(kernel, bias)
            )
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def _spatial(self, kernel: Tensor, bias: nn.Parameter | None) -> nn.Conv2d:
        out, channels, *size = kernel.shape
        layer = nn.Conv2d(
            channels,
            out,
            (size[0], size[1]),
            stride=(self.stride[0], self.stride[1]),
            padding=self.padding if isinstance(self.padding, str) else _pair(self.padding),
            dilation=_pair(self.dilation),
            bias=bias is not None,
            padding_mode=self.padding_mode,  # type: ignore[arg-type]
            device="meta",
        )
        return _filled(layer, kernel, bias, self.core).train(self.training)

    def _plain(self, kernel: Tensor, bias: nn.Parameter | None) -> nn.Conv2d:
        out, channels = kernel.shape[:2]
        layer = nn.Conv2d(channels, out, 1, bias=bias is not None, device="meta")
        return _filled(layer, kernel, bias, self.core).train(self.training)

    def _edges(self) -> Iterator[int]:
        """Yield left, right, top, bottom, the order of `F.pad`."""
        for axis in (1, 0):
            if isinstance(self.padding, str):
                reach = self.dilation[axis] * (self.shape[2 + axis] - 1)
                total = reach if self.padding == "same" else 0
                yield total // 2
                yield total - total // 2
            else:
                yield self.padding[axis]
                yield self.padding[axis]


def _pointwise(matrix: Tensor) -> Tensor:
    return matrix[:, :, None, None]


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def _filled(layer: Dense, weight: Tensor, bias: nn.Parameter | None, like: nn.Parameter) -> Dense:
    """Give a dense layer its weights, trainable as those of the low-rank layer are."""
    weight = weight.to(like.dtype).contiguous()
    layer.weight = nn.Parameter(weight, requires_grad=like.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return layer
