"""Teach a small encoder, low-rank or dense, to give nec-tiny's embeddings.

    python pipelines/distil_encoder.py ../shared/data runs/lowrank_encoder/lowrank.safetensors
    python pipelines/distil_encoder.py ../shared/data runs/small/encoder.safetensors \
        --width 64 --depth 10 --run runs/small_distilled

Begins with the weights of ``lowrank_encoder.py`` (whose ranks it keeps under ``--cap``, with
truncation and the spectral penalty; in the last third ranks and bases stay), or with those of a
dense network of ``pretrain_encoder.py``. With ``--free``, ranks are those of the weights and bases
and cores learn alike, as plain matrices that are made orthonormal at the end: a last stage, after
one that found the ranks. Student and teacher see the same views, whole: the pretraining's, so no
image of a test pool.

Resumes from the run folder's checkpoint; the data of a step depend on its number. Writes there what
``lowrank_encoder.py`` writes; of a dense network ``encoder.safetensors`` and ``log.json``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from imagery import Imagery, load_imagery
from lowrank_encoder import keep_weights, optimizer_of, save
from pretrain_encoder import AVERAGE, learning_rate, make_optimizers
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nec.encoders.vit import VisionTransformer, VisionTransformerConfig
from nec.lowrank import LowRankTrainer, is_lowrank, load_lowrank, lowrank_layers
from nec.model import Model, load_model
from nec.pretrain.augmentation import random_bands, random_view
from nec.pretrain.distillation import Distillation

# Steps whose views give the deviation of the teacher's components.
MEASURED = 8
# Share of the steps at the end in which a low-rank network's ranks and bases stay.
SETTLED = 1 / 3


class Views:
    """Views of the training imagery, and the teacher's embeddings of them."""

    def __init__(self, imagery: Imagery, teacher: VisionTransformer, args: argparse.Namespace):
        self._imagery, self._teacher, self._args = imagery, teacher, args

    def of(self, step: int) -> tuple[Tensor, list[int], Tensor, Tensor]:
        """Return view, bands, sampling distance and target of a step; always the same."""
        chips, gsd, _, generator = self._imagery.batch(
            step, self._args.batch, multispectral_every=self._args.multispectral_every
        )
        view, scale, _ = random_view(
            chips, gsd, generator=generator, least_area=self._args.least_area
        )
        present = (~chips[0, :, 0, 0].isnan()).nonzero().flatten().tolist()
        index = random_bands(present, generator=generator)
        view = view[:, index]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return view, index, scale, self._teacher(view, index, scale).float()

    def deviation(self, basis: Tensor) -> Tensor:
        """Return the deviation of the teacher's components over the first steps."""
        rows = [self.of(step)[3].movedim(1, -1).flatten(0, -2) for step in range(MEASURED)]
        return (torch.cat(rows) @ basis).std(0)


