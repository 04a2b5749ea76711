"""Damage small sealed stores in every way of one bit or one cut: all of it is found and named.

    python pipelines/flip_bits.py tests/golden/v1/tiny.zarr tests/golden/v2/lone.zarr

Every bit of every object is flipped, and every object is cut at every length. What `nec verify`
does for that object has to notice each; a random sample goes through the whole of it, which has
to name the object. Writes docs/benchmarks/flip_bits.json.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from rich.progress import track

import nec
from nec.archive.creation import read_root
from nec.archive.manifest import KEY, check_seal, read_part
from nec.archive.receipts import discrepancy
from nec.errors import StoreError

# One damage in so many goes through the whole verification.
SAMPLED = 400


class Watch:
    """What verification knows of a store that is intact."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.manifest = check_seal((store / KEY).read_bytes(), read_root(store), str(store))
        self.parts = {part.key: part for part in self.manifest.parts}
        self.objects = {}
        for key, part in self.parts.items():
            self.objects |= read_part((store / key).read_bytes(), part, str(store))

    def notices(self, key: str) -> bool:
        """Return whether an object's own check fails."""
        try:
            if key in ("zarr.json", KEY):
                root = read_root(self.store)
                check_seal((self.store / KEY).read_bytes(), root, str(self.store))
            elif key in self.parts:
                data = (self.store / key).read_bytes()
                read_part(data, self.parts[key], str(self.store))
            else:
                return bool(discrepancy(self.store / key, self.objects[key]))
        except StoreError:
            return True
        return False

    def names(self, key: str) -> bool:
        """Return whether the whole verification names an object."""
        try:
            return key in {problem.key for problem in nec.verify(self.store).problems}
        except StoreError:  # no root, or of a version that nobody knows
            return key == "zarr.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/flip_bits.json"))
    args = parser.parse_args()
    counts = {"objects": 0, "bytes": 0, "flips": 0, "cuts": 0, "sampled": 0, "missed": 0}
    rng = np.random.default_rng(0)
    missed: list[str] = []
    for given in args.stores:
        _damage_all(given, counts, missed, rng)
    counts["missed"] = len(missed)
    args.out.write_text(json.dumps({**counts, "examples": missed[:20]}, indent=1) + "\n")
    print(json.dumps(counts))
    raise SystemExit(bool(missed))


def _damage_all(
    given: Path, counts: dict[str, int], missed: list[str], rng: np.random.Generator
) -> None:
    """Flip every bit of a copy of a store, cut every object everywhere, and count."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / given.name
        shutil.copytree(given, store)
        watch = Watch(store)

        def damage(file: Path, broken: bytes | bytearray, what: str) -> None:
            key = file.relative_to(store).as_posix()
            file.write_bytes(broken)
            sampled = rng.integers(SAMPLED) == 0
            counts["sampled"] += int(sampled)
            if not watch.notices(key) or (sampled and not watch.names(key)):
                missed.append(f"{key}: {what}")

        for file in track(sorted(p for p in store.rglob("*") if p.is_file())):
            data = file.read_bytes()
            counts["objects"] += 1
            counts["bytes"] += len(data)
            for bit in range(8 * len(data)):
                flipped = bytearray(data)
                flipped[bit // 8] ^= 1 << bit % 8
                damage(file, flipped, f"bit {bit}")
            for length in range(len(data)):
                damage(file, data[:length], f"cut at {length}")
            counts["flips"] += 8 * len(data)
            counts["cuts"] += len(data)
            file.write_bytes(data)
        assert nec.verify(store).ok


if __name__ == "__main__":
    main()
