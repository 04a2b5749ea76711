"""Speed: reading and writing stores, and coding coefficients against the range coders of others.

The embedding is the AlphaEarth crop, mirrored to 512 x 512: 16 chunks of 128 x 128 in 4 shards.
Everything is timed in this process, run by run in turn, and given as medians. CPU time counts
all threads; caches are warm. Rows of one core keep all threads on one: cores that share units of
one another, as virtual ones may, take more CPU time for the same work when both are busy.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec

import nec
from codec_bench import data
from codec_bench.entropy import ChunkCoder
from codec_bench.rivals import Coder, compressai_coders, constriction_coders, static_tables
from nec.codec import NecCodec
from nec.compressor import Compressor
from nec.rotation import rotate

EDGE, CHUNK, SHARD = 512, 128, 256
SIZE = 0.5  # bytes a vector
# Of the codec alone too; nec-tiny's rate for maps is about the last.
SIZES = (2.0, 12.0)
RUNS, CODER_RUNS, THREAD_RUNS = 31, 7, 101
LEAST = {
    "read": ("MB/s of float32 a CPU-second, xr.open_zarr(store, chunks=None).load()", 600.0),
    "read_one_core": ("the same, all threads on one core", 600.0),
    "decode_compressai": ("symbol decoder against CompressAI's", 20.0),
    "decode_constriction": ("symbol decoder against constriction's", 3.0),
    "encode_compressai": ("symbol encoder against CompressAI's", 10.0),
    "threads": ("two threads against one, decoding", 1.8),
}

Times = dict[str, dict[str, float]]


def bench_speed(folder: Path) -> dict[str, Any]:
    """Time stores, coefficients and threads."""
    crop = data.alphaearth(folder).to_numpy()
    compressor = Compressor.fit(crop, bytes_per_vector=SIZE)
    others = [Compressor.fit(crop, bytes_per_vector=size, basis=compressor.basis) for size in SIZES]
    features = data.mirrored(crop, EDGE)
    embedding = rotate(np.moveaxis(features, -1, 0), compressor.basis)
    stores = _stores(features, embedding, compressor)
    alone = _codec_alone(embedding, [compressor, *others])
    coefficients = _coefficients(embedding[:, :CHUNK, :CHUNK], compressor)
    threads = _threads(embedding, compressor)
    found = {
        "read": stores["reading"]["nec, chunks=None"]["MB_per_cpu_second"],
        "read_one_core": stores["reading"]["nec, chunks=None, one core"]["MB_per_cpu_second"],
        "threads": threads["two_against_one"],
        **{k: v for k, v in coefficients["ratios_cpu"].items() if k in LEAST},
    }
    return {
        "note": f"{__doc__.splitlines()[2]} {' '.join(__doc__.splitlines()[3:])}",
        "stores": stores,
        "codec_alone_by_bytes_a_vector": alone,
        "coefficients": coefficients,
        "threads": threads,
        "targets": [
            {"what": what, "target": least, "found": found[key], "met": found[key] >= least}
            for key, (what, least) in LEAST.items()
            if key in found
        ],
    }


def timed(jobs: dict[str, Callable[[], Any]], runs: int) -> Times:
    """Run jobs in turn, after a first time that does not count; give medians in seconds."""
    return _medians(_taken(jobs, runs))


def _taken(jobs: dict[str, Callable[[], Any]], runs: int) -> dict[str, list[tuple[float, float]]]:
    """Run jobs in turn; give CPU and wall seconds of each round but the first."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for run in range(runs + 1):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            if run:
                taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return taken