class Student:
    """A network in training, low-rank or dense, with its optimisers and its running average."""

    def __init__(self, objective: Distillation, args: argparse.Namespace) -> None:
        self.objective, self._args = objective, args
        self.trainer: LowRankTrainer | None = None
        self.average: AveragedModel | None = None
        self.step, self.cpu_hours = 0, 0.0
        self.log: list[dict[str, float]] = []
        self.settled = round((1 - SETTLED) * args.steps)
        if is_lowrank(objective.network) and not args.free:
            self.optimizers = [optimizer_of(objective, args.peak, args.core_peak)]
            self.trainer = LowRankTrainer(
                objective,
                self.optimizers[0],
                tau=args.tau,
                beta=args.beta,
                core_steps=args.core_steps,
                max_rank=args.cap,
                max_norm=1.0,
            )
        else:
            objective.network.requires_grad_(True)
            self.optimizers = make_optimizers(objective, args.peak, "muon")
            self._begin_average()

    def _begin_average(self) -> None:
        self.average = AveragedModel(
            self.objective.network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE)
        )

    def take_step(self, views: Views) -> None:
        """Train on the views of the next step."""
        rate = learning_rate(self.step, self._args.steps, self._args.steps - self.settled)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        view, index, scale, target = views.of(self.step)
        seen: dict[str, Tensor] = {}

        def closure() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                losses = self.objective(view, index, scale, target)
            seen.update({k: v.detach() for k, v in losses.items()})
            return losses["loss"]

        if self.trainer is not None:
            self.trainer.adaptive = self.step < self.settled
            self.trainer.step(closure)
            if self.step == self.settled:
                # A cycle may have run on until here.
                self.trainer.truncate()
                self._begin_average()
        else:
            closure().backward()
            torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.objective.network)
        self.log.append({"step": self.step} | {k: round(v.item(), 5) for k, v in seen.items()})
        self.step += 1

    def save(self, checkpoint: Path, cpu_hours: float) -> None:
        """Keep all that `load` needs."""
        state: dict[str, Any] = {
            "network": self.objective.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "trainer": None if self.trainer is None else self.trainer.state_dict(),
            "step": self.step,
            "log": self.log,
            "cpu_hours": self.cpu_hours + cpu_hours,
            "arguments": {k: str(v) for k, v in vars(self._args).items()},
        }
        part = checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Go on where a checkpoint was taken."""
        state = torch.load(checkpoint, weights_only=True)
        self.objective.network.load_state_dict(state["network"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        if self.trainer is not None:
            self.trainer.load_state_dict(state["trainer"])
        if state["average"] is not None:
            self._begin_average()
            self.average.load_state_dict(state["average"])
        self.step, self.log, self.cpu_hours = (state[k] for k in ("step", "log", "cpu_hours"))
        print(f"resumed at step {self.step}", flush=True)


def student_of(args: argparse.Namespace, teacher: Model) -> VisionTransformer:
    """Return the network that the weights are of.

    Raises
    ------
    SystemExit
        If they are neither of a low-rank nec-tiny nor of the width and depth that are given.
    """
    weights = load_file(args.weights)
    config = VisionTransformerConfig(
        width=args.width, depth=args.depth, heads=max(1, args.width // 64)
    )
    if any(name.endswith(".core") for name in weights):
        config = teacher.encoder.network.config
    network = VisionTransformer(config)
    try:
        load_lowrank(network, {k: v.float() for k, v in weights.items()})
    except RuntimeError as error:
        raise SystemExit(
            f"{args.weights} is not of width {args.width} and depth {args.depth}; "
            "give --width and --depth as it was trained"
        ) from error
    return network


def main() -> None:
    args = options()
    args.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    teacher = load_model("nec-tiny", precision="float32")
    network = student_of(args, teacher).train()
    views = Views(load_imagery(args.data, args.split), teacher.encoder.network, args)
    basis = torch.from_numpy(teacher.basis).float()
    student = Student(Distillation(network, basis, views.deviation(basis)), args)
    checkpoint = args.run / "checkpoint.pt"
    if checkpoint.exists():
        student.load(checkpoint)
    first, started, cpu = student.step, time.perf_counter(), time.process_time()
    last = min(args.steps, first + (args.stop_after or args.steps))
    while student.step < last:
        student.take_step(views)
        if student.step % 20 == 0 or student.step == last:
            rate = (student.step - first) * args.batch / (time.perf_counter() - started)
            print(json.dumps(student.log[-1] | {"images_per_s": round(rate, 1)}), flush=True)
        if student.step % 100 == 0 or student.step == last:
            student.save(checkpoint, (time.process_time() - cpu) / 3600)
    if student.step == args.steps and student.average is not None:
        averaged = student.average.module.eval()
        if is_lowrank(averaged):
            for layer in lowrank_layers(averaged).values():
                layer.orthonormalise()
            keep_weights(averaged, args.run, student.log)
        else:
            save(averaged, args.run / "encoder.safetensors")
            (args.run / "log.json").write_text(json.dumps(student.log) + "\n")


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("weights", type=Path, help="lowrank.safetensors, or encoder.safetensors")
    parser.add_argument("--run", type=Path, default=Path("runs/distilled_encoder"))
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--width", type=int, default=192, help="of a dense network")
    parser.add_argument("--depth", type=int, default=6, help="of a dense network")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--stop-after", type=int, help="leave after this many steps of this call")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--core-peak", type=float, default=2e-3, help="the same of cores")
    parser.add_argument("--free", action="store_true", help="train bases as plain matrices")
    parser.add_argument("--cap", type=int, default=25, help="highest rank")
    parser.add_argument("--tau", type=float, default=0.02, help="truncation")
    parser.add_argument("--beta", type=float, default=0.002, help="weight of the penalty")
    parser.add_argument("--core-steps", type=int, default=50, help="steps between augmentations")
    parser.add_argument("--multispectral-every", type=int, default=2, help="one step in so many")
    parser.add_argument("--least-area", type=float, default=0.4, help="of a view's crop")
    return parser.parse_args()


if __name__ == "__main__":
    main()
