"""Pretrain the built-in encoder `nec-tiny`, self-supervised, on the development imagery.

    python pipelines/pretrain_encoder.py ../shared/data --steps 2400

Resumes from the run folder's checkpoint; the data of a step depend on its number and on
``--multispectral-every`` alone, so a resumed run sees what an uninterrupted one would. The rate
of learning is constant but for the last ``--cooldown`` steps, so a resumed run may be given
another number of steps, or other options: the checkpoint lists these stages. No image of
the EuroSAT test pool (``catalogs/eurosat/split.csv``) and none of the scenes, TerraMesh tiles,
UC Merced images or biomass areas is used. Writes the running average of the weights
(``encoder.safetensors``), ``log.jsonl`` and the loss curve to the run folder; nec-tiny's own curve
was written with ``--plot docs/benchmarks/pretrain_encoder``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from course import Course
from imagery import Imagery, load_imagery
from safetensors.torch import load_file, save_file
from teacher import COMPONENTS, Teacher
from torch.nn.attention import SDPBackend, sdpa_kernel

from nec.encoders.vit import VisionTransformer, VisionTransformerConfig
from nec.pretrain.augmentation import random_bands, random_view
from nec.pretrain.objective import MaskedContrast

LOSSES = ("pixels", "level", "texture", "statistics", "teacher")
NOISE_RAMP = 300


def noise_level(step: int, start: int, full: float) -> float:
    """Fraction of the embedding's variance that noise has: ramped up over `NOISE_RAMP` steps."""
    return full * min(1.0, max(0.0, (step - start) / NOISE_RAMP))


