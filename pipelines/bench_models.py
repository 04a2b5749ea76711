"""Hold models against one another: what their embeddings tell, and what they cost.

    python pipelines/bench_models.py ../shared/data nec-tiny nec-tiny-2

The first is what the others are paired with: accuracies of the encoder's benchmark by mean and
roughness of the tokens, heads of the first on the others' embeddings, bytes at equal accuracy.
Writes OUT.json; parts that are not asked for keep what an earlier call found with the same weights.
"""

import argparse
import logging
from pathlib import Path

from bench_encoder import show
from encoder_bench.paired import PARTS, paired_jobs
from measured_parts import run_parts

from nec.model import load_model

PACKAGES = ("nec", "numpy", "torch", "scikit-learn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("models", nargs="+", help="names of models, or their folders")
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/models"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    logging.getLogger("nec").setLevel(logging.ERROR)
    models = {model.name: model for model in map(load_model, args.models)}
    if len(models) < 2:
        parser.error(f"{' '.join(args.models)}: name two models or more")
    encoders = {name: model.encoder for name, model in models.items()}
    run_parts(
        args.out.with_suffix(".json"),
        paired_jobs(args.data, args.split, encoders, next(iter(models))),
        args.parts,
        show,
        weights={name: model.weights_sha256 for name, model in models.items()},
        packages=PACKAGES,
    )


if __name__ == "__main__":
    main()
