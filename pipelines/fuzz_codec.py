"""Feed damaged bytes to the decoder, past its checksums: no crash, hang or over-allocation.

    NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=/tmp/bounds python pipelines/fuzz_codec.py --minutes 30

Checksums stop nearly all damage at the door, so here parts of chunks are mutated and decoded as
if they had been checked; heads and configurations are mutated as well. The only thing that may
come out is an array of the right shape, or a `ChunkError`. With NUMBA_BOUNDSCHECK, an index out
of bounds in a kernel is an error too. Writes docs/benchmarks/fuzz_codec.json.
"""

import argparse
import json
import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from nec.codec import Coding
from nec.codec.chunk import decode_chunk, decode_parts, encode_chunk
from nec.codec.clustering import fit_clusters
from nec.codec.container import read_head, take_apart
from nec.codec.fitting import fit_coding
from nec.errors import ChunkError

# Seconds that one execution may take, and bytes that the process may hold.
LONGEST, MOST_MEMORY = 2.0, 4 << 30


def seeds() -> list[tuple[Coding, tuple[int, int, int, int], bytes]]:
    """Return small chunks that hold everything a chunk can hold."""
    rng = np.random.default_rng(0)
    found = []
    for block, shape in (
        (16, (1, 3, 20, 18)),
        (8, (2, 4, 9, 12)),
        (64, (1, 2, 30, 40)),
        (1, (6, 3, 1, 1)),
    ):
        values = np.cumsum(np.cumsum(rng.normal(size=shape), -1), -2).astype(np.float32)
        values[:, 0] += 20
        coding, _ = fit_coding(
            [values],
            relative_steps=np.full(shape[1], 0.2, np.float32),
            block=block,
            lagrangian=0.1,
            cosine=0.99,
        )
        last = coding.octaves
        groups = tuple(sorted({1, (last + 1) // 2, last}))
        coding = replace(coding, octave_groups=groups, band_groups=(1, shape[1]), min_cosine=0.97)
        for spread in (1, 1e4, 1e9):
            odd = values.copy()
            odd[..., shape[2] // 2 :, :] *= spread
            odd[:, :, : shape[2] // 3, shape[3] // 2 :] = np.nan
            odd[-1, :, 0, 0] *= -1e-4
            found.append((coding, shape, encode_chunk(odd, coding)))
    shape = (60, 3, 1, 1)
    values = rng.choice(rng.normal(size=(5, 3)), 60)[:, :, None, None].astype(np.float32)
    values += rng.normal(0, 0.02, shape).astype(np.float32)
    steps = np.full(3, 0.1, np.float32)
    coding, _ = fit_clusters(
        [values], 4, relative_steps=steps, block=1, lagrangian=0.1, cosine=0.99
    )
    values[::9] *= -1
    values[:8] = np.nan
    for least in (0.0, 0.97):
        guarded = replace(coding, min_cosine=least)
        found.append((guarded, shape, encode_chunk(values, guarded)))
    return found


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Return data with a few bits, bytes or stretches changed."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        kind = int(rng.integers(6))
        at = int(rng.integers(len(out))) if out else 0
        if kind == 0 and out:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1 and out:
            out[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 2:
            del out[at : at + int(rng.integers(1, 9))]
        elif kind == 3:
            out[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 4 and out:
            out[at : at + 8] = rng.bytes(8)
        elif out:
            other = int(rng.integers(len(out)))
            out[at : at + 8] = out[other : other + 8]
    return bytes(out)


def damage_configuration(rng: np.random.Generator, coding: Coding) -> None:
    """Read a damaged configuration; ChunkError or a coding may come of it."""
    fields = coding.to_dict()
    name = str(rng.choice(sorted(fields)))
    value = fields[name]
    if isinstance(value, str):
        fields[name] = mutate(rng, value.encode()).decode("latin-1")
    else:
        fields[name] = [None, -1, 1 << 40, 1e300, "x", [], [1 << 40]][int(rng.integers(7))]
    Coding.from_dict(fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/fuzz_codec.json"))
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    rng = np.random.default_rng(args.seed)
    pool = [
        (coding, shape, data, take_apart(memoryview(data), coding))
        for coding, shape, data in seeds()
    ]
    for coding, shape, _, parts in pool:  # compiled before anything is timed
        decode_parts(parts, coding, shape)
    begun, slowest = time.monotonic(), 0.0
    counts = {"executions": 0, "refused": 0, "decoded": 0}
    while time.monotonic() - begun < 60 * args.minutes:
        coding, shape, data, parts = pool[int(rng.integers(len(pool)))]
        started = time.perf_counter()
        kind = rng.random()
        try:
            if kind < 0.9:
                chosen = dict(parts)
                for part in rng.choice(sorted(chosen), int(rng.integers(1, 3))):
                    chosen[int(part)] = memoryview(mutate(rng, bytes(chosen[int(part)])))
                values = decode_parts(chosen, coding, shape)
                assert values.shape == shape
            elif kind < 0.95:
                broken = mutate(rng, data)
                read_head(broken, coding)
                if broken != data:
                    decode_chunk(broken, coding, shape)
                    msg = "a damaged chunk was decoded"
                    raise AssertionError(msg)
            else:
                damage_configuration(rng, coding)
            counts["decoded"] += 1
        except ChunkError:
            counts["refused"] += 1
        slowest = max(slowest, time.perf_counter() - started)
        assert slowest < LONGEST, f"one execution took {slowest:.1f} s"
        counts["executions"] += 1
    result = {
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "seed": args.seed,
        "bounds_checked": os.environ.get("NUMBA_BOUNDSCHECK") == "1",
        **counts,
        "slowest_seconds": round(slowest, 3),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
