"""Measure the encoder: what its embeddings tell, what they cost, how fast they are made.

    python pipelines/bench_encoder.py ../shared/data --out docs/benchmarks/encoder

Writes OUT.json and OUT.png; parts that are not asked for keep what an earlier call found with
the same weights. The fixed test pools are in no training of any kind. ``--noiseless``
names the weights (encoder.safetensors) of a twin that was trained without noise, for the
compressibility.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from encoder_bench.classification import (
    against_simpler,
    bench_eurosat_multispectral,
    bench_eurosat_rgb,
    bench_ucmerced,
    with_galileo,
)
from encoder_bench.compressibility import bench_compressibility
from encoder_bench.dense import against_bands, bench_flood, bench_terramesh
from encoder_bench.encoders import HeadlessEncoder, encoder_of
from encoder_bench.figure import draw
from encoder_bench.speed import bench_seams, bench_speed
from measured_parts import run_parts

from nec.encoders.vit import VisionTransformerConfig
from nec.model import load_model, sha256_of

PARTS = (
    *("eurosat_rgb", "eurosat_multispectral", "ucmerced", "terramesh", "flood"),
    *("compressibility", "speed", "seams"),
)
PACKAGES = ("nec", "numpy", "torch", "scikit-learn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/encoder"))
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--model", default="nec-tiny", help="name of the model, or its folder")
    parser.add_argument("--weights", type=Path, help="an encoder.safetensors in its place")
    parser.add_argument("--noiseless", type=Path, help="encoder.safetensors trained without noise")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    logging.getLogger("nec").setLevel(logging.ERROR)
    if args.weights:
        encoder = encoder_of(args.weights, VisionTransformerConfig())
        digest = sha256_of(args.weights)
    else:
        model = load_model(args.model)
        encoder, digest = model.encoder, model.weights_sha256
    config = encoder.network.config
    twin = encoder_of(None, config)
    images, maps = against_simpler(encoder, twin), against_bands(encoder, twin)
    variants = {"noise-trained": encoder, "no head, 192-d": HeadlessEncoder(encoder)}
    if args.noiseless:
        plain = encoder_of(args.noiseless, config)
        variants |= {
            "without noise": plain,
            "without noise, no head, 192-d": HeadlessEncoder(plain),
        }
    jobs = {
        "eurosat_rgb": lambda: bench_eurosat_rgb(args.data, args.split, images),
        "eurosat_multispectral": lambda: bench_eurosat_multispectral(
            args.data, args.split, with_galileo(images, args.data)
        ),
        "ucmerced": lambda: bench_ucmerced(args.data, images, size="both"),
        "terramesh": lambda: bench_terramesh(args.data, maps),
        "flood": lambda: bench_flood(args.data, maps),
        "compressibility": lambda: bench_compressibility(
            args.data, args.split, variants, reference="noise-trained"
        ),
        "speed": lambda: bench_speed(encoder),
        "seams": lambda: bench_seams(args.data, encoder),
    }
    results = run_parts(
        args.out.with_suffix(".json"),
        jobs,
        args.parts,
        show,
        weights=digest,
        packages=PACKAGES,
        about={"parameters": sum(p.numel() for p in encoder.network.parameters())},
    )
    if any("rows" in results.get(part, {}) for part in PARTS):
        draw(results, args.out.with_suffix(".png"))


def show(name: str, part: dict[str, Any]) -> None:
    """Print what a part found."""
    print(f"== {name} ({part['seconds']} s)", flush=True)
    tables = [part] if "rows" in part else [v for v in part.values() if isinstance(v, dict)]
    if not any("rows" in t for t in tables):
        print(json.dumps(part, indent=1))
    for table in (t for t in tables if "rows" in t):
        print(table["task"])
        for row, entry in table["rows"].items():
            heads = entry if "linear" in entry or "k-NN" in entry else {"": entry}
            for head, found in heads.items():
                if not isinstance(found, dict):
                    continue
                value = found["accuracy"]
                line = f"  {row:45s} {head:7s} {100 * value['value']:5.1f}"
                line += f" ({100 * value['low']:.1f}-{100 * value['high']:.1f})"
                if "difference" in value:
                    d = value["difference"]
                    line += (
                        f"  {100 * d['value']:+.1f} ({100 * d['low']:+.1f}, {100 * d['high']:+.1f})"
                    )
                print(line, flush=True)


if __name__ == "__main__":
    main()