def _medians(taken: dict[str, list[tuple[float, float]]]) -> Times:
    return {
        name: {
            "cpu": statistics.median(c for c, _ in pairs),
            "wall": statistics.median(w for _, w in pairs),
            "cpu_fastest": min(c for c, _ in pairs),
        }
        for name, pairs in taken.items()
    }


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep all threads of this process, those that are there and new ones, on one core."""
    before = os.sched_getaffinity(0)
    threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    try:
        for thread in threads:
            os.sched_setaffinity(thread, {min(before)})
        yield
    finally:
        for task in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(task.name), before)


def _stores(
    features: NDArray[np.float32], embedding: NDArray[np.float32], compressor: Compressor
) -> dict[str, Any]:
    """Time writing a store, and reading it against the null codec's, with and without dask."""
    array = data.placed(features)
    megabytes = embedding.nbytes / 1e6
    with tempfile.TemporaryDirectory() as folder:
        ours, null = Path(folder) / "nec.zarr", Path(folder) / "null.zarr"
        nec.encode(array, ours, model=compressor, workers=1)
        _null_store(null, embedding)
        payload = sum(f.stat().st_size for f in (ours / "embedding/c").rglob("*") if f.is_file())

        def read(store: Path, **options: Any) -> Callable[[], Any]:
            return lambda: xr.open_zarr(store, **options).load()

        reading = timed(
            {
                f"{name}, {how}": read(store, **options)
                for name, store in (("nec", ours), ("null codec", null))
                for how, options in (("chunks=None", {"chunks": None}), ("dask", {}))
            },
            RUNS,
        )
        with on_one_core():
            reading |= timed(
                {
                    f"{name}, chunks=None, one core": read(store, chunks=None)
                    for name, store in (("nec", ours), ("null codec", null))
                },
                RUNS,
            )
    return {
        "float32_MB": round(megabytes, 2),
        "bytes_per_vector": round(payload / EDGE**2, 4),
        "reading": _rounded(_with_rates(reading, megabytes)),
    }


def _codec_alone(embedding: NDArray[np.float32], compressors: list[Compressor]) -> dict[str, Any]:
    """Time chunks to bytes and back on one thread, without a store, by bytes a vector."""
    parts = [np.ascontiguousarray(embedding[:, y, x]) for y, x in _chunks()]
    out = {}
    for compressor in compressors:
        codec = NecCodec(compressor.coding)
        coded = [codec.encode_array(part) for part in parts]

        def decode(codec: NecCodec = codec, coded: list[bytes] = coded) -> None:
            for chunk, part in zip(coded, parts, strict=True):
                codec.decode_array(chunk, part.shape)

        def encode(codec: NecCodec = codec) -> None:
            for part in parts:
                codec.encode_array(part)

        times = timed({"decode": decode, "encode": encode}, CODER_RUNS)
        size = sum(map(len, coded)) / EDGE**2
        out[f"{size:.3g}"] = _rounded(_with_rates(times, embedding.nbytes / 1e6))
    return out


def _with_rates(times: Times, megabytes: float) -> Times:
    for entry in times.values():
        entry["MB_per_cpu_second"] = megabytes / entry["cpu"]
        entry["MB_per_second"] = megabytes / entry["wall"]
    return times


def _null_store(path: Path, embedding: NDArray[np.float32]) -> None:
    root = zarr.create_group(path, zarr_format=3)
    bands = len(embedding)
    array = root.create_array(
        "embedding",
        shape=embedding.shape,
        chunks=(bands, CHUNK, CHUNK),
        shards=(bands, SHARD, SHARD),
        dtype="float32",
        fill_value=float("nan"),
        serializer=BytesCodec(endian="little"),
        compressors=None,
        dimension_names=("band", "y", "x"),
    )
    array[:] = embedding
    zarr.consolidate_metadata(path)


def _chunks() -> list[tuple[slice, slice]]:
    steps = [slice(i, i + CHUNK) for i in range(0, EDGE, CHUNK)]
    return [(y, x) for y in steps for x in steps]


