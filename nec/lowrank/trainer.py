"""Rank-adaptive training of low-rank layers, one closure a step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nec.errors import LowRankError
from nec.lowrank.bases import BasisChange, Rank, resolve_rank
from nec.lowrank.conversion import lowrank_layers
from nec.lowrank.layers import LowRankLayer
from nec.lowrank.regulariser import penalty

# State of an optimiser that is linear in past gradients, and that which is quadratic.
_LINEAR = {"exp_avg", "momentum_buffer"}
_QUADRATIC = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}


class LowRankTrainer:
    """Train a converted model by cycles of augmentation, steps on the cores, and truncation.

    This is Algorithm 1 of [1]_ spread over mini-batches: the first batch of a cycle gives the
    gradients that widen the bases, then each batch, the first included, is one step of the
    optimiser on the augmented cores and on all else that the model trains, with the loss
    plus beta R(S) summed over layers; after `core_steps` of them singular values are cut.
    In a step the bases have no gradient; biases have theirs as everywhere.

    Parameters
    ----------
    model : nn.Module
        After `convert`. Layers whose cores require no gradient stay as they are.
    optimizer : Optimizer
        Over `model.parameters()`: AdamW, Adam, SGD, RMSprop, Adagrad or another of torch's with
        the same state. Its state follows the cores into new bases. Weight decay acts on the
        cores, which is decay of the weights themselves, and never on the bases.
    tau : float
        Truncation: the norm of the singular values that go is at most tau ‖S‖_F.
    beta : float
        Weight of the spectral penalty; 0 switches it off.
    core_steps : int
        Steps between augmentations, s* in [1]_.
    min_rank : int
        Ranks stay at or above this.
    max_rank : int or float, optional
        Ranks, after truncation, stay at or below this number or fraction of the full rank.
    max_norm : float, optional
        Clip the norm of the gradient of all that is stepped.

    Attributes
    ----------
    adaptive : bool
        Set it to False and the next steps keep bases and ranks: [1]_ ends its training so. A
        cycle that has begun is finished first.
    penalty : float
        R summed over layers, of the last step; 0 where beta is.

    Raises
    ------
    LowRankError
        If the model has no low-rank layer that trains, a core is not among the optimiser's
        parameters, or a value is out of range.

    Notes
    -----
    Autocast may enclose the closure's forward pass or the whole step; decompositions and the
    penalty run in float32. Gradient scaling for float16 is not supported: take bfloat16.

    Adam moves every entry by about the learning rate, so a weight by that times the root of its
    number of entries, and a core has few: it wants a larger rate than the dense layer had, up
    to √(out · in) / (2 rank) times, as a parameter group of `lowrank_layers(model)`' cores or
    for all. Where a rate is too small, what a cycle adds stays below `tau` and is cut off again.

    References
    ----------
    .. [1] Schotthöfer, Yang and Schnake, Dynamical Low-Rank Compression of Neural Networks with
       Robustness under Adversarial Attacks, arXiv 2505.08022.

    Examples
    --------
    >>> convert(model, rank=0.25)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> trainer = LowRankTrainer(model, optimizer, tau=0.1, beta=0.05)
    >>> for x, y in loader:
    ...     loss = trainer.step(lambda: F.cross_entropy(model(x), y))
    >>> trainer.truncate()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        tau: float = 0.1,
        beta: float = 0.0,
        core_steps: int = 10,
        min_rank: int = 1,
        max_rank: Rank | None = None,
        max_norm: float | None = None,
    ) -> None:
        for name, value, valid, remedy in (
            ("tau", tau, 0 <= tau < 1, "choose it from [0, 1)"),
            ("beta", beta, beta >= 0, "choose it from 0"),
            (
                *("core_steps", core_steps),
                *(isinstance(core_steps, int) and core_steps >= 1, "choose an int from 1"),
            ),
            (
                *("min_rank", min_rank),
                *(isinstance(min_rank, int) and min_rank >= 1, "choose an int from 1"),
            ),
            (
                *("max_norm", max_norm),
                *(max_norm is None or max_norm > 0, "choose it above 0, or leave it out"),
            ),
        ):
            if not valid:
                raise LowRankError(f"{name} is {value}", remedy)
        if max_rank is not None:
            resolve_rank(max_rank, 1)
        self.model, self.optimizer = model, optimizer
        self.tau, self.beta, self.core_steps = tau, beta, core_steps
        self.min_rank, self.max_rank, self.max_norm = min_rank, max_rank, max_norm
        self.adaptive = True
        self.penalty = 0.0
        self._layers = {
            name: layer for name, layer in lowrank_layers(model).items() if layer.core.requires_grad
        }
        if not self._layers:
            raise LowRankError(
                "all low-rank layers are frozen", "set requires_grad of the cores that are to train"
            )
        self._position = 0
        # Layers that this cycle has widened: others have nothing to give back.
        self._widened = set(self._layers)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, layer in self._layers.items():
            low, high = (min(layer.rank_caps(cap)) for cap in (max_rank, None))
            if low < min(min_rank, high):
                raise LowRankError(
                    f"min_rank {min_rank} is above max_rank {max_rank}, {low} of layer {name!r}",
                    "lower it",
                )
            if id(layer.core) not in known:
                raise LowRankError(
                    f"the core of layer {name!r} is not among the optimiser's parameters",
                    "build the optimiser over model.parameters() after convert(); where the layer "
                    "is not to train, set its core's requires_grad to False",
                )
        self._require_basis_gradients(False)

    @property
    def ranks(self) -> dict[str, tuple[int, int]]:
        """Output and input rank of each layer by name, as they stand."""
        return {name: layer.ranks for name, layer in self._layers.items()}

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Take one optimiser step, with augmentation before it or truncation after it when due.

        Parameters
        ----------
        closure : callable
            Returns the loss of a mini-batch, a scalar with its graph; it neither clears
            gradients nor calls backward. On the first batch of a cycle it is called twice, and
            cores have another shape the second time: detach what it keeps of the first.

        Returns
        -------
        Tensor
            The loss, detached, without the penalty.

        Raises
        ------
        LowRankError
            If the optimiser's state does not fit the cores, or a core is not finite at
            truncation.
        """
        self._check_state()
        cycling = self._position > 0 or self.adaptive
        with torch.enable_grad():
            if cycling and self._position == 0:
                self._augment(closure)
            loss = self._core_step(closure)
        if cycling:
            self._position += 1
            if self._position == self.core_steps:
                self.truncate()
        return loss

    def truncate(self) -> None:
        """End the cycle now: cut singular values and let the next step augment.

        Call it before evaluating or saving a model whose last cycle may not be complete. After
        a complete cycle it does nothing.

        Raises
        ------
        LowRankError
            If a core is not finite.
        """
        if self._position == 0:
            return
        for name, layer in self._layers.items():
            if not torch.isfinite(layer.core).all():
                raise LowRankError(
                    f"the core of layer {name!r} is not finite", "lower the learning rate or beta"
                )
        for name in self._widened:
            layer = self._layers[name]
            before = layer.core.shape
            change = layer.truncate(self.tau, min_rank=self.min_rank, max_rank=self.max_rank)
            self._carry(layer, change, before)
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state, the place in the cycle, and whether cycles go on.

        The model saves itself.
        """
        return {
            "optimizer": self.optimizer.state_dict(),
            "position": self._position,
            "widened": sorted(self._widened),
            "adaptive": self.adaptive,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; load the model first.

        Raises
        ------
        LowRankError
            If the state does not fit the cores of the model.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        self._position = int(state["position"])
        # Checkpoints of earlier releases do not say.
        self.adaptive = bool(state.get("adaptive", self.adaptive))
        self._widened = set(state.get("widened", self._layers))
        self._check_state()

    def _augment(self, closure: Callable[[], Tensor]) -> None:
        # This pass is no step: what is stepped elsewhere keeps the gradients that it has.
        stepped = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        kept = [(p, p.grad) for p in self.model.parameters() if id(p) not in stepped]
        for parameter, _ in kept:
            parameter.grad = None
        self._require_basis_gradients(True)
        try:
            # Backward and not autograd.grad, which reentrant checkpointing does not allow.
            closure().backward()
        finally:
            self._require_basis_gradients(False)
        self._widened = set()
        for name, layer in self._layers.items():
            output, inputs = layer.output_basis.grad, layer.input_basis.grad
            if output is not None and inputs is not None:
                before = layer.core.shape
                self._carry(layer, layer.augment(output, inputs), before)
                self._widened.add(name)
        for parameter, gradient in kept:
            parameter.grad = gradient
        self._clear_gradients()

    def _core_step(self, closure: Callable[[], Tensor]) -> Tensor:
        self._clear_gradients()
        # Whatever unfroze the model meanwhile: bases are not stepped.
        self._require_basis_gradients(False)
        loss = closure()
        total = loss
        if self.beta > 0:
            value = penalty(self.model)
            total = loss + self.beta * value
            self.penalty = float(value.detach())
        total.backward()
        if self.max_norm is not None:
            stepped = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(stepped, self.max_norm)
        self.optimizer.step()
        # Under an enclosing autocast region the next forward pass would meet the old weights.
        torch.clear_autocast_cache()
        return loss.detach()

    def _require_basis_gradients(self, required: bool) -> None:
        for layer in self._layers.values():
            layer.output_basis.requires_grad_(required)
            layer.input_basis.requires_grad_(required)

    def _clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        # An optimiser leaves what has no gradient alone: no step and no decay of the bases.
        for layer in self._layers.values():
            layer.output_basis.grad = layer.input_basis.grad = None

    def _carry(self, layer: LowRankLayer, change: BasisChange, before: torch.Size) -> None:
        state = self.optimizer.state.get(layer.core, {})
        for key, value in state.items():
            if not torch.is_tensor(value) or value.shape != before:
                continue
            if key in _LINEAR:
                state[key] = change.of(value).contiguous()
            elif key in _QUADRATIC:
                state[key] = change.of_squares(value).contiguous()
            else:
                raise LowRankError(
                    f"state {key!r} of {type(self.optimizer).__name__} cannot follow a core into "
                    "new bases",
                    "take AdamW, Adam, SGD, plain RMSprop or Adagrad",
                )

    def _check_state(self) -> None:
        for name, layer in self._layers.items():
            for key, value in self.optimizer.state.get(layer.core, {}).items():
                if not torch.is_tensor(value) or value.ndim == 0:
                    continue
                if value.shape != layer.core.shape:
                    raise LowRankError(
                        f"{key!r} of layer {name!r} has shape {tuple(value.shape)} and its core "
                        f"{tuple(layer.core.shape)}",
                        "load the model and the trainer's state of one checkpoint",
                    )
