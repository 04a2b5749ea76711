"""Write the measured parts of docs/robustness.md.

    python pipelines/write_robustness_page.py

Reads ``docs/benchmarks/robust_lowrank.json`` (see ``bench_robust_lowrank.py``),
``masking.json`` (see ``bench_masking.py``), ``lowrank_encoder.json``,
``distilled_encoder.json`` and ``shipped_lowrank.json`` (see ``bench_lowrank_encoder.py``), where
they are there.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from robust_bench.figure import TITLES
from write_codec_page import percent, table
from write_readme import replace_block

from nec.robustness.report import MASKED


def setting(found: dict[str, Any]) -> str:
    """Return what was trained and attacked, and how."""
    threat = found["threat"]
    budgets = "; ".join(
        f"{name} {', '.join(f'{b:g}' for b in values)}" for name, values in found["budgets"].items()
    )
    networks = " and ".join(
        f"a {TITLES[n]} of {t['width']:g} of its published width "
        f"({t['rows']['dense']['parameters']:,.0f} parameters, "
        f"{t['recipes']['dense']['epochs']} epochs, seeds: {t['seeds']}, attacked on the first "
        f"{t['attacked_images']:,} images)"
        for n, t in found["networks"].items()
    )
    one = any(t["seeds"] == 1 for t in found["networks"].values())
    alone = " Where there is one seed, they tell nothing of another training." if one else ""
    return (
        f"{found['task']}: {networks}, trained on {found['training_images']:,} images, tested on "
        f"{found['test_images']:,} images of the fixed pool. Budgets, 255ths, maximum norm: "
        f"{budgets}. The scaled FGSM goes along the gradient itself, as in the paper; PGD has "
        f"{threat['pgd_steps']} steps, "
        f"APGD {threat['apgd_steps']}, Square {threat['queries']} queries, one start each. "
        f"Intervals: {found['intervals']}.{alone}"
    )


def rows(found: dict[str, Any]) -> str:
    """Return accuracies and differences, a table a network."""
    shown = []
    attacks = [f"{a} {b:g}" for a, budgets in found["budgets"].items() for b in budgets]
    for network, result in found["networks"].items():
        names = list(result["rows"])
        accuracy = [("accuracy, % (95 %)", *names)]
        accuracy += [
            (key, *(percent(result["rows"][n]["accuracy"][key]) for n in names))
            for key in ["clean", *attacks]
        ]
        others = [n for n in names if "difference" in result["rows"][n]]
        change = [("against dense, points (✓: no worse)", *others)]
        for key in [row[0] for row in accuracy[1:]]:
            cells = []
            for n in others:
                row = result["rows"][n]
                sign = " ✓" if row["no_worse"][key] else ""
                cells.append(percent(row["difference"][key], "+") + sign)
            change.append((key, *cells))
        shown.append(f"**{TITLES[network]}**\n\n{table(*accuracy)}\n\n{table(*change)}")
    return "\n\n".join(shown)


def costs(found: dict[str, Any]) -> str:
    """Return parameters, the three compressions and seconds."""
    out = [
        (
            *("network", "parameters", "saved of converted layers", "of the model"),
            *("of operations", "training, CPU s", "last training loss"),
        )
    ]
    for network, result in found["networks"].items():
        for name, row in result["rows"].items():
            saved = row.get("compression")
            kinds = ("layers", "model", "flops")
            cells = ["" if saved is None else f"{100 * saved[k]:.1f} %" for k in kinds]
            out.append(
                (
                    *(f"{TITLES[network]}, {name}", f"{row['parameters']:,.0f}", *cells),
                    *(f"{row['train_cpu_seconds']:.0f}", f"{row['last_loss']:.2f}"),
                )
            )
    return table(*out)


def condition(found: dict[str, Any]) -> str:
    """Return condition numbers before and after, and whether the bound holds."""
    out = [("network", "median before", "median after", "largest", "median bound", "all within")]
    for network, result in found["networks"].items():
        for name, row in result["rows"].items():
            if "condition" in row:
                c = row["condition"]
                numbers = (c["before"], c["median"], c["largest"], c["bound_median"])
                cells = (f"{v:.3g}" for v in numbers)
                within = "yes" if c["within_bound"] else "no"
                out.append((f"{TITLES[network]}, {name}", *cells, within))
    return table(*out)


def curve(found: dict[str, Any]) -> str:
    """Return the points of the curve."""
    keys = found["keys"]
    out = [("β", "τ", "highest rank", "saved of converted layers", *(f"{k}, %" for k in keys))]
    dense = (f"{100 * found['dense'][k]['value']:.1f}" for k in keys)
    out.append(("dense", "", "", "", *dense))
    for point in found["points"]:
        cap = "" if point["cap"] is None else f"{point['cap']:g}"
        if point["varied"] == "falling":
            cap += ", from the start"
        out.append(
            (
                *(f"{point['beta']:g}", f"{point['tau']:g}", cap),
                f"{100 * point['compression']['layers']:.1f} %",
                *(f"{100 * point['accuracy'][k]['value']:.1f}" for k in keys),
            )
        )
    about = (
        f"{TITLES[found['network']]} of {found['width']:g} of its width, "
        f"{found['recipes']['dense']['epochs']} epochs"
    )
    return f"{about}\n\n{table(*out)}"


def speed(found: dict[str, Any]) -> str:
    """Return images a second."""
    out = [("network", "float32, images/s", "bfloat16, images/s")]
    for network, result in found.items():
        for name, row in result["images_per_cpu_second"].items():
            cells = (f"{row[p]:,.0f}" for p in ("float32", "bfloat16"))
            out.append((f"{TITLES[network]}, {name}", *cells))
    first = next(iter(found.values()))
    head = f"Batches of {first['batch']}, one core, medians of passes taken in turn."
    return f"{head}\n\n{table(*out)}"


def masking(found: dict[str, Any]) -> str:
    """Return the measures of each network."""
    heads = [f"{name.replace('_', ' ')} ({change})" for name, change in MASKED.items()]
    out = [("network", "clean, %", "APGD, %", *heads)]
    for name, row in found["rows"].items():
        cells = []
        for measure in MASKED:
            mean = row[measure]
            cell = f"{mean['mean']:.3g} ({mean['low']:.3g} to {mean['high']:.3g})"
            if mean["zeros"] > 0.01:
                cell += f", {100 * mean['zeros']:.0f} % zero"
            told = row.get("difference", {}).get(measure, {}).get("tells")
            cells.append(f"**{cell}**" if told == "more masked" else cell)
        accuracy = (row["clean_accuracy"], row["robust_accuracy"])
        out.append((name, *(f"{100 * a:.1f}" for a in accuracy), *cells))
    head = (
        f"{found['task']}; {found['training_images']:,} training images, {found['epochs']} epochs "
        f"({found['fgsm_training_epochs']} on FGSM's images); "
        f"budget {found['epsilon_255ths']:g} of 255, {found['measured_images']} test images."
    )
    return f"{head}\n\n{table(*out)}"


def masking_costs(found: dict[str, Any]) -> str:
    """Return seconds and images of each measure, and of the strong attack."""
    out = [("", "seconds", "images put through")]
    costs = [row["costs"] for row in found["rows"].values()]
    for name in (*MASKED, "APGD"):
        seconds, images = (median(c[name][k] for c in costs) for k in ("seconds", "images"))
        shown = found["strong_attack"] if name == "APGD" else name.replace("_", " ")
        out.append((shown, f"{seconds:.1f}", f"{images:,.0f}"))
    together = [[sum(c[m][k] for m in MASKED) for c in costs] for k in ("seconds", "images")]
    out.append(
        (
            "the five together",
            *(f"{median(t):,.{d}f}" for t, d in zip(together, (1, 0), strict=True)),
        )
    )
    return table(*out)


def side_by_side(found: dict[str, Any]) -> str:
    """Return what encoders tell and cost beside one of them, such as the low-rank one's."""
    shown = []
    if found.get("steps"):
        shown.append(f"The last run of the low-rank one took {found['steps']:,} steps.")
    if speed := found.get("speed"):
        networks = [("network", "parameters", "float32, chips/s", "bfloat16, chips/s")]
        for name, count in speed["parameters"].items():
            rates = (f"{speed[p][name]['chips_per_second']}" for p in ("float32", "bfloat16"))
            networks.append((name, f"{count:,}", *rates))
        shown.append(table(*networks))
    tasks = {
        "EuroSAT RGB": found.get("eurosat_rgb"),
        "EuroSAT multispectral": found.get("eurosat_multispectral"),
        "UC Merced": found.get("ucmerced"),
        "UC Merced at half its size": found.get("ucmerced_halved"),
        "EuroSAT RGB, heads of nec-tiny": found.get("exchange"),
        "TerraMesh land cover, blocks": found.get("terramesh", {}).get("blocks"),
        "water, blocks": found.get("flood"),
    }
    tables = {
        f"{task}, {head}" if head else task: {
            row: entry[head]["accuracy"] if head else entry["accuracy"]
            for row, entry in of["rows"].items()
            if not head or head in entry
        }
        for task, of in tasks.items()
        if of
        for head in (("linear", "k-NN") if "linear" in next(iter(of["rows"].values())) else ("",))
    }
    attacks = found.get("attacks", {}).get("attacks", {})
    tables |= {
        f"EuroSAT RGB, probe on the mean, {name}": {r: e["accuracy"] for r, e in of.items()}
        for name, of in attacks.items()
    }
    if tables:
        names = list(next(iter(tables.values())))
        head = [name if at == 0 else f"{name}; difference" for at, name in enumerate(names)]
        rows = [("accuracy, % (95 %)", *head)]
        for task, of in tables.items():
            cells = [
                percent(of[n])
                + (f"; {percent(of[n]['difference'], '+')}" if "difference" in of[n] else "")
                if n in of
                else ""
                for n in names
            ]
            rows.append((task, *cells))
        shown.append(table(*rows))
    if size := found.get("bytes"):
        names = list(next(iter(size["bytes_at_accuracy"].values())))
        rows = [("bytes a vector at the accuracy", *names)]
        for level, of in size["bytes_at_accuracy"].items():
            sizes = ("-" if of[n] is None else f"{of[n]:.3f}" for n in names)
            rows.append((f"{float(level):.1%}", *sizes))
        shown.append(table(*rows))
    if moved := found.get("attacks", {}).get("embedding_shift"):
        rows = [("embedding under PGD", "shift", "shift by noise", "nearer to another image")]
        for name, of in moved["networks"].items():
            rows.append((name, f"{of['shift']:.3f}", f"{of['noise']:.3f}", f"{of['lost']:.1%}"))
        shown.append(table(*rows))
    return "\n\n".join(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--page", type=Path, default=Path("docs/robustness.md"))
    parser.add_argument("--folder", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    text = args.page.read_text()
    path = args.folder / "robust_lowrank.json"
    if path.exists():
        results = json.loads(path.read_text())
        for name, write in (
            ("setting", setting),
            ("rows", rows),
            ("costs", costs),
            ("condition", condition),
        ):
            text = replace_block(text, name, write(results))
        for name, write in (("curve", curve), ("speed", speed)):
            if name in results:
                text = replace_block(text, name, write(results[name]))
    path = args.folder / "masking.json"
    if path.exists():
        results = json.loads(path.read_text())
        text = replace_block(text, "masking", masking(results))
        text = replace_block(text, "masking costs", masking_costs(results))
    for block, name in (
        ("encoder", "lowrank_encoder"),
        ("distilled", "distilled_encoder"),
        ("shipped", "shipped_lowrank"),
    ):
        path = args.folder / f"{name}.json"
        if path.exists():
            text = replace_block(text, block, side_by_side(json.loads(path.read_text())))
    args.page.write_text(text)


if __name__ == "__main__":
    main()
