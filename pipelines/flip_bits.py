"""Damage a small sealed store in every way of one bit or one cut: all of it is found and named.

    python pipelines/flip_bits.py tests/golden/v1/tiny.zarr

Every bit of every object is flipped, and every object is cut at every length; `nec verify` has
to name the object each time. Writes docs/benchmarks/flip_bits.json.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from rich.progress import track

import nec
from nec.errors import StoreError


def blamed(store: Path) -> set[str]:
    """Return the objects that verification names."""
    try:
        return {problem.key for problem in nec.verify(store, decode=False).problems}
    except StoreError:  # no root, or of a version that nobody knows
        return {"zarr.json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/flip_bits.json"))
    args = parser.parse_args()
    counts = {"objects": 0, "bytes": 0, "flips": 0, "cuts": 0, "missed": 0}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / args.store.name
        shutil.copytree(args.store, store)
        files = sorted(p for p in store.rglob("*") if p.is_file())
        missed = []
        for file in track(files, description="objects"):
            key, data = file.relative_to(store).as_posix(), file.read_bytes()
            counts["objects"] += 1
            counts["bytes"] += len(data)
            for bit in range(8 * len(data)):
                flipped = bytearray(data)
                flipped[bit // 8] ^= 1 << bit % 8
                file.write_bytes(flipped)
                counts["flips"] += 1
                if key not in blamed(store):
                    missed.append(f"{key}: bit {bit}")
            for length in range(len(data)):
                file.write_bytes(data[:length])
                counts["cuts"] += 1
                if key not in blamed(store):
                    missed.append(f"{key}: cut at {length}")
            file.write_bytes(data)
        assert nec.verify(store).ok
    counts["missed"] = len(missed)
    args.out.write_text(json.dumps({**counts, "examples": missed[:20]}, indent=1) + "\n")
    print(json.dumps(counts))
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
