"""A course of training: steps, learning rate, running average, checkpoints; dense or low-rank."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nec.lowrank import LowRankTrainer

# Share of the steps at the end in which the rate falls, and ranks and bases stay.
SETTLED = 1 / 3
WARM_UP = 100
# Weight of the past in the running average of the network's weights.
AVERAGE = 0.995
LARGEST_GRADIENT = 1.0
SHOWN, KEPT = 20, 100

Losses = dict[str, Tensor]


def learning_rate(step: int, steps: int, cooldown: int) -> float:
    """Fraction of the peak: linear warm-up, constant, linear to zero in the last steps."""
    warm_up = max(1, min(WARM_UP, steps // 3))
    return min(1.0, (step + 1) / warm_up, (steps - step) / max(cooldown, 1))


def settled_step(steps: int, cooldown: int | None) -> int:
    """Return the step from which the rate falls, and ranks and bases stay."""
    return round((1 - SETTLED) * steps) if cooldown is None else steps - cooldown


def _unending(stage: dict[str, str]) -> dict[str, str]:
    """Return what of a call's arguments its steps before the cooldown hang on."""
    return {k: v for k, v in stage.items() if k not in ("steps", "cooldown", "run", "plot")}


@dataclass
class Course:
    """An objective in training, and how far it is; it resumes where a checkpoint was taken.

    Attributes
    ----------
    objective : nn.Module
        With the network that is wanted as `network`.
    optimizers : list of Optimizer
        Each group has its highest rate as `peak`.
    cooldown : int, optional
        Last steps, in which the rate falls; a third of all by default.
    trainer : LowRankTrainer, optional
        Of a low-rank network whose bases move; around the only optimiser.
    average : AveragedModel, optional
        Running average of the network: from the first step, or, where ranks change, from where
        they stay.
    stages : list of dict
        Arguments of the calls so far: one that goes on may have others.
    """

    objective: nn.Module
    optimizers: list[torch.optim.Optimizer]
    steps: int
    trainer: LowRankTrainer | None = None
    cooldown: int | None = None
    average: AveragedModel | None = None
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    cpu_hours: float = 0.0
    stages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.trainer is None:
            self._begin_average()

    @property
    def settled(self) -> int:
        """The step from which the rate falls, and ranks and bases stay."""
        return settled_step(self.steps, self.cooldown)

    def _begin_average(self) -> None:
        self.average = AveragedModel(
            self.objective.network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE)
        )

    def take_step(self, losses: Callable[[], Losses], *, heads_only: bool = False) -> None:
        """Take the next step.

        Parameters
        ----------
        losses : callable
            Returns the losses of the step's batch, the sum as `loss`; may be called twice.
        heads_only : bool
            The network stays as it is; what the objective has beside it learns.
        """
        rate = learning_rate(self.step, self.steps, self.steps - self.settled)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        seen: Losses = {}

        def closure() -> Tensor:
            found = losses()
            seen.update({k: v.detach() for k, v in found.items()})
            return found["loss"]

        if self.trainer is None or heads_only:
            self._plain_step(closure, heads_only)
        else:
            self.trainer.adaptive = self.step < self.settled
            self.trainer.step(closure)
            seen["penalty"] = torch.tensor(self.trainer.penalty)
        if self.trainer is not None and self.step == self.settled:
            # A cycle may have run on until here.
            self.trainer.truncate()
            self._begin_average()
        if self.average is not None:
            self.average.update_parameters(self.objective.network)
        self.log.append({"step": self.step} | {k: round(v.item(), 5) for k, v in seen.items()})
        self.step += 1

    def _plain_step(self, closure: Callable[[], Tensor], heads_only: bool) -> None:
        closure().backward()
        if heads_only:
            for parameter in self.objective.network.parameters():
                parameter.grad = None
        nn.utils.clip_grad_norm_(self.objective.parameters(), LARGEST_GRADIENT)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def run(
        self,
        checkpoint: Path,
        args: argparse.Namespace,
        step: Callable[[int], None],
        *,
        kept: Callable[[], None] | None = None,
    ) -> bool:
        """Take the steps that are left, or `args.stop_after` of them; say whether all are done.

        Parameters
        ----------
        checkpoint : Path
            Read first if it is there, and written as the run goes.
        args : argparse.Namespace
            Kept in the checkpoint; has `batch`.
        step : callable
            Takes the step of a number, by `take_step`.
        kept : callable, optional
            Called whenever a checkpoint was written.
        """
        if checkpoint.exists():
            self._load(checkpoint)
        self._begin_stage({k: str(v) for k, v in vars(args).items() if k != "stop_after"})
        first, started, cpu = self.step, time.perf_counter(), time.process_time()
        before = self.cpu_hours
        last = min(self.steps, first + (args.stop_after or self.steps))
        while self.step < last:
            step(self.step)
            if self.step % SHOWN == 0 or self.step == last:
                rate = (self.step - first) * args.batch / (time.perf_counter() - started)
                print(json.dumps(self.log[-1] | {"images_per_s": round(rate, 1)}), flush=True)
            if self.step % KEPT == 0 or self.step == last:
                self.cpu_hours = before + (time.process_time() - cpu) / 3600
                self._save(checkpoint)
                if kept is not None:
                    kept()
        return self.step == self.steps

    def _begin_stage(self, stage: dict[str, str]) -> None:
        """Keep the arguments of a call, for those of the last where only the end has moved."""
        if self.stages:
            before = self.stages[-1]
            cooldown = int(before["cooldown"]) if "cooldown" in before else None
            settled = settled_step(int(before["steps"]), cooldown)
            if self.step <= settled and _unending(stage) == _unending(before):
                self.stages.pop()
        if stage not in self.stages[-1:]:
            self.stages.append(stage)

    def _load(self, checkpoint: Path) -> None:
        device = next(self.objective.parameters()).device
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        self.objective.load_state_dict(state["objective"])
        peaks = [[group["peak"] for group in o.param_groups] for o in self.optimizers]
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        if self.trainer is not None:
            self.trainer.load_state_dict(state["trainer"])
        # What this call asks for, and not the call before.
        for optimizer, own in zip(self.optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, own, strict=True):
                group["peak"] = peak
        told = ("step", "log", "cpu_hours", "stages")
        self.step, self.log, self.cpu_hours, self.stages = (state[k] for k in told)
        # A run that is to go on further moves its bases again: the average begins anew.
        moving = self.trainer is not None and self.step <= self.settled
        if moving:
            self.average = None
        elif state["average"] is not None:
            self._begin_average()
            self.average.load_state_dict(state["average"])
        print(f"resumed at step {self.step}", flush=True)

    def _save(self, checkpoint: Path) -> None:
        state: dict[str, Any] = {
            "objective": self.objective.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "trainer": None if self.trainer is None else self.trainer.state_dict(),
            "step": self.step,
            "log": self.log,
            "cpu_hours": self.cpu_hours,
            "stages": self.stages,
        }
        part = checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(checkpoint)
