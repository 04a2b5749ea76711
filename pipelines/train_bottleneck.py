"""Train a bottleneck with the end of an encoder, and pack both as a model.

    python pipelines/train_bottleneck.py ../shared/data --steps 150
    python pipelines/train_bottleneck.py ../shared/data --kind hyperprior --run runs/hyperprior
    python pipelines/train_bottleneck.py ../shared/data --targets pixels --run runs/pixels
    python pipelines/train_bottleneck.py ../shared/data --sizes 0.5 --steps 60 --run runs/one_rate

The trunk of the encoder stays as it is and its tokens are computed once; the last block, norm,
head, basis, steps and prior train, for what decoded embeddings tell by linear maps (``--targets``)
and for few bits. One model serves every rate: steps take turns through the rates. Resumes from the
run folder's checkpoint; the batch of a step depends on its number alone. Bottlenecks whose decoder
is no network are exported: ``RUN/ladder`` has a compressor of each rate, and ``RUN/model``, where
every rate was trained, is a folder for `nec.load_model`. No image of the EuroSAT test pool is
read, and a fifth of the training images stays out for comparisons.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from fit_compressors import GAMMA
from safetensors.torch import load_file, save_file
from scipy.optimize import brentq
from scipy.stats import entropy
from torch import Tensor
from trunk import WEIGHTS, Part, Photos, Targets, features_of, load_parts

from nec.bottleneck import Bottleneck, EncoderEnd, TargetPrediction, Trainer, export, warm_up
from nec.compressor import Compressor
from nec.encoders.vit import VisionTransformer, VisionTransformerConfig
from nec.model import CARD, ENCODER, RATES, sha256_of
from nec.rotation import klt

# Bytes a vector of the ladder; its last three make a model's rates.
LADDER = (0.05, 0.15, 0.5, 1.5)
SHIPPED = dict(zip(RATES, LADDER[1:], strict=True))
WARM_UP = 10
# Rounds that a prior alone is fitted for; that of a network is made from nothing.
WARMED = {"transform": 25, "factorised": 30, "hyperprior": 120}
# Logarithm of the largest factor on steps.
COARSEST = 5.0
# Chips of each kind that training begins with: for basis and maps, and for steps.
SAMPLE, FEW = 512, 100
# Settings that a run is bound to.
RECIPE = (
    *("kind", "rank", "falloff", "blocks", "sizes", "targets", "steps", "batch", "peak"),
    *("frozen", "photos", "others"),
)


def told(value: object) -> str:
    """Say an option as the command line does."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def load_network(model: Path) -> tuple[VisionTransformer, dict]:
    """Return the network of a model folder, and its card."""
    card = json.loads((model / CARD).read_text())
    config = dict(card["encoder"])
    network = VisionTransformer(
        VisionTransformerConfig(**config | {"bands": tuple(config["bands"])})
    )
    network.load_state_dict({k: v.float() for k, v in load_file(model / ENCODER).items()})
    return network.eval(), card


def pieces(features: Tensor, size: int = 100) -> list[np.ndarray]:
    """Return features (n, dim, y, x) as a store's chunks (sample, y, x, dim)."""
    values = features.permute(0, 2, 3, 1).contiguous().numpy()
    return [values[i : i + size] for i in range(0, len(values), size)]


def entropy_steps(sample: Tensor, basis: np.ndarray, steps: np.ndarray, size: float) -> np.ndarray:
    """Scale steps of tokens so that each band for itself takes a size in bytes, all together.

    Those of a codec that sees what surrounds a token, and may decide against a symbol, are finer
    than a prior without either can pay for.
    """
    vectors = np.concatenate([p.reshape(-1, p.shape[-1]) for p in pieces(sample[::4])])
    values = vectors @ basis / steps

    def too_much(log_factor: float) -> float:
        symbols = np.rint(values * math.exp(-log_factor))
        counts = (np.unique(band, return_counts=True)[1] for band in symbols.T)
        return sum(entropy(c, base=2) for c in counts) - 8 * size

    return steps * np.float32(math.exp(brentq(too_much, -COARSEST, COARSEST, xtol=1e-3)))


