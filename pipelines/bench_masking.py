"""Measures of gradient masking on networks of which it is known whether they mask.

    python pipelines/bench_masking.py ../shared/data --runs runs/masking

A plain narrow VGG11 on EuroSAT RGB at 32 × 32 pixels; one trained on PGD's images; the plain one
with saturated logits; one trained on FGSM's images until that training overfits to the one step
and accuracy under PGD collapses (shown epoch by epoch); one with the spectral penalty, and the
same with its logits scaled to the plain one's margin, because a penalty that only changes the scale
of logits would change some of the measures too. Each measure has its interval over test images,
and its difference to the plain network's (of the overfitted one to that of the PGD-trained), paired
by image; its time is that beside APGD. Networks
are kept, a later call trains none again. About six minutes on one core. Writes
``docs/benchmarks/masking.{json,png}``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from robust_bench.attacked import answers_right
from robust_bench.images import Parts, load_parts
from robust_bench.networks import make
from robust_bench.training import Recipe, train
from torch import Tensor, nn

from nec.robustness import FGSM, PGD, MaskingReport, evaluate, masking_report
from nec.robustness.attacks.attack import Adversary
from nec.robustness.report import MASKED, bootstrap

WIDTH, EPOCHS, SEED = 0.25, 12, 0
# Training on FGSM's images overfits to them in its second half.
FGSM_EPOCHS = 24
# Of training on attacked images and of all measures.
EPSILON = 8 / 255
# Steps of PGD in training; logits times this saturate float32's softmax.
STEPS, SATURATION = 4, 200.0
BETA = 0.2
PLAIN, LED, OVERFITTED = "plain", "PGD-trained", "overfitted to FGSM"


class Scaled(nn.Module):
    """A network with its logits multiplied."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return self.model(images) * self.factor


