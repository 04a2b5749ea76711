"""Fit the basis and the compressors of a model, and pack it for `nec.load_model`.

    python pipelines/fit_compressors.py runs/pretrain ../shared/data --out nec/weights/nec-tiny

One basis for all rates, fitted to embeddings of training images alone: EuroSAT's training
images (RGB and multispectral) and the Sentinel-2 patches and seasons; no image of a test pool,
no evaluation scene. A fifth of the images is held out of the fit and, but for other seasons of
places that are in it, states the fidelity. A packed model may stand in the place of the run.
"""

import argparse
import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning
from safetensors.torch import load_file, save_file

from nec.compressor import Compressor
from nec.encoders.tiling import Tiling, embed_image
from nec.encoders.vit import VisionTransformer, VisionTransformerConfig, VisionTransformerEncoder
from nec.model import CARD, ENCODER, sha256_of
from nec.scene import ImageCollection

# Low is for classes of scenes, so errors count less at fine frequencies (docs/rates.md); high is
# for maps (docs/heads.md). Bytes are those of the fitting sample.
RATES = {
    "low": {"bytes_per_vector": 0.15, "falloff": 2.2},
    "medium": {"bytes_per_vector": 0.5},
    "high": {"bytes_per_vector": 12.0},
}
# Weak components carry more of what heads use than of the mean squared error.
GAMMA = 0.125
RGB = ("red", "green", "blue")
# Arguments of the pretraining that a card states.
RECIPE = (
    *("steps", "cooldown", "batch", "peak", "optimizer", "width", "depth", "init"),
    *("reconstruction_weight", "statistics_weight", "contrast_weight", "pooling", "bands"),
    *("teacher_weight", "multispectral_every", "least_area", "keep", "last_keep", "noise"),
    "noise_from",
)