def make_optimizers(
    objective: MaskedContrast, peak: float, name: str
) -> list[torch.optim.Optimizer]:
    """AdamW, and for the matrices of the encoder's blocks Muon if it is asked for."""
    network = objective.network
    matrices = [p for p in network.blocks.parameters() if p.ndim == 2] if name == "muon" else []
    inside = {id(p) for p in matrices} | {id(network.band_projection)}
    rest = [p for p in objective.parameters() if id(p) not in inside]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "lr": peak, "weight_decay": 0.05},
            {"params": [p for p in rest if p.ndim <= 1], "lr": peak, "weight_decay": 0.0},
            # Its weights are a dozen times those of a layer: at the common rate it barely learns.
            {"params": [network.band_projection], "lr": 12 * peak, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if matrices:
        optimizers.insert(
            0,
            torch.optim.Muon(
                matrices, lr=2 * peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
            ),
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return how batches and their views are drawn, for `losses_of`."""
    return {k: getattr(args, k) for k in ("batch", "multispectral_every", "least_area")}


def losses_of(
    objective: MaskedContrast,
    imagery: Imagery,
    step: int,
    *,
    batch: int,
    multispectral_every: int,
    least_area: float,
    noise: float,
    own_bands: bool = False,
) -> dict[str, torch.Tensor]:
    """Return the losses of a step's two views; the same whenever they are asked for."""
    chips, gsd, maps, generator = imagery.batch(
        step, batch, multispectral_every=multispectral_every
    )
    torch.manual_seed(step)
    device = objective.mask_token.device
    views, scales, led = zip(
        *(
            random_view(
                chips.to(device),
                gsd.to(device),
                None if maps is None else maps.to(device),
                generator=generator,
                least_area=least_area,
            )
            for _ in "ab"
        ),
        strict=True,
    )
    present = (~chips[0, :, 0, 0].isnan()).nonzero().flatten().tolist()
    bands = random_bands(present, generator=generator)
    others = random_bands(present, generator=generator) if own_bands else bands
    # With 64 tokens, plain attention has the faster backward pass on CPUs.
    with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        return objective(views, (bands, others), torch.stack(scales), teacher=led, noise=noise)


def plot(log: list[dict[str, float]], out: Path) -> None:
    """Draw the loss curve and write its points."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    steps = [row["step"] for row in log]
    window = min(15, len(log))
    for ax, keys in zip(axes, (LOSSES, ("contrast", "agree")), strict=True):
        for key in keys:
            values = np.array([row.get(key, np.nan) for row in log])
            smooth = np.convolve(values, np.ones(window) / window, "valid")
            ax.plot(steps[window - 1 :], smooth, label=key)
        ax.set_xlabel("step")
        ax.legend()
    axes[0].set_title("predictions (squared error, weighted)")
    axes[1].set_title("agreement of two views (InfoNCE; top-1)")
    figure.savefig(out.with_suffix(".png"), dpi=120)
    every = max(1, len(log) // 200)
    out.with_suffix(".json").write_text(json.dumps(log[::every], indent=0) + "\n")


def main() -> None:
    args = options()
    args.run.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    network = VisionTransformer(VisionTransformerConfig.sized(args.width, args.depth))
    if args.init:
        network.load_state_dict(load_file(args.init))
    objective = MaskedContrast(
        network,
        contrast_weight=args.contrast_weight,
        reconstruction_weight=args.reconstruction_weight,
        statistics_weight=args.statistics_weight,
        teacher_dim=COMPONENTS if args.teacher_weight else 0,
        teacher_weight=args.teacher_weight,
        pooling=args.pooling,
    ).to(device)
    optimizers = make_optimizers(objective, args.peak, args.optimizer)
    course = Course(objective, optimizers, args.steps, cooldown=args.cooldown)
    teacher = None
    if args.teacher_weight:
        teacher = Teacher.load(args.data / "weights" / "galileo_nano", args.run.parent / "teacher")
    imagery = load_imagery(args.data, args.split, teacher)
    print(
        f"{len(imagery.rgb)} RGB and {len(imagery.multispectral)} multispectral chips, "
        f"{len(imagery.large)} larger images; "
        f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters",
        flush=True,
    )

    def take_step(step: int) -> None:
        objective.keep = args.keep if step < course.settled else args.last_keep
        noise = noise_level(step, args.noise_from, args.noise)
        sampling = sampling_of(args) | {"noise": noise, "own_bands": args.bands == "own"}
        course.take_step(lambda: losses_of(objective, imagery, step, **sampling))

    def keep_average() -> None:
        weights = {k: v.contiguous() for k, v in course.average.module.state_dict().items()}
        save_file(weights, args.run / "encoder.safetensors")

    done = course.run(args.run / "checkpoint.pt", args, take_step, kept=keep_average)
    (args.run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in course.log))
    if done:
        plot(course.log, args.plot or args.run / "curve")


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--run", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--cooldown", type=int, default=400, help="last steps, that slow down")
    parser.add_argument("--stop-after", type=int, help="leave after this many steps of this call")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--width", type=int, default=192, help="a multiple of 64")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--init", type=Path, help="weights to begin with (encoder.safetensors)")
    parser.add_argument("--reconstruction-weight", type=float, default=1.0)
    parser.add_argument("--statistics-weight", type=float, default=1.0)
    parser.add_argument("--teacher-weight", type=float, default=2.0, help="0: no teacher")
    parser.add_argument("--contrast-weight", type=float, default=0.5)
    parser.add_argument("--pooling", choices=("mean", "moments"), default="moments")
    parser.add_argument("--bands", choices=("same", "own"), default="same", help="of two views")
    parser.add_argument("--keep", type=float, default=0.25, help="fraction of tokens seen")
    parser.add_argument("--last-keep", type=float, default=0.5, help="the same in the cooldown")
    parser.add_argument("--multispectral-every", type=int, default=2, help="one step in so many")
    parser.add_argument("--least-area", type=float, default=0.4, help="of a view's crop")
    parser.add_argument("--noise", type=float, default=0.03, help="of the embedding's variance")
    parser.add_argument("--noise-from", type=int, default=1300, help="step at which it sets in")
    parser.add_argument("--plot", type=Path, help="loss curve, without an ending; else in the run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