def trained(
    name: str,
    folder: Path,
    parts: Parts,
    *,
    beta: float = 0.0,
    epochs: int = EPOCHS,
    adversary: Adversary | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a network, or load what an earlier call trained, with its curve and cost."""
    torch.manual_seed(SEED)
    model = make("vgg", WIDTH, int(parts.training.labels.max()) + 1, parts.moments)
    recipe = Recipe(epochs=epochs, bfloat16=True, beta=beta)
    path = folder / f"{name}.pt"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["model"])
        model.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        return model, kept["record"]
    curve: list[dict[str, float]] = []
    probe = parts.validation.first(200)

    def watch() -> None:
        curve.append({"clean": float(answers_right(model, probe.images, probe.labels).mean())})
        if adversary is not None:
            for attack, of in (
                ("FGSM", FGSM(epsilon=adversary.epsilon)),
                ("PGD", PGD(epsilon=adversary.epsilon, steps=10)),
            ):
                outcome = evaluate(model, probe.images, probe.labels, of)
                curve[-1][attack] = outcome.robust_accuracy

    start = time.process_time()
    train(model, recipe, parts.training, seed=SEED, adversary=adversary, watch=watch)
    record = {"train_cpu_seconds": round(time.process_time() - start, 1), "curve": curve}
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "record": record}, part)
    part.replace(path)
    print(f"{name}: {record['train_cpu_seconds']:.0f} s, {curve[-1]}", flush=True)
    return model.eval().requires_grad_(False), record


def difference(report: MaskingReport, other: MaskingReport) -> dict[str, Any]:
    """Return each measure less that of another network, paired by image, with intervals.

    ``zeros`` is the difference of the share of images at exactly zero: saturation silences most
    gradients and makes the few others larger, which a mean hides.
    """
    out: dict[str, Any] = {"than": other.name}
    for measure, values in report.values.items():
        higher = MASKED[measure] == "higher"
        mean = bootstrap(values - other.values[measure])
        zeros = bootstrap((values == 0) * 1.0 - (other.values[measure] == 0))
        if mean.low <= 0 <= mean.high:
            tells = "nothing"
        else:
            tells = "more masked" if (mean.mean > 0) == higher else "less masked"
        # A silent gradient cannot point anywhere, whatever the others do.
        if not higher and zeros.low > 0:
            tells = "more masked"
        out[measure] = {"mean": mean.mean, "low": mean.low, "high": mean.high, "tells": tells}
        out[measure]["zeros"] = {"mean": zeros.mean, "low": zeros.low, "high": zeros.high}
    return out


def draw(results: dict[str, Any], out: Path) -> None:
    """Draw each measure with its interval, then accuracies in training on attacked images."""
    import matplotlib.pyplot as plt

    rows = results["rows"]
    figure, axes = plt.subplots(2, 4, figsize=(15, 6.4), layout="constrained")
    panels = axes.ravel()
    for ax, (measure, change) in zip(panels, MASKED.items(), strict=False):
        for place, row in enumerate(rows.values()):
            mean = row[measure]
            spread = [[mean["mean"] - mean["low"]], [mean["high"] - mean["mean"]]]
            ax.errorbar(mean["mean"], place, xerr=spread, fmt="o", capsize=3)
        left = ax in axes[:, 0]
        ax.set_yticks(range(len(rows)), list(rows) if left else [""] * len(rows), fontsize=8)
        ax.invert_yaxis()
        ax.grid(alpha=0.3)
        ax.set_title(f"{measure.replace('_', ' ')}\n(masking: {change})", fontsize=9)
    panels[0].set_xscale("log")
    for ax, (name, curve) in zip(panels[len(MASKED) :], results["curves"].items(), strict=False):
        for key in curve[0]:
            ax.plot(range(1, len(curve) + 1), [100 * point[key] for point in curve], label=key)
        ax.set_title(f"trained on {name}'s images", fontsize=9)
        ax.set_xlabel("epoch")
        ax.set_ylabel("accuracy, %")
        ax.legend(fontsize=8)
        ax.grid(alpha=0.3)
    for ax in panels[len(MASKED) + len(results["curves"]) :]:
        ax.set_axis_off()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--runs", type=Path, default=Path("runs/masking"))
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--training", type=int, default=2000, help="training images")
    parser.add_argument("--images", type=int, default=200, help="test images that are measured")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/masking"))
    args = parser.parse_args()
    parts = load_parts(args.data, args.split, training=args.training)
    test = parts.test.first(args.images)
    many = PGD(epsilon=EPSILON, steps=STEPS)
    plain, of_plain = trained("plain", args.runs, parts)
    led, of_led = trained("pgd", args.runs, parts, adversary=many)
    overfitted, of_overfitted = trained(
        "fgsm", args.runs, parts, epochs=FGSM_EPOCHS, adversary=FGSM(epsilon=EPSILON)
    )
    regular, of_regular = trained("penalty", args.runs, parts, beta=BETA)

    def measure(name: str, model: nn.Module) -> MaskingReport:
        report = masking_report(model, test.images, test.labels, epsilon=EPSILON, name=name)
        print(f"{name}\n{report.table()}", flush=True)
        return report

    reports = {PLAIN: measure(PLAIN, plain)}
    reports[LED] = measure(LED, led)
    reports["saturated logits"] = measure("saturated logits", Scaled(plain, SATURATION))
    reports[OVERFITTED] = measure(OVERFITTED, overfitted)
    reports["spectral penalty"] = measure("spectral penalty", regular)
    factor = reports[PLAIN].margin / reports["spectral penalty"].margin
    name = "spectral penalty, plain's margin"
    reports[name] = measure(name, Scaled(regular, factor))
    rows = {}
    for name, report in reports.items():
        rows[name] = report.card_row()
        if name != PLAIN:
            # One attack in training is to be told from another, not from none.
            than = LED if name == OVERFITTED else PLAIN
            rows[name]["difference"] = difference(report, reports[than])
        rows[name]["costs"] = {k: cost._asdict() for k, cost in report.costs.items()} | {
            "APGD": report.strong._asdict() if report.strong else None
        }
    results = {
        "task": "EuroSAT RGB, 10 classes, at 32 x 32 pixels; VGG11 of a quarter of its width",
        "training_images": args.training,
        "measured_images": args.images,
        "epochs": EPOCHS,
        "epsilon_255ths": 255 * EPSILON,
        "fgsm_training_epochs": FGSM_EPOCHS,
        "pgd_training_steps": STEPS,
        "saturation": SATURATION,
        "beta": BETA,
        "margin_factor": factor,
        "strong_attack": "APGD, 100 steps",
        "intervals": "95 %, bootstrap of test images (2,000 draws), differences paired by image",
        "threads": torch.get_num_threads(),
        "train_cpu_seconds": {
            PLAIN: of_plain["train_cpu_seconds"],
            LED: of_led["train_cpu_seconds"],
            OVERFITTED: of_overfitted["train_cpu_seconds"],
            "spectral penalty": of_regular["train_cpu_seconds"],
        },
        "curves": {"FGSM": of_overfitted["curve"], "PGD": of_led["curve"]},
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
