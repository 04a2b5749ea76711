"""Compare trained bottlenecks with the transform codec at equal bytes, on training-side images.

    python pipelines/bench_bottleneck.py ../shared/data runs/bottleneck runs/hyperprior
    python pipelines/bench_bottleneck.py ../shared/data runs/bottleneck runs/one@0.15 runs/one@0.5

Photos that were kept out of the bottlenecks' training (and are none of the test pool) are coded
100 to a chunk, and the bytes of those chunks are counted; bits of a run that was not exported, as a
hyperprior's, are an estimate, and marked so. Heads are fitted on decoded embeddings of the photos
that were trained on, on the mean of an image's tokens, and on mean and roughness. Beside the
probe's accuracy stands what share of the float embedding's variance a linear map does not find in
the decoded one: of tokens, and of the whitened mean of an image. Differences are from the transform
codec of the same falloff at the same size; the average byte saving is at equal such shares, over
that codec and over the first run of that falloff. Runs whose names differ after ``@`` are rates of
one row. Writes ``docs/benchmarks/bottleneck.{json,png}``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from codec_bench.baselines import PrincipalComponents
from encoder_bench.probes import probe
from fit_compressors import GAMMA
from numpy.typing import NDArray
from rate_bench.tasks import MEAN, ROUGH, pooled_both
from torch import Tensor
from train_bottleneck import LADDER, SHIPPED, load_network, pieces
from trunk import WEIGHTS, Targets, features_of, load_parts

from nec.bottleneck import Bottleneck, EncoderEnd, TargetPrediction
from nec.compressor import Compressor
from nec.evaluate import RateCurve
from nec.model import ENCODER, load_model, sha256_of

BASE = "transform codec"
SHARES = tuple(WEIGHTS)
SCALING = "per component"
# Of the training photos, those that heads learn from; and components of pooled vectors.
PROBED = 2400
POOLED = (8, 16, 32)
TRAINING = "training.json"
# Points below the floats that the plot goes to.
SHOWN = 14


def row_of(run: Path) -> str:
    """Return the row of a run: runs of single rates share one."""
    return run.name.partition("@")[0]


def base_of(falloff: float) -> str:
    """Return the row that bottlenecks of a falloff are compared with."""
    return BASE if falloff == 1 else f"{BASE}, falloff {falloff:g}"


def code(compressor: Compressor, features: Tensor) -> tuple[Tensor, NDArray[np.float64]]:
    """Return decoded features (n, dim, y, x), and the bytes of each image: its chunk's share."""
    decoded, sizes = [], []
    for piece in pieces(features):
        data = compressor.encode(piece)
        decoded.append(compressor.decode(data))
        sizes += [len(data) / len(piece)] * len(piece)
    return torch.from_numpy(np.concatenate(decoded)).permute(0, 3, 1, 2), np.array(sizes)


def estimate(
    bottleneck: Bottleneck, features: Tensor, rate: int
) -> tuple[Tensor, NDArray[np.float64]]:
    """Return decoded features and estimated bytes of each image."""
    with torch.no_grad():
        parts = [bottleneck(f, rate) for f in features.split(50)]
    bits = torch.cat([p.bits for p in parts])
    return torch.cat([p.features for p in parts]), bits.double().numpy() / 8


def average_saving(
    ours: list[tuple[float, float]], base: list[tuple[float, float]]
) -> float | None:
    """Return the mean share of bytes saved at equal quality, of (bytes, unexplained share).

    Bytes and shares are interpolated in logarithms, over the range that both reach.
    """
    own, other = (RateCurve.of((size, -np.log(share)) for size, share in p) for p in (ours, base))
    saving = own.saving_over(other)
    return None if saving is None else round(saving, 4)


def savings_over(base: str, name: str, rows: dict[str, list[dict]]) -> dict[str, float | None]:
    """Return the mean share of bytes that a row saves over another, at equal shares of each kind.

    A row of one rate has no curve.
    """
    if len(rows[name]) == 1:
        return {}
    return {
        share: average_saving(
            *(
                [(r["bytes_per_image"], r["unexplained"][share]) for r in rows[n]]
                for n in (name, base)
            )
        )
        for share in SHARES
    }


