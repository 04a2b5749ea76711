"""Find trees: a small detector over the frozen encoder's tokens, at each rate.

    python pipelines/detect_trees.py ../shared/data

A recipe, and a demonstration of its limits: one NEON image of 40 m (OSBS_029) with boxes drawn by
hand. The detector is a pair of convolutions that give, for every token, how near it is to the
middle of a crown, and the crown's width and height (objects as points, Zhou et al. 2019,
arXiv:1904.07850). It learns from three quarters of the image and is tested on the fourth, in turn;
a ring between them trains nothing. Scored by average precision at an overlap of 0.4, the usual one
for crowns, with intervals from a bootstrap over blocks of 10 m. Writes OUT.json and OUT.png;
results of other numbers of steps that are there are kept: training longer is not always better.
"""

import argparse
import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from encoder_bench.encoders import encoder_of
from encoder_bench.images import RGB
from numpy.typing import NDArray
from rich.progress import track
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F

from nec.encoders import Encoder
from nec.encoders.tiling import Tiling, embed_image
from nec.model import RATES, Model, load_model
from nec.rotation import rotate

NAME = "OSBS_029"
PATCH, RING, OVERLAP = 4, 24, 0.4
# Edge of a block that the bootstrap draws, pixels, and draws.
BLOCK, DRAWS = 100, 1000
WIDTH, PEAK, SEED = 48, 3e-3, 0
OURS = "float32"

# Boxes (n, 4) in pixels: left, top, right, bottom.
Boxes = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """Boxes that were found, with their scores."""

    boxes: Boxes
    scores: NDArray[np.float64]


class Detector(nn.Module):
    """Two convolutions from tokens (n, band, y, x) to a heat map and the logarithms of sizes."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(bands, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, 3, 3, padding=1)
        )
        # Crowns are rare: a start that says so.
        nn.init.constant_(self.body[-1].bias[:1], -3.0)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, y, x) of the heat map, and sizes (n, 2, y, x)."""
        out = self.body(tokens)
        return out[:, 0], out[:, 1:]


def read_boxes(path: Path) -> Boxes:
    """Read boxes drawn by hand."""
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    return np.array([[float(r[k]) for k in ("xmin", "ymin", "xmax", "ymax")] for r in rows])


def middles(boxes: Boxes) -> NDArray[np.float64]:
    """Return x and y of the middle of each box, (n, 2)."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def goals(
    boxes: Boxes, shape: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return the heat map (y, x), sizes (2, y, x), and where those are known."""
    heat, sizes = np.zeros(shape, np.float32), np.zeros((2, *shape), np.float32)
    known = np.zeros(shape, bool)
    y, x = np.indices(shape)
    for (cx, cy), box in zip(middles(boxes) / PATCH - 0.5, boxes, strict=True):
        width, height = (box[2:] - box[:2]) / PATCH
        spread = np.maximum((width, height), 1.5) / 6
        bump = np.exp(-(((x - cx) / spread[0]) ** 2 + ((y - cy) / spread[1]) ** 2) / 2)
        heat = np.maximum(heat, bump.astype(np.float32))
        near = bump > 0.6
        near[min(max(round(cy), 0), shape[0] - 1), min(max(round(cx), 0), shape[1] - 1)] = True
        sizes[:, near] = np.log([[width], [height]])
        known |= near
    return heat, sizes, known


def train(
    tokens: NDArray[np.float32], boxes: Boxes, learned: NDArray[np.bool_], steps: int
) -> Detector:
    """Train on the tokens (band, y, x) that are to be learned from, turned and mirrored."""
    heat, sizes, known = goals(boxes, learned.shape)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    detector = Detector(len(tokens))
    optimiser = torch.optim.AdamW(detector.parameters(), PEAK, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK, total_steps=steps)
    planes = [torch.from_numpy(np.asarray(a)) for a in (tokens, heat[None], sizes)]
    planes += [torch.from_numpy(a[None]) for a in (learned, known & learned)]
    for _ in range(steps):
        turn, mirror = int(rng.integers(4)), bool(rng.integers(2))
        x, h, s, m, k = (torch.rot90(p, turn, (1, 2)) for p in planes)
        if mirror:
            x, h, s, m, k = (p.flip(2) for p in (x, h, s, m, k))
        logits, found = detector(x[None])
        if turn % 2:
            s = s.flip(0)  # width and height change places
        share = torch.sigmoid(logits)
        # The penalty-reduced focal loss of Law and Deng 2018 (arXiv:1808.01244).
        hit = torch.where(
            h > 0.95,
            (1 - share) ** 2 * F.logsigmoid(logits),
            (1 - h) ** 4 * share**2 * F.logsigmoid(-logits),
        )
        loss = -(hit * m).sum() / ((h > 0.95) & m).sum().clamp(min=1)
        loss = loss + (F.l1_loss(found[0], s, reduction="none") * k).sum() / k.sum().clamp(min=1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    return detector.eval()


def detect(detector: Detector, tokens: NDArray[np.float32], most: int = 300) -> Found:
    """Return boxes at the peaks of the heat map, those that overlap a better one left out."""
    with torch.inference_mode():
        logits, sizes = detector(torch.from_numpy(tokens)[None])
        share = torch.sigmoid(logits)
        peak = share == F.max_pool2d(share[None], 3, 1, 1)[0]
    heat = np.where(peak[0].numpy(), share[0].numpy(), 0)
    best = np.argsort(-heat.ravel(), kind="stable")[:most]
    y, x = np.unravel_index(best, heat.shape)
    half = np.exp(sizes[0].numpy()[:, y, x].T) * PATCH / 2
    centre = (np.stack([x, y], axis=1) + 0.5) * PATCH
    boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float64)
    kept: list[int] = []
    for at in range(len(boxes)):
        if not kept or overlaps(boxes[[at]], boxes[kept]).max() < OVERLAP:
            kept.append(at)
    return Found(boxes[kept], heat.ravel()[best][kept].astype(np.float64))


