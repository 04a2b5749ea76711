"""Write the measured parts of docs/codec.md.

    python pipelines/write_codec_page.py

Reads ``docs/benchmarks/codec.json`` (see ``bench_codec.py``), ``fuzz_codec.json`` and
``flip_bits.json``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from codec_bench.tables import store_rows
from write_readme import replace_block

FITTED = "alphaearth: fitted on the north, measured on the south"


def table(*rows: tuple[str, ...]) -> str:
    """Return a table of Markdown; the first row is its head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def percent(value: dict[str, float], sign: str = "") -> str:
    """Return a value with its interval, per cent."""
    mean, low, high = (100 * value[key] for key in ("value", "low", "high"))
    return f"{mean:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def rates(found: dict[str, Any]) -> str:
    """Return what AlphaEarth's half takes, beside the product and what is simpler."""
    rows = [("fitted / measured", "B a vector", "mean cosine", "1 %", "smallest")]
    for name, case in found["cases"].items():
        for goal, point in case["landed"].items():
            rows.append(
                (
                    f"{name}, at {goal}",
                    f"{point['bytes_per_vector']:.3f}",
                    f"{point['cosine_mean']:.5f}",
                    f"{point['cosine_p01']:.4f}",
                    f"{point['cosine_min']:.4f}",
                )
            )
        for row in case.get("product", []):
            size = f"{row['bytes_per_vector']:.1f}"
            rows.append((f"the product, {row['row']}", size, "1", "1", "1"))
    return table(*rows)


def ablation(found: dict[str, Any]) -> str:
    """Return what each part of the codec gives, in bytes at equal fidelity."""
    case = found["cases"][FITTED]
    goals = list(case["bytes_at"])
    rows = [("variant", *(f"B at {goal}" for goal in goals), "bytes against the default")]
    for variant, of in {"default": case, **case["ablation"]}.items():
        changes = of.get("against_default", {})
        rows.append(
            (
                variant,
                *("?" if v is None else f"{v:.3f}" for v in of["bytes_at"].values()),
                ", ".join("?" if v is None else f"{100 * v:+.0f} %" for v in changes.values()),
            )
        )
    return table(*rows)


def galileo(found: dict[str, Any]) -> str:
    """Return the accuracies of a probe on decoded tokens."""
    rows = [("row", "B a vector", "accuracy, % (95 %)", "against float32, points")]
    for name, row in found["rows"].items():
        difference = row["accuracy"].get("difference")
        rows.append(
            (
                name,
                f"{row['bytes_per_vector']:.2f}",
                percent(row["accuracy"]),
                "" if difference is None else percent(difference, "+"),
            )
        )
    return table(*rows)


def points(found: dict[str, Any]) -> str:
    """Return cosines of lone vectors by size, and how often a baseline is better."""
    ours = ("ours", "ours, codebook", "ours, no codebook")
    by_size = [("vectors", "up to B a vector", *ours, "best other")]
    for name, case in found["cases"].items():
        stored = next(iter(case["chunks"].values()))
        others = [row for kind in stored["frontiers"].values() for row in kind]
        for size in (0.5, 1, 2, 4, 8, 16):
            own = (stored["curves"][kind] for kind in ours)
            by_size.append((name, str(size), *(_best(r, size) for r in own), _best(others, size)))
    rows = [
        (
            *("vectors", "to a chunk", "points of baselines better than ours, interpolated"),
            *("compared", "best of baselines above our best of no more bytes", "of"),
        )
    ]
    for name, case in found["cases"].items():
        for chunk, of in case["chunks"].items():
            others = [row for kind in of["frontiers"].values() for row in kind]
            own = of["curves"]["ours"]
            ahead = [row for row in others if row["cosine_mean"] > _within(own, row)]
            rows.append(
                (
                    *(name, str(chunk), str(len(of["beaten_by"])), str(of["compared"])),
                    *(str(len(ahead)), str(len(others))),
                )
            )
    return table(*by_size) + "\n\n" + table(*rows)


def _within(ours: list[dict[str, Any]], row: dict[str, Any]) -> float:
    """Return the best cosine of our points of no more bytes than a row."""
    most = row["bytes_per_vector"]
    return max((p["cosine_mean"] for p in ours if p["bytes_per_vector"] <= most), default=-1.0)


def _best(rows: list[dict[str, Any]], size: float) -> str:
    """Return the best cosine of rows of at most a size, and which row it is where it has a name."""
    within = [row for row in rows if row["bytes_per_vector"] <= size]
    if not within:
        return ""
    best = max(within, key=lambda row: row["cosine_mean"])
    cosine = f"{best['cosine_mean']:.4f}"
    return (
        f"{cosine}, {best['row']} of {best['bytes_per_vector']:.3g} B" if "row" in best else cosine
    )