def pace(step: int, steps: int) -> float:
    """Fraction of the peak learning rate: linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


class Batches:
    """Tokens, float features and chips of a step: photos and multispectral chips in turn."""

    def __init__(self, photos: Photos, parts: tuple[Part, Part], features: list[Tensor]) -> None:
        self.parts, self.features = parts, features
        self.rows = [np.flatnonzero(~photos.held_out), np.arange(len(parts[1].tokens))]

    def of(self, step: int, rates: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, float features and chips; two of three steps of a rate see photos."""
        which = int(step // rates % 3 == 2)
        rng = np.random.default_rng(step)
        index = np.sort(rng.choice(self.rows[which], size, replace=False))
        part = self.parts[which]
        return (
            torch.from_numpy(part.tokens[index]).float(),
            self.features[which][index],
            torch.from_numpy(part.chips[index]),
        )


def make_trainer(
    args: argparse.Namespace, network: VisionTransformer, end: EncoderEnd, batches: Batches
) -> tuple[Trainer, Targets]:
    """Begin with the transform codec of the same sample, and linear maps by least squares."""
    photos, others = (f[r[:SAMPLE]] for f, r in zip(batches.features, batches.rows, strict=True))
    sample = torch.cat((photos, others))
    targets = Targets(network, batches.features[0][batches.rows[0]], args.targets)
    chips = [
        torch.from_numpy(p.chips[r[:SAMPLE]])
        for p, r in zip(batches.parts, batches.rows, strict=True)
    ]
    goals = targets.of(sample, torch.cat(chips))
    basis = klt(pieces(sample))
    transformed = args.kind == "transform"
    few = pieces(torch.cat((photos[:FEW], others[:FEW])))
    steps = [
        Compressor.fit(
            few,
            bytes_per_vector=size,
            basis=basis,
            gamma=GAMMA,
            block=64 if transformed else 1,
            falloff=args.falloff,
        ).coding.step_values
        for size in args.sizes
    ]
    if not transformed:
        steps = [
            entropy_steps(sample, basis, own, size)
            for own, size in zip(steps, args.sizes, strict=True)
        ]
    bottleneck = Bottleneck(
        network.config.dim, len(args.sizes), kind=args.kind, rank=args.rank, falloff=args.falloff
    )
    bottleneck.start(sample, basis=basis, steps=np.stack(steps))
    warmed = warm_up(bottleneck, sample, rounds=WARMED[args.kind])
    print("prior alone, bits a token:", warmed, flush=True)
    sizes = {name: goal.shape[-1] for name, goal in goals.items()}
    distillation = TargetPrediction(network.config.dim, sizes, WEIGHTS)
    distillation.start(sample, goals)
    bits = tuple(8 * size for size in args.sizes)
    return Trainer(
        end, bottleneck, distillation, bits=bits, peak=args.peak, precision="bfloat16"
    ), targets


def pack(
    args: argparse.Namespace,
    network: VisionTransformer,
    card: dict,
    bottleneck: Bottleneck,
    training: dict,
    sample: list[np.ndarray],
) -> None:
    """Write a compressor of each rate, and a model folder, where all that ship are among them."""
    compressors = dict(
        zip(
            args.sizes,
            export(bottleneck, sample, bytes_per_vector=args.sizes, gamma=GAMMA),
            strict=True,
        )
    )
    (args.run / "ladder").mkdir(exist_ok=True)
    for size, compressor in compressors.items():
        compressor.save(args.run / "ladder" / f"{size}.json")
        print(f"{size} B a vector: {compressor.fidelity}", flush=True)
    if not set(SHIPPED.values()) <= set(args.sizes):
        return
    out = args.run / "model"
    out.mkdir(parents=True, exist_ok=True)
    half = {k: v.half().contiguous() for k, v in network.state_dict().items()}
    save_file(half, out / ENCODER)
    for rate, size in SHIPPED.items():
        compressors[size].save(out / f"{rate}.json")
    new = card | {
        "name": f"{card['name']}-{args.kind}",
        "weights_sha256": sha256_of(out / ENCODER),
        "bottleneck": training,
        "compressors": {"command": training["command"]},
    }
    (out / CARD).write_text(json.dumps(new, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--model", type=Path, default=Path("nec/weights/nec-tiny"))
    parser.add_argument("--run", type=Path, default=Path("runs/bottleneck"))
    parser.add_argument("--tokens", type=Path, default=Path("runs/trunk"), help="kept tokens")
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument(
        "--kind", choices=("transform", "factorised", "hyperprior"), default="transform"
    )
    parser.add_argument("--rank", type=int, help="bands kept; all by default")
    parser.add_argument(
        "--falloff", type=float, default=1.0, help="how much less errors count by octave"
    )
    parser.add_argument("--blocks", type=int, default=1, help="last blocks that train")
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=list(LADDER), help="bytes a vector of the rates"
    )
    parser.add_argument(
        "--targets", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), help="of the distortion"
    )
    parser.add_argument("--no-export", action="store_true", help="train alone: bits are estimates")
    parser.add_argument("--frozen", action="store_true", help="train the bottleneck alone")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--stop-after", type=int, help="leave after this many steps of this call")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=3e-4, help="peak learning rate")
    parser.add_argument("--photos", type=int, default=100_000, help="RGB photos to use")
    parser.add_argument("--others", type=int, default=1536, help="multispectral chips to use")
    parser.add_argument("--sample", type=int, default=800, help="chips that tables are fitted to")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    network, card = load_network(args.model)
    end = EncoderEnd(network, blocks=args.blocks)
    photos, *parts = load_parts(
        args.data,
        args.split,
        args.tokens,
        network,
        end,
        weights=args.model / ENCODER,
        photos=args.photos,
        others=args.others,
    )
    batches = Batches(photos, tuple(parts), [features_of(end, p.tokens) for p in parts])
    trainer, targets = make_trainer(args, network, end, batches)
    if args.frozen:
        end.freeze()
    recipe = {k: told(vars(args)[k]) for k in RECIPE}
    weights = sha256_of(args.model / ENCODER)
    first, log, seconds = 0, [], 0.0
    checkpoint = args.run / "checkpoint.pt"
    if checkpoint.exists():
        # Steps and basis that training begins with are computed again, and overwritten here.
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["recipe"] != recipe or state["weights_sha256"] != weights:
            parser.error(
                f"{checkpoint} is of {state['recipe']}, on an encoder of SHA-256 "
                f"{state['weights_sha256'][:8]}: choose another --run"
            )
        trainer.load_state_dict(state["trainer"])
        first, log, seconds = state["step"], state["log"], state["seconds"]
        print(f"resumed at step {first}", flush=True)

    trained = trainer.trained()
    # Encoder, decoder and bottleneck are the whole; of the encoder only the end trains.
    whole = sum(p.numel() for p in network.parameters()) + sum(
        n for part, n in trained.items() if part != "end"
    )
    pretraining = card["training"]["steps"] * int(card["training"]["batch"])
    training = {
        "command": "python pipelines/train_bottleneck.py ../shared/data "
        + " ".join(f"--{k} {v}" for k, v in recipe.items() if v not in ("None", "False", "True"))
        + (" --frozen" if args.frozen else ""),
        "trained": trained,
        "trained_share": round(sum(trained.values()) / whole, 4),
        "steps": args.steps,
        "steps_share": round(args.steps / card["training"]["steps"], 4),
        "images_share": round(args.steps * args.batch / pretraining, 4),
    }
    print(json.dumps(training), flush=True)
    started = time.perf_counter() - seconds
    last = args.steps if args.stop_after is None else min(args.steps, first + args.stop_after)
    rates = len(args.sizes)
    trainer.modules.train()
    for step in range(first, last):
        tokens, features, chips = batches.of(step, rates, args.batch)
        torch.manual_seed(step)
        goals = targets.of(features, chips)
        row = trainer.step(tokens, goals, step % rates, pace=pace(step, args.steps))
        log.append({"step": step, "rate": step % rates} | {k: round(v, 5) for k, v in row.items()})
        if (step + 1) % 20 == 0 or step + 1 == last:
            print(json.dumps(log[-rates:]), flush=True)
            state = {
                "trainer": trainer.state_dict(),
                "step": step + 1,
                "log": log,
                "seconds": time.perf_counter() - started,
                "recipe": recipe,
                "weights_sha256": weights,
            }
            part = checkpoint.with_suffix(".part")
            torch.save(state, part)
            part.replace(checkpoint)
    (args.run / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    if last < args.steps:
        return
    trainer.modules.eval()
    training["seconds"] = round(time.perf_counter() - started, 1)
    (args.run / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    shutil.rmtree(args.run / "model", ignore_errors=True)
    if args.kind != "hyperprior" and not args.no_export:
        # Tables are fitted to what the weights give as they are stored.
        network.load_state_dict({k: v.half().float() for k, v in network.state_dict().items()})
        rows = [r[:: max(1, len(r) // args.sample)] for r in batches.rows]
        sample = [
            piece
            for part, row in zip(parts, rows, strict=True)
            for piece in pieces(features_of(end, part.tokens[row]))
        ]
        pack(args, network, card, trainer.bottleneck, training, sample)


if __name__ == "__main__":
    main()
