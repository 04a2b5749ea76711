"""Make a trained encoder low-rank and go on training it, robustly, on the same objective.

    python pipelines/lowrank_encoder.py ../shared/data runs/pretrain/checkpoint.pt --steps 1500

Begins with a checkpoint of ``pretrain_encoder.py``, decoder and heads included, or with the weights
alone (``encoder.safetensors``, such as nec-tiny's), beside which those heads are new and learn
alone for ``--heads-first`` steps. The matrices of the blocks are converted at half of their rank
and trained with truncation and the spectral penalty; the highest rank falls to ``--cap``, at which
a network of nec-tiny's shape has a fifth of its parameters. In the last third, ranks and bases
stay, and a running average of the weights is taken.

Resumes from the run folder's checkpoint; the data of a step depend on its number. Writes there
``lowrank.safetensors`` (bases and cores: `nec.lowrank.load_lowrank` gives the network, `deploy`
the fast form of it), ``encoder.safetensors`` (the same, merged to dense weights, for
everything that reads nec-tiny's) and ``lowrank.json`` (ranks, savings, condition numbers, log).
"""

import argparse
import copy
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from imagery import Imagery, load_imagery
from pretrain_encoder import AVERAGE, learning_rate, losses_of, make_optimizers
from safetensors.torch import load_file, save_file
from teacher import COMPONENTS, Teacher
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nec.encoders.vit import VisionTransformer, VisionTransformerConfig
from nec.lowrank import (
    LowRankTrainer,
    compression,
    condition_bound,
    condition_number,
    convert,
    lowrank_layers,
    merge,
)
from nec.pretrain.objective import MaskedContrast

# Layers that are converted: the matrices of the blocks.
INCLUDE = "blocks.*"
# Share of the steps at the end in which ranks and bases stay, and of the steps at the beginning
# in which the highest rank falls: at once it would undo most of what the encoder has learnt.
SETTLED, FALLING = 1 / 3, 1 / 2
START_RANK = 0.5


# Weights of the losses where no checkpoint says them: those of `pretrain_encoder.py`.
WEIGHTS = {
    "reconstruction_weight": 1.0,
    "statistics_weight": 1.0,
    "teacher_weight": 2.0,
    "contrast_weight": 0.5,
}


def objective_from(source: Path) -> tuple[MaskedContrast, bool]:
    """Return the objective around a trained encoder, and whether its decoder and heads are new.

    Raises
    ------
    SystemExit
        If the file is neither a checkpoint nor weights of the default shape.
    """
    stage: dict[str, str] = {}
    if source.suffix == ".pt":
        state = torch.load(source, map_location="cpu", weights_only=True)
        # A run of one stage may hold its options alone.
        stage = state.get("stages", [state.get("arguments")])[-1]
        width = int(stage["width"])
        config = VisionTransformerConfig(width=width, depth=int(stage["depth"]), heads=width // 64)
    elif source.suffix == ".safetensors":
        config = VisionTransformerConfig()
    else:
        raise SystemExit(f"{source} is neither a checkpoint.pt nor an encoder.safetensors")
    network = VisionTransformer(config)
    weight = {k: float(stage.get(k, v)) for k, v in WEIGHTS.items()}
    objective = MaskedContrast(
        network,
        teacher_dim=COMPONENTS if weight["teacher_weight"] else 0,
        pooling=stage.get("pooling", "moments"),
        **weight,
    )
    if source.suffix == ".pt":
        objective.load_state_dict(state["objective"])
        # What was shipped is the running average.
        average = {k.removeprefix("module."): v for k, v in state["average"].items()}
        network.load_state_dict({k: average[k] for k in network.state_dict()})
    else:
        network.load_state_dict({k: v.float() for k, v in load_file(source).items()})
    return objective, not stage


def optimizer_of(objective: MaskedContrast, peak: float, core_peak: float) -> torch.optim.Optimizer:
    """AdamW as in pretraining, with a rate of their own for cores.

    Adam moves each entry by about the rate, and a core has few.
    """
    (optimizer,) = make_optimizers(objective, peak, "adamw")
    cores = [layer.core for layer in lowrank_layers(objective.network).values()]
    known = {id(core) for core in cores}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in known]
    optimizer.add_param_group(
        {"params": cores, "lr": core_peak, "peak": core_peak, "weight_decay": 0.05}
    )
    return optimizer


def save(network: nn.Module, path: Path) -> None:
    """Write a network's weights."""
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)


def keep_weights(network: VisionTransformer, run: Path, log: list[dict[str, float]]) -> None:
    """Write the low-rank network, its dense form, and what it saves."""
    save(network, run / "lowrank.safetensors")
    chips = torch.zeros(1, len(network.config.bands), 64, 64)
    example = (chips, list(range(len(network.config.bands))), torch.tensor([10.0]))
    layers = lowrank_layers(network)
    report: dict[str, Any] = {"log": log, "layers": {}}
    for name, deployed in (("trained", False), ("deployed", True)):
        saved = compression(network, *example, deployed=deployed)
        report[name] = {
            "parameters": saved.parameters,
            "dense_parameters": saved.dense_parameters,
            **{k: getattr(saved, k) for k in ("layers", "model", "flops")},
        }
    for name, layer in layers.items():
        report["layers"][name] = {
            "ranks": list(layer.ranks),
            "condition": condition_number(layer.core),
            "bound": condition_bound(layer.core),
        }
    (run / "lowrank.json").write_text(json.dumps(report, indent=1) + "\n")
    save(merge(copy.deepcopy(network)), run / "encoder.safetensors")
    print(f"{report['deployed']['model']:.1%} of the parameters saved as deployed", flush=True)