def overlaps(one: Boxes, other: Boxes) -> NDArray[np.float64]:
    """Return intersection over union of every pair, (n, m)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.maximum(high - low, 0).prod(-1)
    area = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (one, other)]
    whole: NDArray[np.float64] = common / (area[0][:, None] + area[1][None] - common)
    return whole


def matches(found: Found, truth: Boxes) -> NDArray[np.bool_]:
    """Tell which boxes find a crown that no better one has found."""
    right = np.zeros(len(found.boxes), bool)
    if not len(truth) or not len(found.boxes):
        return right
    free, table = np.ones(len(truth), bool), overlaps(found.boxes, truth)
    for at in np.argsort(-found.scores, kind="stable"):
        best = int(np.argmax(np.where(free, table[at], -1)))
        if free[best] and table[at, best] >= OVERLAP:
            right[at], free[best] = True, False
    return right


def average_precision(
    right: NDArray[np.bool_],
    scores: NDArray[np.float64],
    weights: NDArray[np.float64],
    crowns: float,
) -> float:
    """Return the mean over all crowns of the precision at which each is found, 0 where not."""
    hits = float(weights[right].sum())
    if not hits or not crowns:
        return 0.0
    return float(average_precision_score(right, scores, sample_weight=weights)) * hits / crowns


def scored(found: Found, truth: Boxes, right: NDArray[np.bool_], edge: int) -> dict[str, Any]:
    """Return average precision with its interval over blocks, and recall."""
    across = edge // BLOCK

    def block(boxes: Boxes) -> NDArray[np.intp]:
        at = np.clip(middles(boxes) // BLOCK, 0, across - 1).astype(np.intp)
        return at[:, 1] * across + at[:, 0]

    of_found, of_truth = block(found.boxes), block(truth)
    rng = np.random.default_rng(SEED)
    drawn = []
    for counts in rng.multinomial(across**2, np.full(across**2, across**-2.0), size=DRAWS):
        weights = counts.astype(np.float64)
        drawn.append(
            average_precision(right, found.scores, weights[of_found], weights[of_truth].sum())
        )
    value = average_precision(right, found.scores, np.ones(len(right)), len(truth))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "average_precision": {
            "value": round(value, 4),
            "low": round(float(low), 4),
            "high": round(float(high), 4),
        },
        "boxes_found": len(right),
        "recall_of_all_boxes": round(float(right.sum() / len(truth)), 4),
    }


def standardised(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring bands (band, y, x) to zero mean and one common deviation."""
    centred = tokens - tokens.mean((1, 2), keepdims=True)
    return np.ascontiguousarray(centred / centred.std() * 3, np.float32)