def collection_features(
    encoder: VisionTransformerEncoder, folder: Path, files: list[str], bands: tuple[str, ...]
) -> np.ndarray:
    """Return features (sample, y, x, dim) of images of a folder."""
    options = {"bands": bands, "scale": 1e-4} if files[0].endswith(".tif") else {}
    collection = ImageCollection.open(folder, files=files, **options)
    parts = []
    for at in range(0, len(files), 64):
        images = collection.read(at, min(at + 64, len(files)), bands)
        tokens = encoder.embed(torch.from_numpy(images), bands=bands, gsd=10.0)
        parts.append(tokens.permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def sample_features(
    encoder: VisionTransformerEncoder, data: Path, split: Path, *, count: int
) -> tuple[list[np.ndarray], list[str]]:
    """Return features of training imagery: collections in chunks of 100, and scenes.

    And the place of each, the same for several seasons.
    """
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with split.open() as stream:
        train = [row for row in csv.DictReader(stream) if row["set"] == "train"]
    rng = np.random.default_rng(0)
    rgb = [f"{r['label']}/{r['name']}.jpg" for r in train if r["rgb"] == "1"]
    rgb = [rgb[i] for i in rng.permutation(len(rgb))[:count]]
    multispectral = [f"{r['label']}/{r['name']}.tif" for r in train if r["multispectral"] == "1"]
    multispectral = [multispectral[i] for i in rng.permutation(len(multispectral))[: count // 4]]
    bands = ("blue", "green", "red", "nir08", "swir16", "swir22")
    collections = [
        collection_features(encoder, data / "eurosat_rgb", rgb, RGB),
        collection_features(encoder, data / "eurosat_ms", multispectral, bands),
    ]
    pieces = [c[i : i + 100] for c in collections for i in range(0, len(c), 100)]
    places = [f"images {i}" for i in range(len(pieces))]
    tiling = Tiling()
    for folder in ("sentinel2_patches", "sentinel2_seasons"):
        for path in sorted((data / folder).glob("*.tif")):
            with rasterio.open(path) as dataset:
                image = dataset.read([2, 3, 4, 9, 11, 12]).astype(np.float32) / 1e4
            image[:, (image <= 0).any(0)] = np.nan
            image = image[:, :256, :256]
            margin = (tiling.margin, tiling.margin)
            padded = np.pad(image, ((0, 0), margin, margin), constant_values=np.nan)
            features = embed_image(encoder, padded, bands=bands, gsd=10.0, tiling=tiling)
            pieces.append(features.transpose(1, 2, 0))
            seasonal = folder == "sentinel2_seasons"
            places.append(path.stem.rpartition("_")[0] if seasonal else path.stem)
    return pieces, places


def held_out(places: list[str]) -> tuple[list[int], list[int]]:
    """Return which pieces are fitted to, and which of the others are of no place of these."""
    fitted = [i for i in range(len(places)) if i % 5]
    known = {places[i] for i in fitted}
    return fitted, [i for i in range(0, len(places), 5) if places[i] not in known]


def fit_rates(
    pieces: list[np.ndarray], places: list[str], out: Path, *, keep: bool = False
) -> dict[str, dict[str, float]]:
    """Fit a compressor a rate, of one basis, and save it; what it does to pieces held out.

    With `keep` those that are there already are measured.
    """
    fitted, held = held_out(places)
    basis, fidelity = None, {}
    for rate, options in RATES.items():
        if keep:
            compressor = Compressor.load(out / f"{rate}.json")
        else:
            compressor = Compressor.fit(
                [pieces[i] for i in fitted], **options, basis=basis, gamma=GAMMA
            )
            basis = compressor.basis
            compressor.save(out / f"{rate}.json")
        measured = compressor.measure([pieces[i] for i in held])
        fidelity[rate] = measured.to_dict()
        print(rate, "fit", compressor.fidelity, "held out", measured, flush=True)
    return fidelity


def card_text(card: dict) -> str:
    """Return the model card for people."""
    encoder, training = card["encoder"], card["training"]
    commands = "\n".join(training["commands"])
    taught = (
        ", and distillation of Galileo-nano's tokens (Tseng et al., ICML 2025; weights MIT)"
        if float(training["teacher_weight"])
        else ""
    )
    noise = (
        f"; through noise of {float(training['noise']):.0%} of the embedding's variance in the "
        f"steps after {training['noise_from']}, as a codec's rounding makes it"
        if float(training["noise"])
        else ""
    )
    resumed = (
        "\nEach command goes on from the checkpoint of the one before, in the same run folder.\n"
        if len(training["commands"]) > 1
        else ""
    )
    begun = ""
    if training.get("begun"):
        before = training["begun"]
        begun = f" after those of [{before}](../{before}/README.md), from its weights on"
    kept = float(training["last_keep"])
    unmasked = f" (to {kept:.0%} in the last {training['cooldown']} steps)" if kept > 0.25 else ""
    rows = "\n".join(
        f"| {rate} | {f['bytes_per_vector']:.3f} | {f['cosine_mean']:.4f} | {f['cosine_p01']:.4f} |"
        for rate, f in card["compressors"]["held_out"].items()
    )
    return f"""# {card["name"]}

A vision transformer of {card["parameters"] / 1e6:.2f} M parameters that turns each
{encoder["patch_size"]} x {encoder["patch_size"]} pixels of a scene into {encoder["dim"]} numbers,
self-supervised. It takes any subset of {", ".join(encoder["bands"])} as reflectance (`nir` serves
for `nir08`), at ground sampling distances around 10 to 30 m; 8-bit RGB pictures count as
reflectance 0 to 1.

- **Data**: {training["data"]}.
- **Training**: {training["steps"]} steps of {training["batch"]} chips{begun}, seed
  {training["seed"]}, {training["cpu_hours"]:.1f} CPU-hours; two views of each chip, masked to a
  quarter of their tokens{unmasked}; reconstruction of hidden tokens, agreement of the views, a
  linear prediction of each patch's colour and texture from its embedding{taught}{noise}. The
  weights are a running average. Loss curve: `docs/benchmarks/pretrain_encoder.png`; what
  each part gives: `docs/encoder.md`.

```sh
{commands}
```
{resumed}
- **Compressors**: `{card["compressors"]["command"]}`; one basis for all rates. On embeddings held
  out of the fit:

| rate | bytes a vector | mean cosine | 1 % cosine |
|---|---|---|---|
{rows}

- **Accuracy of heads** on its embeddings: `docs/benchmarks/encoder.json`, by
  `pipelines/bench_encoder.py`, and `docs/benchmarks/main_job.json`, by
  `pipelines/bench_main_job.py`.
- **Licence**: {card["licence"]} for the weights; the images' own licences are above.
- **Limits**: a short schedule; few places and seasons, no clouds, no radar. Photos of 0.3 m
  and snow are far from what it has seen.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of the pretraining run")
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--out", type=Path, default=Path("nec/weights/nec-tiny"))
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--count", type=int, default=1000, help="EuroSAT RGB images to fit on")
    parser.add_argument(
        "--keep", action="store_true", help="measure the compressors that are there, fit none"
    )
    args = parser.parse_args()

    config = VisionTransformerConfig()
    half = {k: v.half() for k, v in load_file(args.run / ENCODER).items()}
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(half, args.out / ENCODER)
    network = VisionTransformer(config)
    network.load_state_dict({k: v.float() for k, v in half.items()})
    encoder = VisionTransformerEncoder(args.out.name, network, precision="bfloat16")

    packed = args.run / CARD
    training = json.loads(packed.read_text())["training"] if packed.exists() else None
    pieces, places = sample_features(encoder, args.data, args.split, count=args.count)
    fidelity = fit_rates(pieces, places, args.out, keep=args.keep)
    card = {
        "name": args.out.name,
        "encoder": config.to_dict(),
        "parameters": sum(v.numel() for v in half.values()),
        "weights_sha256": sha256_of(args.out / ENCODER),
        "licence": "Apache-2.0",
        "training": training or training_of(args.run),
        "compressors": {
            "command": command_of(args.run, args.out),
            "held_out": fidelity,
        },
    }
    (args.out / CARD).write_text(json.dumps(card, indent=1) + "\n")
    (args.out / "README.md").write_text(card_text(card))


def command_of(run: Path, out: Path) -> str:
    """Return the command that packs a run, or a packed model anew, as models call it."""
    begun = f"nec/weights/{run.name}" if (run / CARD).exists() else f"runs/{run.name}"
    return (
        f"python pipelines/fit_compressors.py {begun} ../shared/data --out nec/weights/{out.name}"
    )


def training_of(run: Path) -> dict[str, Any]:
    """Return what the card says of the training."""
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    commands = [
        f"python pipelines/pretrain_encoder.py ../shared/data --run runs/{run.name} "
        + " ".join(f"--{k.replace('_', '-')} {stage[k]}" for k in RECIPE if stage[k] != "None")
        for stage in state["stages"]
    ]
    recipe = state["stages"][-1]
    return {
        "commands": commands,
        "begun": None if recipe["init"] == "None" else Path(recipe["init"]).parent.name,
        "steps": state["step"],
        **{
            k: recipe[k]
            for k in ("batch", "noise", "noise_from", "teacher_weight", "cooldown", "last_keep")
        },
        "cpu_hours": state["cpu_hours"],
        "seed": 0,
        "data": "EuroSAT RGB and multispectral, the training side of "
        "catalogs/eurosat/split.csv "
        "(MIT, Helber et al. 2019); 14 Sentinel-2 patches of S2-100K (MIT); 8 Sentinel-2 "
        "images of SSL4EO-S12 v1.1 (CC BY 4.0); Copernicus Sentinel data",
    }


if __name__ == "__main__":
    main()