def _coefficients(chunk: NDArray[np.float32], compressor: Compressor) -> dict[str, Any]:
    """Time coding the coefficients of a chunk: ours with its contexts, others with tables."""
    ours = ChunkCoder(chunk, compressor.coding)
    static = static_tables(ours.symbols, ours.rings)
    coders = {
        "nec": Coder(ours.size, ours.encode, ours.decode),
        **compressai_coders(static),
        **constriction_coders(static),
    }
    jobs: dict[str, Callable[[], Any]] = {"nec decide and encode": ours.decide_and_encode}
    for name, coder in coders.items():
        jobs |= {f"{name} decode": coder.decode, f"{name} encode": coder.encode}
    times = timed(jobs, CODER_RUNS)
    symbols = ours.symbols.size
    for entry in times.values():
        entry["Msymbols_per_cpu_second"] = symbols / entry["cpu"] / 1e6
    ratios = {
        f"{what}_{name}": round(times[f"{name} {what}"]["cpu"] / times[f"nec {what}"]["cpu"], 2)
        for what in ("decode", "encode")
        for name in coders
        if name != "nec"
    }
    return {
        "note": "all coefficients of a chunk of 128 x 128 x 64, zeros included, from array to "
        "array. nec walks its contexts; `decide and encode` is its encoder from the transform's "
        "floats on. The others code the same coefficients with static tables by scale class, "
        "counted on this chunk; `lists` leaves out turning arrays into the lists that CompressAI "
        "takes and gives.",
        "symbols": symbols,
        "share_of_zeros": round(float((ours.symbols == 0).mean()), 5),
        "static_tables": len(static.tables),
        "static_entropy_bytes": round(static.entropy_bytes()),
        "bytes": {name: coder.size for name, coder in coders.items()},
        "times": _rounded(times),
        "ratios_cpu": ratios,
    }


def _threads(embedding: NDArray[np.float32], compressor: Compressor) -> dict[str, Any]:
    """Time decoding 64 chunks by one thread and by two, and by one process and by two.

    Each takes its half in one task, so what is timed is decoding and no pool's queue. Two
    processes share no lock, so their gain is what the machine's cores have to give.
    """
    codec = NecCodec(compressor.coding)
    shape = (len(embedding), CHUNK, CHUNK)
    coded = [codec.encode_array(np.ascontiguousarray(embedding[:, y, x])) for y, x in _chunks()]
    # Long enough that starting and ending do not count: 64 chunks of 1024 x 1024 vectors.
    coded = 4 * coded
    state = (codec, coded, shape)
    spawned = multiprocessing.get_context("spawn")
    with (
        ThreadPoolExecutor(2) as two,
        ThreadPoolExecutor(1) as one,
        ProcessPoolExecutor(2, spawned, _keep, state) as processes,
        ProcessPoolExecutor(1, spawned, _keep, state) as process,
    ):

        def decode(chunks: list[bytes]) -> None:
            for chunk in chunks:
                codec.decode_array(chunk, shape)

        half = len(coded) // 2
        taken = _taken(
            {
                "one": lambda: list(one.map(decode, [coded])),
                "two": lambda: list(two.map(decode, [coded[:half], coded[half:]])),
                "one process": lambda: list(process.map(_decode_kept, [2 * half])),
                "two processes": lambda: list(processes.map(_decode_kept, [half, half])),
            },
            THREAD_RUNS,
        )

    def ratio(first: str, second: str) -> float:
        # Of runs next to each other: what a host lends varies by the second.
        pairs = zip(taken[first], taken[second], strict=True)
        return round(statistics.median(a / b for (_, a), (_, b) in pairs), 3)

    return {
        "chunks": len(coded),
        "times": _rounded(_medians(taken)),
        "two_against_one": ratio("one", "two"),
        "two_processes_against_one": ratio("one process", "two processes"),
    }


_kept: tuple[NecCodec, list[bytes], tuple[int, ...]]


def _keep(*state: Any) -> None:
    global _kept  # noqa: PLW0603 (a worker's own)
    _kept = state  # type: ignore[assignment]
    _decode_kept(1)


def _decode_kept(count: int) -> None:
    codec, coded, shape = _kept
    for chunk in coded[:count]:
        codec.decode_array(chunk, shape)


def _rounded(times: Times) -> Times:
    return {name: {k: float(f"{v:.5g}") for k, v in of.items()} for name, of in times.items()}
