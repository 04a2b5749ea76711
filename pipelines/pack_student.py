"""Fit a basis and compressors to a distilled encoder, and pack it for `nec.load_model`.

    python pipelines/pack_student.py runs/distilled_encoder ../shared/data --out nec/weights/NAME

The run is one of ``distil_encoder.py``. The basis is the student's own, so heads of its teacher
refuse its embeddings: a probe loses many points between the two (docs/robustness.md). All is
fitted to embeddings of the same training images as nec-tiny's; what is held out of them states the
fidelity, and how near the student comes to its teacher.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fit_compressors import fit_rates, held_out, sample_features
from safetensors.torch import load_file, save_file

from nec.encoders.vit import VisionTransformer, VisionTransformerConfig, VisionTransformerEncoder
from nec.lowrank import deploy, load_lowrank
from nec.model import CARD, ENCODER, Model, load_model, sha256_of

Floats = np.ndarray


def agreement(ours: list[Floats], theirs: list[Floats]) -> dict[str, float]:
    """Return how near embeddings (..., dim) come to the teacher's."""
    a, b = (np.concatenate([p.reshape(-1, p.shape[-1]) for p in of]) for of in (ours, theirs))
    there = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    a, b = a[there].astype(np.float64), b[there].astype(np.float64)
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return {
        "cosine_mean": round(float(cosine.mean()), 5),
        "cosine_p01": round(float(np.quantile(cosine, 0.01)), 5),
        "error_share": round(float(((a - b) ** 2).sum() / ((b - b.mean(0)) ** 2).sum()), 5),
    }


def card_text(card: dict[str, Any]) -> str:
    """Return the model card for people."""
    training, encoder = card["training"], card["encoder"]
    kind = (
        "the matrices of its blocks are products of narrow ones (dynamical low-rank training)"
        if card["low_rank"]
        else f"a transformer of width {encoder['width']} and depth {encoder['depth']}"
    )
    near = card["agreement"]
    described = [i for i, asked in enumerate(training["described"], 1) if asked]
    later = " and later" if len(described) > 1 else ""
    beside = (
        f", in stage {described[0]}{later} also to\n  whitened means and roughnesses"
        if described
        else ""
    )
    if any("--whole" in command for command in training["commands"]):
        beside += "; at the end about half of it on\n"
        beside += "  chips whole in all their bands, as they are used"
    commands = "\n".join(training["commands"])
    rows = "\n".join(
        f"| {rate} | {f['bytes_per_vector']:.3f} | {f['cosine_mean']:.4f} | {f['cosine_p01']:.4f} |"
        for rate, f in card["compressors"]["held_out"].items()
    )
    return f"""# {card["name"]}

{card["parameters"] / 1e6:.2f} M parameters that give the embeddings of {training["teacher"]}:
{kind}.
It takes what {training["teacher"]} takes. On images held out of the fit, the mean cosine between
the two is {near["cosine_mean"]:.3f} (1 % of tokens below {near["cosine_p01"]:.3f}), the error
{near["error_share"]:.1%} of the variance. That is not near enough for heads of the one to serve the
other: they are refused, and are to be fitted to its own embeddings.

- **Data**: {training["data"]}, as of {training["teacher"]}; no labels.
- **Training**: stages of {", ".join(map(str, training["steps"]))} steps,
  {training["cpu_hours"]:.1f} CPU-hours from {training["begun"]} on; squared error to
  the teacher's tokens and to their mean{beside}
  (`nec.pretrain.distillation`). The weights are a running average of the last.

```sh
{commands}
```

- **Compressors**: `{card["compressors"]["command"]}`. On embeddings held out of the fit:

| rate | bytes a vector | mean cosine | 1 % cosine |
|---|---|---|---|
{rows}

- **Accuracy of heads** and speed beside {training["teacher"]}, by
  `pipelines/bench_lowrank_encoder.py`: `docs/benchmarks/shipped_lowrank.json`.
- **Licence**: {card["licence"]} for the weights; the images' own licences are as of
  {training["teacher"]}.
- **Limits**: those of {training["teacher"]}; it knows nothing that its teacher does not.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a run of distil_encoder.py")
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--out", type=Path, required=True, help="folder; its name is the model's")
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--count", type=int, default=1000, help="EuroSAT RGB images to fit on")
    args = parser.parse_args()
    teacher = load_model("nec-tiny", precision="bfloat16")
    asked = stages_of(args.run)[-1]["arguments"]
    low_rank = (args.run / "lowrank.safetensors").exists()
    weights = args.run / ("lowrank.safetensors" if low_rank else ENCODER)
    config = teacher.encoder.network.config
    if not low_rank:
        config = VisionTransformerConfig.sized(int(asked["width"]), int(asked["depth"]))
    args.out.mkdir(parents=True, exist_ok=True)
    half = {k: v.half() for k, v in load_file(weights).items()}
    save_file(half, args.out / ENCODER)
    network = load_lowrank(VisionTransformer(config), {k: v.float() for k, v in half.items()})
    if low_rank:
        deploy(network)
    encoder = VisionTransformerEncoder(args.out.name, network, precision="bfloat16")

    (pieces, places), (theirs, _) = (
        sample_features(e, args.data, args.split, count=args.count)
        for e in (encoder, teacher.encoder)
    )
    fidelity = fit_rates(pieces, places, args.out)
    _, held = held_out(places)
    card = {
        "name": args.out.name,
        "encoder": config.to_dict(),
        "low_rank": low_rank,
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights_sha256": sha256_of(args.out / ENCODER),
        "licence": "Apache-2.0",
        "training": training_of(teacher, args.run),
        "agreement": agreement([pieces[i] for i in held], [theirs[i] for i in held]),
        "compressors": {
            "command": f"python pipelines/pack_student.py runs/{args.run.name} ../shared/data "
            f"--out nec/weights/{args.out.name}",
            "held_out": fidelity,
        },
    }
    print(card["agreement"], flush=True)
    (args.out / CARD).write_text(json.dumps(card, indent=1) + "\n")
    (args.out / "README.md").write_text(card_text(card))


def stages_of(run: Path) -> list[dict[str, Any]]:
    """Return what a run says of itself, after the runs that it began with, the first one first.

    They go back to the network that nothing was distilled into.
    """
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    asked = state["stages"][-1]
    if "weights" not in asked:
        return []
    told = {"arguments": asked, "step": state["step"], "cpu_hours": state["cpu_hours"]}
    begun = Path(asked["weights"]).parent
    before = stages_of(begun) if (begun / "checkpoint.pt").exists() else []
    return [*before, told]


def command_of(asked: dict[str, str]) -> str:
    """Return the command of a stage."""
    own = {k: v for k, v in asked.items() if k not in ("data", "weights", "run", "split")}
    options = [f"--run runs/{Path(asked['run']).name}"]
    for name, value in own.items():
        option = f"--{name.replace('_', '-')}"
        if value == "True":
            options.append(option)
        elif value not in ("None", "False"):
            options.append(f"{option} {value}")
    return (
        f"python pipelines/distil_encoder.py ../shared/data {told(asked['weights'])} "
        + " ".join(options)
    )


def told(weights: str) -> str:
    """Return where a stage's first weights are, from the repository."""
    path = Path(weights)
    place = "nec/weights" if (path.parent / CARD).exists() else "runs"
    return f"{place}/{path.parent.name}/{path.name}"