def part_of(state: dict, name: str) -> dict[str, Tensor]:
    """Return the weights of a part of what trained."""
    modules = state["trainer"]["modules"]
    return {k.removeprefix(f"{name}."): v for k, v in modules.items() if k.startswith(f"{name}.")}


def told(name: str, rows: list[dict]) -> str:
    """Name a row for readers."""
    return name.replace("_", " ") + (" (estimated)" if rows[0]["estimated"] else "")


def plot(table: dict, out: Path) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(1, 4, figsize=(17, 4), layout="constrained")
    colours = plt.get_cmap("tab20").colors
    for (name, rows), colour in zip(table["rows"].items(), colours, strict=False):
        size = [r["bytes_per_image"] for r in rows]
        style = {"marker": "o", "linestyle": ":" if rows[0]["estimated"] else "-", "color": colour}
        for ax, pooling in zip(axes, (MEAN, ROUGH), strict=False):
            values = [100 * r["accuracy"][pooling]["value"] for r in rows]
            ax.plot(size, values, label=told(name, rows), **style)
        for ax, share in zip(axes[2:], ("embedding", "mean"), strict=True):
            ax.plot(size, [r["unexplained"][share] for r in rows], **style)
    for ax, pooling in zip(axes, (MEAN, ROUGH), strict=False):
        for name, row in table["alone"][pooling].items():
            value = 100 * row["accuracy"]["value"]
            if row["bytes_per_image"]:
                where = (row["bytes_per_image"], value)
                ax.plot(*where, "k+")
                ax.annotate(name, where, fontsize=7, ha="right", va="bottom")
            elif name == "float":
                ax.axhline(value, color="grey", linewidth=1)
    titles = (
        "linear probe of the mean, %",
        "linear probe of mean and roughness, %",
        "tokens: unexplained",
        "whitened mean: unexplained",
    )
    for ax, title in zip(axes, titles, strict=True):
        ax.set(xscale="log", xlabel="bytes an image", title=title)
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xticks((10, 30, 100, 300), ("10", "30", "100", "300"))
    for ax, pooling in zip(axes, (MEAN, ROUGH), strict=False):
        best = 100 * table["alone"][pooling]["float"]["accuracy"]["value"]
        ax.set_ylim(best - SHOWN, best + 2)
        ax.set_xlim(left=2)  # room for names of the smallest
    low = [n for n, r in table["rows"].items() if _far(r, table["alone"])]
    if low:
        axes[0].set_title(f"{', '.join(low)}: below", loc="right", fontsize=8, y=0.01)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    figure.savefig(out, dpi=120)


def _far(rows: list[dict], alone: dict[str, dict[str, dict]]) -> bool:
    """Say whether a row lies below what is shown of accuracies on the mean."""
    least = alone[MEAN]["float"]["accuracy"]["value"] - SHOWN / 100
    return all(row["accuracy"][MEAN]["value"] < least for row in rows)


