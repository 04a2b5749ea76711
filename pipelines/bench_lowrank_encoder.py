"""Hold the low-rank encoder against nec-tiny and against a small dense one.

    python pipelines/bench_lowrank_encoder.py ../shared/data runs/lowrank_encoder
    python pipelines/bench_lowrank_encoder.py ../shared/data runs/lowrank_encoder \
        --small runs/small/encoder.safetensors --small-width 64 --small-depth 10

The run is one of ``lowrank_encoder.py``, or of ``distil_encoder.py`` from it (then with ``--out
docs/benchmarks/distilled_encoder``), or a packed model such as nec/weights/nec-tiny-lowrank; its
network is measured as it would be deployed, by two plain factors a layer. The small network is one
of ``pretrain_encoder.py --width --depth`` with about as many parameters; without its weights it is
timed only. Everything is paired with nec-tiny: speed in both precisions, accuracies of the
encoder's benchmark, nec-tiny's heads on the others' embeddings, bytes at equal accuracy, probes and
embeddings under attack. Writes OUT.json; parts that are not asked for keep what an earlier call
found with the same weights.
"""

import argparse
import json
import logging
from pathlib import Path

from bench_encoder import show
from encoder_bench.attacked import bench_attacks
from encoder_bench.encoders import encoder_of
from encoder_bench.paired import PARTS as PAIRED
from encoder_bench.paired import paired_jobs
from encoder_bench.speed import speed_of
from lowrank_encoder import report_of
from measured_parts import run_parts
from safetensors.torch import load_file

from nec.encoders.vit import VisionTransformer, VisionTransformerConfig, VisionTransformerEncoder
from nec.lowrank import deploy, load_lowrank
from nec.model import CARD, ENCODER, load_model, sha256_of

DENSE, LOWRANK, SMALL = "nec-tiny", "low rank", "small, dense"
PARTS = ("speed", *PAIRED, "attacks")
PACKAGES = ("nec", "numpy", "torch", "scikit-learn")


def main() -> None:
    args = options()
    logging.getLogger("nec").setLevel(logging.ERROR)
    dense = load_model("nec-tiny")
    config = dense.encoder.network.config
    weights, told = args.run / "lowrank.safetensors", args.run / "lowrank.json"
    if (args.run / CARD).exists():
        weights = args.run / ENCODER
    trained = load_lowrank(
        VisionTransformer(config), {k: v.float() for k, v in load_file(weights).items()}
    )
    saved = json.loads(told.read_text()) if told.exists() else report_of(trained, [])
    networks: dict[str, VisionTransformer] = {
        DENSE: load_model("nec-tiny", precision="float32").encoder.network,
        LOWRANK: deploy(trained),
    }
    small = VisionTransformerConfig.sized(args.small_width, args.small_depth)
    timed = {**networks, SMALL: encoder_of(args.small, small).network}
    if args.small:
        networks[SMALL] = timed[SMALL]
    encoders = {
        name: VisionTransformerEncoder(name, network, precision="bfloat16")
        for name, network in networks.items()
    }
    jobs = {
        "speed": lambda: speed_of(timed),
        **paired_jobs(args.data, args.split, encoders, DENSE),
        "attacks": lambda: bench_attacks(args.data, args.split, networks, reference=DENSE),
    }
    run_parts(
        args.out.with_suffix(".json"),
        jobs,
        args.parts,
        show,
        weights={
            DENSE: dense.weights_sha256,
            LOWRANK: sha256_of(weights),
            SMALL: sha256_of(args.small) if args.small else None,
        },
        packages=PACKAGES,
        about={
            "small": small.to_dict(),
            "saved": {key: saved[key] for key in ("trained", "deployed")},
            "layers": saved["layers"],
            "steps": len(saved["log"]),
        },
    )


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("run", type=Path, help="run folder, or a packed model's")
    parser.add_argument("--small", type=Path, help="encoder.safetensors of a small dense network")
    parser.add_argument("--small-width", type=int, default=64)
    parser.add_argument("--small-depth", type=int, default=10)
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/lowrank_encoder"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