def cross_validated(
    tokens: NDArray[np.float32], boxes: Boxes, edge: int, steps: int
) -> tuple[Found, NDArray[np.bool_]]:
    """Find crowns of each quarter with a detector that has seen the other three."""
    centre = (np.indices((edge // PATCH,) * 2) + 0.5) * PATCH
    parts, right = [], []
    for top, left in ((0, 0), (0, 1), (1, 0), (1, 1)):
        low = np.array([left, top]) * edge / 2
        inside = ((middles(boxes) >= low) & (middles(boxes) < low + edge / 2)).all(1)
        gap = np.max(
            [
                np.maximum(lo - c, c - lo - edge / 2)
                for lo, c in zip(low[::-1], centre, strict=True)
            ],
            axis=0,
        )
        detector = train(tokens, boxes[~inside], gap > RING, steps)
        found = detect(detector, tokens)
        mine = ((middles(found.boxes) >= low) & (middles(found.boxes) < low + edge / 2)).all(1)
        parts.append(Found(found.boxes[mine], found.scores[mine]))
        right.append(matches(parts[-1], boxes[inside]))
    together = Found(
        np.concatenate([p.boxes for p in parts]), np.concatenate([p.scores for p in parts])
    )
    return together, np.concatenate(right)


def grid_of_mean_boxes(boxes: Boxes, edge: int) -> Found:
    """Return boxes of the mean size side by side, in an order by chance: what knows nothing."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).mean(0)
    x, y = np.meshgrid(np.arange(0, edge, width), np.arange(0, edge, height))
    corner = np.stack([x.ravel(), y.ravel()], axis=1)
    scores = np.random.default_rng(SEED).random(len(corner))
    return Found(np.concatenate([corner, corner + np.array([width, height])], axis=1), scores)


def embed(encoder: Encoder, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return tokens (dim, y, x), embedded by overlapping chips."""
    tiling = Tiling()
    height, width = image.shape[1:]
    pad = [(tiling.margin, tiling.margin + -s % tiling.core) for s in (height, width)]
    padded = np.pad(image, ((0, 0), *pad), constant_values=np.nan)
    found = embed_image(encoder, padded, bands=RGB, gsd=0.1, tiling=tiling)
    return found[:, : height // PATCH, : width // PATCH]


def features(model: Model, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return what each row's detector sees, (band, y, x) of tokens."""
    tokens = embed(model.encoder, image)[None]
    rows = {OURS: rotate(tokens[0], model.basis)}
    values = np.ascontiguousarray(np.moveaxis(tokens, 1, -1), np.float32)
    for rate in reversed(RATES):
        compressor = model.compressors[rate]
        back = compressor.decode(compressor.encode(values))
        rows[f"decoded {rate}"] = rotate(np.moveaxis(back[0], -1, 0), model.basis)
    twin = encoder_of(None, model.encoder.network.config)
    rows["untrained twin, float32"] = embed(twin, image)
    bands, height, width = image.shape
    cut = image.reshape(bands, height // PATCH, PATCH, width // PATCH, PATCH)
    rows["raw bands, 4 x 4 pixels of a token"] = cut.transpose(0, 2, 4, 1, 3).reshape(
        -1, height // PATCH, width // PATCH
    )
    return {name: standardised(values) for name, values in rows.items()}


def draw(image: NDArray[np.float32], truth: Boxes, found: Found, out: Path) -> None:
    """Draw boxes by hand beside those that were found, as many as there are crowns."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
    best = found.boxes[np.argsort(-found.scores)[: len(truth)]]
    for ax, boxes, title in zip(
        axes,
        (truth, best),
        (f"{len(truth)} boxes by hand", "float32, the best as many"),
        strict=True,
    ):
        ax.imshow(np.moveaxis(image, 0, -1))
        for left, top, right, bottom in boxes:
            ax.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, ec="yellow", lw=1.2)
            )
        ax.set(title=title, xticks=[], yticks=[])
    figure.savefig(out, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--model", default="nec-tiny", help="a model's name or folder")
    parser.add_argument("--steps", type=int, default=200, help="training steps of a detector")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/detect_trees"))
    args = parser.parse_args()
    model = load_model(args.model)
    folder = args.data / "detection" / "neon_trees"
    with rasterio.open(folder / f"{NAME}.tif") as file:
        image = file.read([1, 2, 3]).astype(np.float32) / 255
    edge = math.gcd(*image.shape[1:])
    if image.shape[1:] != (edge, edge) or edge % BLOCK:
        raise SystemExit(f"{NAME} has shape {image.shape}, not a square of {BLOCK} pixel blocks")
    boxes = read_boxes(folder / f"{NAME}.csv")
    rows: dict[str, Any] = {}
    shown = None
    for name, tokens in track(features(model, image).items(), "detectors"):
        found, right = cross_validated(tokens, boxes, edge, args.steps)
        rows[name] = scored(found, boxes, right, edge)
        rows[name]["parameters"] = sum(p.numel() for p in Detector(len(tokens)).parameters())
        shown = shown or found
    grid = grid_of_mean_boxes(boxes, edge)
    rows["grid of boxes of the mean size"] = scored(grid, boxes, matches(grid, boxes), edge)
    target = args.out.with_suffix(".json")
    before = json.loads(target.read_text()) if target.exists() else {}
    kept = before["steps"] if before.get("weights_sha256") == model.weights_sha256 else {}
    results = {
        "task": f"Tree crowns of {NAME}, {len(boxes)} boxes by hand, a quarter left out in turn",
        "weights_sha256": model.weights_sha256,
        "overlap": OVERLAP,
        "intervals": f"95 %, bootstrap of blocks of {BLOCK} pixels ({DRAWS} draws)",
        "limits": "One image of 40 m: the intervals say nothing of other places. Overlap within "
        "an image flatters all rows alike.",
        "steps": dict(sorted((kept | {str(args.steps): rows}).items(), key=lambda i: int(i[0]))),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=1) + "\n")
    assert shown is not None
    draw(image, boxes, shown, args.out.with_suffix(".png"))
    for name, row in rows.items():
        value = row["average_precision"]
        print(f"{name:38s} AP {value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})")


if __name__ == "__main__":
    main()