@dataclass
class Training:
    """What a run is made of, and how far it is."""

    objective: MaskedContrast
    trainer: LowRankTrainer
    average: AveragedModel | None = None
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    cpu_hours: float = 0.0

    def begin_average(self) -> None:
        """Take a running average from here on: shapes stay as they are."""
        self.average = AveragedModel(
            self.objective.network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE)
        )

    def load(self, checkpoint: Path) -> None:
        """Go on where a checkpoint was taken."""
        state = torch.load(checkpoint, weights_only=True)
        self.objective.load_state_dict(state["objective"])
        self.trainer.load_state_dict(state["trainer"])
        if state["average"] is not None:
            self.begin_average()
            self.average.load_state_dict(state["average"])
        self.step, self.log, self.cpu_hours = (state[k] for k in ("step", "log", "cpu_hours"))
        print(f"resumed at step {self.step}", flush=True)

    def save(self, checkpoint: Path, args: argparse.Namespace, cpu_hours: float) -> None:
        """Keep all that `load` needs."""
        state = {
            "objective": self.objective.state_dict(),
            "trainer": self.trainer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "step": self.step,
            "log": self.log,
            "cpu_hours": self.cpu_hours + cpu_hours,
            "arguments": {k: str(v) for k, v in vars(args).items()},
        }
        part = checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(checkpoint)

    def take_step(self, imagery: Imagery, args: argparse.Namespace, *, heads_only: bool) -> None:
        """Train on the batch of the next step."""
        settled = round((1 - SETTLED) * args.steps)
        network, optimizer, seen = self.objective.network, self.trainer.optimizer, {}
        self.objective.keep = args.keep if self.step < settled else args.last_keep
        rate = learning_rate(self.step, args.steps, args.steps - settled)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate

        def closure() -> Tensor:
            losses = losses_of(
                self.objective,
                imagery,
                self.step,
                batch=args.batch,
                multispectral_every=args.multispectral_every,
                least_area=args.least_area,
                noise=args.noise,
            )
            seen.update({k: v.detach() for k, v in losses.items()})
            return losses["loss"]

        if heads_only:
            closure().backward()
            for parameter in network.parameters():
                parameter.grad = None
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        else:
            start = START_RANK * network.config.width
            left = max(0.0, 1 - self.step / (FALLING * args.steps))
            self.trainer.max_rank = round(args.cap + left * (start - args.cap))
            self.trainer.adaptive = self.step < settled
            self.trainer.step(closure)
        if self.step == settled:
            # A cycle may have run on until here.
            self.trainer.truncate()
            self.begin_average()
        if self.average is not None:
            self.average.update_parameters(network)
        said = {k: round(v.item(), 4) for k, v in seen.items()}
        self.log.append({"step": self.step, "penalty": round(self.trainer.penalty, 4)} | said)
        self.step += 1


def main() -> None:
    args = options()
    args.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    objective, fresh = objective_from(args.source)
    conversion = convert(objective.network, rank=START_RANK, include=INCLUDE)
    trainer = LowRankTrainer(
        objective,
        optimizer_of(objective, args.peak, args.core_peak),
        tau=args.tau,
        beta=args.beta,
        core_steps=args.core_steps,
        max_rank=args.cap,
        max_norm=1.0,
    )
    training = Training(objective, trainer)
    checkpoint = args.run / "checkpoint.pt"
    if checkpoint.exists():
        training.load(checkpoint)
    else:
        print(conversion, flush=True)
    teacher = None
    if objective.teacher_dim:
        folder = args.teacher or args.run.parent / "teacher"
        teacher = Teacher.load(args.data / "weights" / "galileo_nano", folder)
    imagery = load_imagery(args.data, args.split, teacher)
    first, started, cpu = training.step, time.perf_counter(), time.process_time()
    last = min(args.steps, first + (args.stop_after or args.steps))
    while training.step < last:
        training.take_step(imagery, args, heads_only=fresh and training.step < args.heads_first)
        if training.step % 20 == 0 or training.step == last:
            rate = (training.step - first) * args.batch / (time.perf_counter() - started)
            print(json.dumps(training.log[-1] | {"images_per_s": round(rate, 1)}), flush=True)
        if training.step % 100 == 0 or training.step == last:
            training.save(checkpoint, args, (time.process_time() - cpu) / 3600)
    if last == args.steps and training.average is not None:
        keep_weights(training.average.module.eval(), args.run, training.log)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("source", type=Path, help="checkpoint.pt, or encoder.safetensors")
    parser.add_argument("--run", type=Path, default=Path("runs/lowrank_encoder"))
    parser.add_argument("--teacher", type=Path, help="folder of the teacher's tokens, if computed")
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--stop-after", type=int, help="leave after this many steps of this call")
    parser.add_argument("--heads-first", type=int, default=100, help="with weights alone")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--core-peak", type=float, default=2e-3, help="the same of cores")
    parser.add_argument("--cap", type=int, default=25, help="highest rank")
    parser.add_argument("--tau", type=float, default=0.02, help="truncation")
    parser.add_argument("--beta", type=float, default=0.002, help="weight of the penalty")
    parser.add_argument("--core-steps", type=int, default=50, help="steps between augmentations")
    parser.add_argument("--keep", type=float, default=0.25, help="fraction of tokens seen")
    parser.add_argument("--last-keep", type=float, default=0.5, help="the same in the last third")
    parser.add_argument("--multispectral-every", type=int, default=2, help="one step in so many")
    parser.add_argument("--least-area", type=float, default=0.4, help="of a view's crop")
    parser.add_argument("--noise", type=float, default=0.03, help="of the embedding's variance")
    return parser.parse_args()


if __name__ == "__main__":
    main()