def overhead(found: dict[str, Any]) -> str:
    """Return bytes over the ideal length of the unrounded model."""
    rows = [("chunk", "rate", "bytes", "ideal", "over", "within 1 % + 32 B")]
    for name, case in found["cases"].items():
        for rate, row in case.items():
            rows.append(
                (
                    name,
                    rate,
                    f"{row['bytes']:,}",
                    f"{row['ideal_bytes']:,.0f}",
                    f"{row['over_bytes']:.0f} B, {100 * row['over_share']:.2f} %",
                    "yes" if row["met"] else "no",
                )
            )
    return table(*rows)


def speed(found: dict[str, Any]) -> str:
    """Return speeds side by side."""
    rows = [("what", "MB of float32, or million coefficients, a CPU-second")]
    for name, row in store_rows(found).items():
        rows.append((name, f"{row['MB_per_cpu_second']:,.0f} MB"))
    for name, row in found["coefficients"]["times"].items():
        rows.append((name, f"{row['Msymbols_per_cpu_second']:,.0f} M"))
    threads = found["threads"]
    return (
        f"{table(*rows)}\n\nDecoding {threads['chunks']} chunks: two threads are "
        f"{threads['two_against_one']:.2f} times as fast as one, two processes, which share no "
        f"lock, {threads['two_processes_against_one']:.2f} times as fast as one."
    )


def subset(found: dict[str, Any]) -> str:
    """Return what parts of a store cost."""
    rows = [("rate", "what", "bytes", "share", "requests")]
    for rate, parts in found["rates"].items():
        for name, row in parts.items():
            share = f"{100 * row['share']:.0f} %"
            rows.append((rate, name, f"{row['bytes']:,}", share, str(row["requests"])))
    return table(*rows)


def seasons(found: dict[str, Any]) -> str:
    """Return what joint coding of four seasons takes against coding each anew."""
    rows = [("case", "cosine", "B anew", "B jointly", "jointly takes")]
    for name, case in found["cases"].items():
        for row in case:
            sizes = (f"{row[k]:.3f}" for k in ("anew", "joint"))
            change = f"{100 * row['joint_over_anew']:+.0f} %"
            rows.append((name, f"{row['cosine']:g}", *sizes, change))
    return table(*rows)


def targets(found: dict[str, Any]) -> str:
    """Return every target and how it came out."""
    rows = [("what", "target", "found", "met")]
    for name in dict(SECTIONS.values()):
        for row in found.get(name, {}).get("targets", []):
            value = row["found"]
            shown = f"{value:.4g}" if isinstance(value, int | float) else str(value)
            rows.append((row["what"], f"{row['target']:g}", shown, "yes" if row["met"] else "no"))
    return table(*rows)


def damage(fuzz: dict[str, Any], flips: dict[str, Any]) -> str:
    """Return what was done to the decoder, in words."""
    return (
        f"- {fuzz['executions']:,} damaged parts, heads and configurations in "
        f"{fuzz['minutes']:g} minutes past the checksums, bounds of arrays checked: "
        f"{fuzz['refused']:,} refused, {fuzz['decoded']:,} decoded to an array of the right shape, "
        f"none crashed; the slowest took {fuzz['slowest_seconds']:g} s, the process "
        f"{fuzz['peak_megabytes']:,} MB.\n"
        f"- {flips['flips']:,} flipped bits and {flips['cuts']:,} cuts of the {flips['objects']} "
        f"objects of sealed stores ({flips['bytes']:,} bytes): {flips['missed']} missed."
    )


SECTIONS = {
    "rates": ("rates", rates),
    "ablation": ("rates", ablation),
    "galileo": ("galileo", galileo),
    "points": ("points", points),
    "overhead": ("overhead", overhead),
    "speed": ("speed", speed),
    "subset": ("subset", subset),
    "seasons": ("time", seasons),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--page", type=Path, default=Path("docs/codec.md"))
    parser.add_argument("--benchmarks", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    found, fuzz, flips = (
        json.loads((args.benchmarks / f"{name}.json").read_text())
        for name in ("codec", "fuzz_codec", "flip_bits")
    )
    text = args.page.read_text()
    for block, (section, write) in SECTIONS.items():
        if section in found:
            text = replace_block(text, block, write(found[section]))
    text = replace_block(text, "targets", targets(found))
    args.page.write_text(replace_block(text, "damage", damage(fuzz, flips)))


if __name__ == "__main__":
    main()
