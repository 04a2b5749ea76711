"""Find places like this: scene retrieval with a vector index.

    python docs/tutorials/retrieval.py --out tutorial_output/retrieval

The store is the catalog of EuroSAT embeddings that ships with the project.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

import nec
from nec.demo import catalog

NEAREST = 10


def main(out: Path, limit: int | None = None) -> float:
    """Query the index with images of the test pool; return the share of answers of their class.

    Where faiss is installed, ``faiss.IndexFlatIP`` takes the place of scikit-learn's neighbours;
    at 11,000 vectors an exact search is fast enough.
    """
    out.mkdir(parents=True, exist_ok=True)
    images = nec.open(catalog())
    # The pooled vector of each image: dot products in the store are those of the features.
    vectors = images["scene_embedding"]
    place = [d for d in vectors.dims if d not in ("sample", "band")]
    rows = vectors.mean(place).transpose("sample", "band").values
    labels = np.array(images["label"].values.tolist())
    test = images["set"].to_numpy() == "test"
    known, asked = np.flatnonzero(~test), np.flatnonzero(test)[:limit]

    # Centred, or all cosines are near one: the components carry no mean removal.
    middle = rows[known].mean(0)
    unit = normalize(rows - middle)
    index = NearestNeighbors(n_neighbors=NEAREST, metric="cosine").fit(unit[known])
    distance, nearest = index.kneighbors(unit[asked])
    right = labels[known][nearest] == labels[asked][:, None]
    lines = ["query,class,found,cosine"]
    for at, (others, far) in enumerate(zip(nearest[:20], distance[:20], strict=True)):
        lines += [
            f"{asked[at]},{labels[asked[at]]},{labels[known[o]]},{1 - d:.3f}"
            for o, d in zip(others, far, strict=True)
        ]
    (out / "retrieval.csv").write_text("\n".join(lines) + "\n")
    chance = float(np.mean([np.mean(labels[known] == c) for c in labels[asked]]))
    print(
        f"{right.mean():.1%} of the {NEAREST} nearest are of the query's class "
        f"(by chance {chance:.1%}); of the nearest {right[:, 0].mean():.1%}"
    )
    return float(right.mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("tutorial_output/retrieval"))
    args = parser.parse_args()
    main(args.out)
