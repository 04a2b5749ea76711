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
from pathlib import Path
from typing import Any

import torch
from course import LARGEST_GRADIENT, Course
from imagery import load_imagery
from pretrain_encoder import losses_of, make_optimizers, sampling_of
from safetensors.torch import load_file, save_file
from teacher import COMPONENTS, Teacher
from torch import nn

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
# Share of the steps at the beginning in which the highest rank falls: at once it would undo most
# of what the encoder has learnt.
FALLING = 1 / 2
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
        stage = state["stages"][-1]
        config = VisionTransformerConfig.sized(int(stage["width"]), int(stage["depth"]))
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


def optimizer_of(objective: nn.Module, peak: float, core_peak: float) -> torch.optim.Optimizer:
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


def report_of(network: VisionTransformer, log: list[dict[str, float]]) -> dict[str, Any]:
    """Return what a low-rank network saves, as trained and as deployed, its ranks and the log."""
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
    return report


def keep_weights(network: VisionTransformer, run: Path, log: list[dict[str, float]]) -> None:
    """Write the low-rank network, its dense form, and what it saves."""
    save(network, run / "lowrank.safetensors")
    report = report_of(network, log)
    (run / "lowrank.json").write_text(json.dumps(report, indent=1) + "\n")
    save(merge(copy.deepcopy(network)), run / "encoder.safetensors")
    print(f"{report['deployed']['model']:.1%} of the parameters saved as deployed", flush=True)


def encoder_trainer(objective: nn.Module, args: argparse.Namespace) -> LowRankTrainer:
    """Return what trains the low-rank encoder of an objective, its ranks at most `args.cap`."""
    return LowRankTrainer(
        objective,
        optimizer_of(objective, args.peak, args.core_peak),
        tau=args.tau,
        beta=args.beta,
        core_steps=args.core_steps,
        max_rank=args.cap,
        max_norm=LARGEST_GRADIENT,
    )


def main() -> None:
    args = options()
    args.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    objective, fresh = objective_from(args.source)
    conversion = convert(objective.network, rank=START_RANK, include=INCLUDE)
    trainer = encoder_trainer(objective, args)
    course = Course(objective, [trainer.optimizer], args.steps, trainer)
    checkpoint = args.run / "checkpoint.pt"
    if not checkpoint.exists():
        print(conversion, flush=True)
    teacher = None
    if objective.teacher_dim:
        folder = args.teacher or args.run.parent / "teacher"
        teacher = Teacher.load(args.data / "weights" / "galileo_nano", folder)
    imagery = load_imagery(args.data, args.split, teacher)
    start = START_RANK * objective.network.config.width

    def take_step(step: int) -> None:
        objective.keep = args.keep if step < course.settled else args.last_keep
        left = max(0.0, 1 - step / (FALLING * args.steps))
        trainer.max_rank = round(args.cap + left * (start - args.cap))
        course.take_step(
            lambda: losses_of(objective, imagery, step, **sampling_of(args), noise=args.noise),
            heads_only=fresh and step < args.heads_first,
        )

    if course.run(checkpoint, args, take_step):
        keep_weights(course.average.module.eval(), args.run, course.log)


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