class Rows:
    """Decoded embeddings of each row at each size: what is left in them, and what a probe tells.

    Parameters
    ----------
    labels : ndarray of shape (n,), str
    train, test : ndarray of int
        Photos that heads and maps are fitted on, and that are told of.
    goals : dict of str to Tensor
        What decoded embeddings are to tell of each photo.
    """

    def __init__(
        self,
        labels: NDArray[np.str_],
        train: NDArray[np.intp],
        test: NDArray[np.intp],
        goals: dict[str, Tensor],
    ) -> None:
        self.labels, self.train, self.test, self.goals = labels, train, test, goals
        self.rows: dict[str, list[dict]] = {}
        self._vectors: dict[tuple[str, str, float], NDArray[np.float32]] = {}

    def add(
        self, name: str, aim: float, decoded: Tensor, size: NDArray[np.float64], *, estimated: bool
    ) -> None:
        """Add what is decoded, (n, dim, y, x), at an aim of bytes a vector; and bytes by photo."""
        row = {
            "bytes_per_vector": aim,
            "bytes_per_image": round(float(size[self.test].mean()), 3),
            "estimated": estimated,
            "unexplained": self._unexplained(decoded),
            "accuracy": {},
        }
        self.rows.setdefault(name, []).append(row)
        for pooling, vector in pooled_both(decoded.numpy()).items():
            self._vectors[pooling, name, aim] = vector
        print(name, row, flush=True)

    def add_compressors(self, name: str, features: Tensor, ladder: dict[float, Compressor]) -> None:
        """Add compressors of features (n, dim, y, x)."""
        for aim, compressor in ladder.items():
            # Images that a head is fitted on share no chunk with those it is tested on.
            decoded, size = torch.empty_like(features), np.empty(len(features))
            for part in (self.train, self.test):
                decoded[part], size[part] = code(compressor, features[part])
            self.add(name, aim, decoded, size, estimated=False)

    def _unexplained(self, decoded: Tensor) -> dict[str, float]:
        sizes = {k: v.shape[-1] for k, v in self.goals.items()}
        judge = TargetPrediction(decoded.shape[1], sizes, WEIGHTS)
        judge.start(decoded[self.train], {k: v[self.train] for k, v in self.goals.items()})
        with torch.no_grad():
            found = judge(decoded[self.test], {k: v[self.test] for k, v in self.goals.items()})
        return {k: round(float(found[k]), 5) for k in self.goals}

    def probe(self, bases: dict[str, str]) -> None:
        """Probe all rows, each paired at its size with the row that `bases` names."""
        for aim in LADDER:
            for pooling in (MEAN, ROUGH):
                here = {n: v for (p, n, a), v in self._vectors.items() if (p, a) == (pooling, aim)}
                for base in sorted(set(bases.values())):
                    own = {n: v for n, v in here.items() if bases[n] == base}
                    found = self.probed(own | {base: here[base]}, base)
                    for name in own:
                        (row,) = (r for r in self.rows[name] if r["bytes_per_vector"] == aim)
                        row["accuracy"][pooling] = found[name]

    def probed(self, vectors: dict[str, NDArray[np.float32]], reference: str) -> dict[str, dict]:
        """Return accuracies of a linear probe, paired with one of the rows."""
        known = self.train[:: max(1, len(self.train) // PROBED)]
        found = probe(
            vectors,
            self.labels,
            [(known, self.test)],
            np.arange(len(self.labels)),
            reference=reference,
            heads=("linear",),
        )
        return {name: entry["linear"]["accuracy"] for name, entry in found.items()}

    def pooled(self, floats: Tensor) -> dict[str, dict[str, dict]]:
        """Return accuracies of float embeddings, and of vectors of images, by pooling."""
        told = {}
        for pooling, vector in pooled_both(floats.numpy()).items():
            components = PrincipalComponents.fit(vector[self.train])
            sizes = {f"PCA-{k} int8": k for k in POOLED}
            vectors = {"float": vector} | {
                name: components.decode(components.numbers(vector, k, SCALING), SCALING)
                for name, k in sizes.items()
            }
            told[pooling] = {
                name: {"bytes_per_image": sizes.get(name), "accuracy": accuracy}
                for name, accuracy in self.probed(vectors, "float").items()
            }
        return told


def learned_row(
    rows: Rows, run: Path, state: dict[str, Any], model: Path, tokens: NDArray[np.float16]
) -> None:
    """Add the rates of a run: its own end of the encoder, and its compressors or estimates."""
    recipe = state["recipe"]
    aims = [float(size) for size in recipe["sizes"].split()]
    end = EncoderEnd(load_network(model)[0], blocks=int(recipe["blocks"]))
    end.load_state_dict(part_of(state, "end"))
    features = features_of(end, tokens)
    if (run / "ladder").exists():
        ladder = {aim: Compressor.load(run / "ladder" / f"{aim}.json") for aim in aims}
        rows.add_compressors(row_of(run), features, ladder)
        return
    bands = None if recipe["rank"] == "None" else int(recipe["rank"])
    bottleneck = Bottleneck(
        features.shape[1],
        len(aims),
        kind=recipe["kind"],
        rank=bands,
        falloff=float(recipe["falloff"]),
    )
    bottleneck.load_state_dict(part_of(state, "bottleneck"))
    bottleneck.eval()
    for rate, aim in enumerate(aims):
        rows.add(row_of(run), aim, *estimate(bottleneck, features, rate), estimated=True)


def main() -> None:
    args = options()
    states = {
        run.name: torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
        for run in args.runs
    }
    check_runs(states, args)
    depths = {state["recipe"]["blocks"] for state in states.values()}
    if len(depths) > 1:
        raise SystemExit(f"runs train {depths} last blocks: compare runs of one depth")
    network, _ = load_network(args.model)
    end = EncoderEnd(network, blocks=int(depths.pop()))
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
    train, test = np.flatnonzero(~photos.held_out), np.flatnonzero(photos.held_out)
    floats = features_of(end, parts[0].tokens)
    chips = torch.from_numpy(parts[0].chips[:, :3].astype(np.float32))
    chips = torch.cat((chips, torch.full_like(chips, torch.nan)), 1)
    goals = Targets(network, floats[train], SHARES).of(floats, chips)
    # Bands that photos lack teach nothing here.
    goals = {k: v[..., ~v.flatten(0, -2)[0].isnan()] for k, v in goals.items()}
    rows = Rows(photos.labels, train, test, goals)

    def spread(at: NDArray[np.intp]) -> NDArray[np.intp]:
        return at[:: max(1, len(at) // args.sample)]

    sample = pieces(floats[spread(train)])
    sample += pieces(features_of(end, parts[1].tokens[spread(np.arange(len(parts[1].tokens)))]))
    falloffs = {row_of(run): float(states[run.name]["recipe"]["falloff"]) for run in args.runs}
    basis, bases = None, {"as shipped": BASE}
    for falloff in sorted({1.0, *falloffs.values()}):
        fitted = {}
        for size in LADDER:
            fitted[size] = Compressor.fit(
                sample, bytes_per_vector=size, basis=basis, gamma=GAMMA, falloff=falloff
            )
            basis = fitted[size].basis
        rows.add_compressors(base_of(falloff), floats, fitted)
        bases[base_of(falloff)] = BASE
    shipped = load_model(args.model).compressors
    # The rate of maps is of another size.
    rates = {size: shipped[rate] for rate, size in SHIPPED.items() if rate != "high"}
    rows.add_compressors("as shipped", floats, rates)
    for run in args.runs:
        learned_row(rows, run, states[run.name], args.model, parts[0].tokens)
        bases[row_of(run)] = base_of(falloffs[row_of(run)])
    rows.probe(bases)
    first = {falloffs[row_of(run)]: row_of(run) for run in reversed(args.runs)}
    saving = {
        name: {
            other: savings_over(other, name, rows.rows)
            for other in dict.fromkeys((bases[name], first[falloff]))
            if other != name
        }
        for name, falloff in falloffs.items()
    }
    table = {
        "command": "python pipelines/bench_bottleneck.py ../shared/data "
        + " ".join(f"runs/{run.name}" for run in args.runs),
        "photos": {"train": len(train), "probed": PROBED, "test": len(test)},
        "alone": rows.pooled(floats),
        "rows": rows.rows,
        "bases": bases,
        "bytes_saved_over": saving,
        "training": {run.name: json.loads((run / TRAINING).read_text()) for run in args.runs},
    }
    args.out.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
    plot(table, args.out.with_suffix(".png"))
    print(json.dumps(saving, indent=1))


def check_runs(states: dict[str, Any], args: argparse.Namespace) -> None:
    """Refuse runs that are not done, or that are of another encoder; SystemExit says which."""
    weights = sha256_of(args.model / ENCODER)
    for run in args.runs:
        state = states[run.name]
        if state["step"] < int(state["recipe"]["steps"]) or not (run / TRAINING).exists():
            raise SystemExit(f"{run} is at step {state['step']}: run its command to the end")
        if state.get("weights_sha256", weights) != weights:
            raise SystemExit(f"{run} is of another encoder than {args.model}: give its --model")


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of train_bottleneck.py")
    parser.add_argument("--model", type=Path, default=Path("nec/weights/nec-tiny"))
    parser.add_argument("--tokens", type=Path, default=Path("runs/trunk"))
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--others", type=int, default=1536)
    parser.add_argument("--sample", type=int, default=800, help="as the bottlenecks' tables had")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/bottleneck"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