def training_of(teacher: Model, run: Path) -> dict[str, Any]:
    """Return what the card says of the training, after that of a packed model it began with."""
    stages = stages_of(run)
    begun = Path(stages[0]["arguments"]["weights"])
    before: dict[str, Any] = {
        "commands": [],
        "begun": "the low-rank encoder of `pipelines/lowrank_encoder.py`"
        if begun.name.startswith("lowrank")
        else "a network of its shape by `pipelines/pretrain_encoder.py`",
        "steps": [],
        "described": [],
        "cpu_hours": 0.0,
    }
    commands = [command_of(stage["arguments"]) for stage in stages]
    if (begun.parent / CARD).exists():
        packed = json.loads((begun.parent / CARD).read_text())
        before = _until(commands, packed["training"], stages)
        if len(before["commands"]) == len(packed["training"]["commands"]):
            before["commands"].append(packed["compressors"]["command"])
    return {
        "teacher": teacher.name,
        "commands": before["commands"] + commands,
        "begun": before["begun"],
        "steps": before["steps"] + [stage["step"] for stage in stages],
        "described": before["described"]
        + [float(stage["arguments"].get("described", 0)) for stage in stages],
        "cpu_hours": round(before["cpu_hours"] + sum(s["cpu_hours"] for s in stages), 2),
        "seed": 0,
        "data": teacher.card["training"]["data"],
    }


def _until(
    commands: list[str], before: dict[str, Any], stages: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the training of a packed model up to the first of the commands.

    It may have been packed again from stages that began with it.
    """
    there = before["commands"]
    at = there.index(commands[0]) if commands[0] in there else len(there)
    distilled = sum("distil_encoder.py" in command for command in there[:at])
    again = [s for s, own in zip(stages, commands, strict=True) if own in there]
    return before | {
        "commands": there[:at],
        "steps": before["steps"][:distilled],
        "described": before.get("described", [0.0] * len(before["steps"]))[:distilled],
        "cpu_hours": before["cpu_hours"] - sum(s["cpu_hours"] for s in again),
    }


if __name__ == "__main__":
    main()
