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
from pathlib import Path

import torch
from course import Course
from imagery import Imagery, load_imagery
from lowrank_encoder import encoder_trainer, keep_weights, save
from pretrain_encoder import make_optimizers
from safetensors.torch import load_file
from torch import Tensor

from nec.encoders.vit import VisionTransformer, VisionTransformerConfig
from nec.lowrank import is_lowrank, load_lowrank, lowrank_layers
from nec.model import Model, load_model
from nec.pretrain.augmentation import random_bands, random_view
from nec.pretrain.distillation import Distillation

# Steps whose views give the deviation of the teacher's components, and of its descriptions.
MEASURED = 24


class Views:
    """Views of the training imagery, and the teacher's embeddings of them."""

    def __init__(self, imagery: Imagery, teacher: VisionTransformer, args: argparse.Namespace):
        self._imagery, self._teacher, self._args = imagery, teacher, args

    def of(self, step: int) -> tuple[Tensor, list[int], Tensor, Tensor]:
        """Return view, bands, sampling distance and target of a step; always the same."""
        chips, gsd, _, generator = self._imagery.batch(
            step, self._args.batch, multispectral_every=self._args.multispectral_every
        )
        whole = step % 100 < 100 * self._args.whole
        least_area = 1.0 if whole else self._args.least_area
        view, scale, _ = random_view(chips, gsd, generator=generator, least_area=least_area)
        present = (~chips[0, :, 0, 0].isnan()).nonzero().flatten().tolist()
        index = present if whole else random_bands(present, generator=generator)
        view = view[:, index]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return view, index, scale, self._teacher(view, index, scale).float()

    def sample(self) -> list[Tensor]:
        """Return the teacher's embeddings (n, dim, y, x) of the first steps."""
        return [self.of(step)[3] for step in range(MEASURED)]


def student_of(args: argparse.Namespace, teacher: Model) -> VisionTransformer:
    """Return the network that the weights are of.

    Raises
    ------
    SystemExit
        If they are neither of a low-rank nec-tiny nor of the width and depth that are given.
    """
    weights = load_file(args.weights)
    config = VisionTransformerConfig.sized(args.width, args.depth)
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
    sample = views.sample()
    rows = torch.cat([part.movedim(1, -1).flatten(0, -2) for part in sample])
    objective = Distillation(
        network,
        basis,
        (rows @ basis).std(0),
        sample=sample if args.described else None,
        described_weight=args.described,
    )
    if is_lowrank(network) and not args.free:
        trainer = encoder_trainer(objective, args)
        course = Course(objective, [trainer.optimizer], args.steps, trainer)
    else:
        network.requires_grad_(True)
        course = Course(objective, make_optimizers(objective, args.peak, "muon"), args.steps)

    def take_step(step: int) -> None:
        seen = views.of(step)

        def losses() -> dict[str, Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                return objective(*seen)

        course.take_step(losses)

    if course.run(args.run / "checkpoint.pt", args, take_step):
        averaged = course.average.module.eval()
        if is_lowrank(averaged):
            for layer in lowrank_layers(averaged).values():
                layer.orthonormalise()
            keep_weights(averaged, args.run, course.log)
        else:
            save(averaged, args.run / "encoder.safetensors")
            (args.run / "log.json").write_text(json.dumps(course.log) + "\n")


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
    parser.add_argument(
        "--described", type=float, default=0.0, help="weight of mean and roughness, whitened"
    )
    parser.add_argument("--free", action="store_true", help="train bases as plain matrices")
    parser.add_argument("--cap", type=int, default=25, help="highest rank")
    parser.add_argument("--tau", type=float, default=0.02, help="truncation")
    parser.add_argument("--beta", type=float, default=0.002, help="weight of the penalty")
    parser.add_argument("--core-steps", type=int, default=50, help="steps between augmentations")
    parser.add_argument("--multispectral-every", type=int, default=2, help="one step in so many")
    parser.add_argument("--least-area", type=float, default=0.4, help="of a view's crop")
    parser.add_argument(
        "--whole", type=float, default=0.0, help="share of steps on whole chips in all their bands"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
