"""Tables: what the benchmark found, for the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table


def show(sections: dict[str, Any]) -> None:
    """Print tables of the sections that were run, and how each target came out."""
    console = Console(width=165)
    makers = {
        "rates": _rates,
        "galileo": _galileo,
        "points": _points,
        "overhead": _overhead,
        "speed": _speed,
        "subset": _subset,
        "time": _time,
    }
    for name, found in sections.items():
        for table in makers[name](found):
            console.print(table)
    console.print(_targets(sections))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    return table


def _rates(found: dict[str, Any]) -> list[Table]:
    tables = []
    for name, case in found["cases"].items():
        table = _table(
            name,
            "fitted at",
            "B/vector",
            "cosine",
            "1 %",
            "min",
            "variance kept",
            "Gaussian bound, own / fitted statistics, B",
            "gap",
            "fixed kB",
        )
        for point, bound in zip(case["ours"], case["bound"], strict=True):
            gaps = (bound["gap_to_own"], bound["gap_to_fitted"])
            table.add_row(
                f"{point['fitted_cosine']:g}",
                f"{point['bytes_per_vector']:.3f}",
                f"{point['cosine_mean']:.6f}",
                f"{point['cosine_p01']:.5f}",
                f"{point['cosine_min']:.4f}",
                f"{point['variance_kept']:.4f}",
                f"{bound['own_statistics']:.3f} / {bound['fitted_statistics']:.3f}",
                " / ".join("" if g is None else f"{100 * g:+.0f} %" for g in gaps),
                f"{point['fixed_bytes'] / 1e3:.0f}",
            )
        for goal, point in case["landed"].items():
            table.add_row(
                f"landed {goal}", f"{point['bytes_per_vector']:.3f}", f"{point['cosine_mean']:.6f}"
            )
        tables.append(table)
        table = _table(f"{name}: bytes at", *["variant"], *case["bytes_at"], "against the default")
        for variant, of in {"default": case, **case["ablation"]}.items():
            changes = of.get("against_default", {})
            table.add_row(
                variant,
                *("" if v is None else f"{v:.3f}" for v in of["bytes_at"].values()),
                ", ".join("?" if v is None else f"{100 * v:+.1f} %" for v in changes.values()),
            )
        tables.append(table)
    return tables


def _galileo(found: dict[str, Any]) -> list[Table]:
    names = ("row", "B/vector", "accuracy, %", "against float32", "balanced, %", "cosine", "C")
    table = _table("Galileo tokens: linear land-cover probe", *names)
    for name, row in found["rows"].items():
        difference = row["accuracy"].get("difference")
        table.add_row(
            name,
            f"{row['bytes_per_vector']:.3f}",
            _percent(row["accuracy"]),
            "" if difference is None else _percent(difference, "+"),
            f"{100 * row['balanced_accuracy']['value']:.1f}",
            f"{row['cosine_mean']:.5f}" if "cosine_mean" in row else "",
            f"{row['median_C']:g}" if "median_C" in row else "",
        )
    return [table]


def _percent(value: dict[str, float], sign: str = "") -> str:
    mean, low, high = (100 * value[key] for key in ("value", "low", "high"))
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def _points(found: dict[str, Any]) -> list[Table]:
    tables = []
    for name, case in found["cases"].items():
        table = _table(
            f"{name} ({case['fitted_on']} fitted on, {case['vectors']} measured)",
            "row",
            "B/vector: cosine",
        )
        for chunk, of in case["chunks"].items():
            for kind, points in {**of["curves"], **of["frontiers"]}.items():
                shown = points if len(points) < 14 else points[:: len(points) // 12]
                cells = (f"{p['bytes_per_vector']:.3g}: {p['cosine_mean']:.4f}" for p in shown)
                table.add_row(f"{kind} ({chunk} to a chunk)", "  ".join(cells))
            table.add_row(
                f"better than ours ({chunk} to a chunk)",
                f"{len(of['beaten_by'])} of {of['compared']}",
                end_section=True,
            )
        tables.append(table)
    return tables


def _overhead(found: dict[str, Any]) -> list[Table]:
    table = _table(
        "Overhead of a chunk over the unrounded model's ideal",
        "chunk",
        "rate",
        "B/vector",
        "bytes",
        "ideal",
        "over, B",
        "over",
        "rounding / coder / heads, B",
        "segments",
        "<= 1 % + 32 B",
    )
    for name, case in found["cases"].items():
        for rate, row in case.items():
            table.add_row(
                name,
                rate,
                f"{row['bytes_per_vector']:.3f}",
                f"{row['bytes']:,}",
                f"{row['ideal_bytes']:,.0f}",
                f"{row['over_bytes']:.0f}",
                f"{100 * row['over_share']:.2f} %",
                " / ".join(f"{v:.0f}" for v in row["of_it"].values()),
                str(row["segments"]),
                "yes" if row["met"] else "no",
            )
    return [table]


def store_rows(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return what was timed in MB, by name: stores, then the codec alone."""
    rows = dict(found["stores"]["reading"])
    for size, both in found["codec_alone_by_bytes_a_vector"].items():
        rows |= {f"codec alone, {size} B a vector, {name}": row for name, row in both.items()}
    return rows


def _speed(found: dict[str, Any]) -> list[Table]:
    first = _table("Stores", "what", "CPU s", "wall s", "MB a CPU-second", "MB a second")
    for name, row in store_rows(found).items():
        first.add_row(
            name, *(f"{row[k]:.4g}" for k in ("cpu", "wall", "MB_per_cpu_second", "MB_per_second"))
        )
    second = _table("Coefficients of a chunk", "what", "CPU s", "million a CPU-second")
    for name, row in found["coefficients"]["times"].items():
        second.add_row(name, f"{row['cpu']:.4g}", f"{row['Msymbols_per_cpu_second']:.4g}")
    return [first, second]


def _subset(found: dict[str, Any]) -> list[Table]:
    tables = []
    for rate, rows in found["rates"].items():
        names = ("what", "bytes", "share", "requests", "cosine to everything")
        table = _table(f"Reading part of a store, {rate}", *names)
        for name, row in rows.items():
            table.add_row(
                name,
                f"{row['bytes']:,}",
                f"{100 * row['share']:.1f} %",
                str(row["requests"]),
                f"{row['cosine_mean']:.5f}" if "cosine_mean" in row else "",
            )
        tables.append(table)
    return tables


def _time(found: dict[str, Any]) -> list[Table]:
    table = _table("Four seasons together against each anew", "case", "cosine", "B anew", "B joint")
    table.add_column("joint takes", justify="right")
    for name, case in found.get("cases", {}).items():
        for row in case:
            table.add_row(
                name,
                f"{row['cosine']:g}",
                *(f"{row[k]:.3f}" for k in ("anew", "joint")),
                f"{100 * row['joint_over_anew']:+.1f} %",
            )
    return [table]


def _targets(sections: dict[str, Any]) -> Table:
    table = _table("Targets", "what", "target", "found", "met")
    for found in sections.values():
        for row in found.get("targets", []):
            table.add_row(
                row["what"],
                f"{row['target']:g}",
                f"{row['found']:g}",
                "yes" if row["met"] else "NO",
            )
    return table
