"""Fit one head to a store and map it, within so much memory; run as a process of its own.

    python pipelines/out_of_core/work.py '{"step": "biomass", "store": ..., ...}'

Prints what it took as JSON. The limit holds for all writable memory of the process
(RLIMIT_DATA: heap, anonymous mappings, stacks of threads): beyond it allocations fail.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def limit(size: int) -> None:
    """Let no allocation of this process go beyond so many bytes in all."""
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def peak_bytes() -> int:
    """Return the largest resident size so far, shared libraries included.

    Not by getrusage, which counts what the parent took before it became this process.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def open_labels(path: str) -> Any:
    """Open a raster of labels lazily, in windows that take little memory."""
    import rioxarray

    opened: Any = rioxarray.open_rasterio(path, chunks={"x": 4096, "y": 1024}, masked=False)
    return opened.squeeze("band", drop=True)


def fit(told: dict[str, Any], dataset: Any) -> Any:
    """Fit the head of a step, out of what is read lazily."""
    import nec
    from nec.heads import BiomassRegressor, SceneClassifier, Segmenter

    embedding = dataset["embedding"]
    if told["step"] == "points":
        import geopandas

        table = nec.sample(dataset, geopandas.read_file(told["points"]))
        return SceneClassifier().fit(table.filter(regex=r"^band_\d+$"), table["class"])
    labels = open_labels(told["labels"])
    if told["step"] == "biomass":
        return BiomassRegressor(units="%", se_floor=1.0).fit(embedding, labels.where(labels >= 0))
    if told["step"] == "fpn":
        head = Segmenter(decoder="fpn", ignore_index=255, steps=told["steps"], upsampling=4)
        return head.fit(embedding, labels)
    return Segmenter(ignore_index=255).fit(embedding, labels)


def main() -> None:
    told = json.loads(sys.argv[1])
    limit(told["limit"])
    import dask

    import nec
    from nec.heads import write_map

    dask.config.set(scheduler="threads", num_workers=told["workers"])
    start, peaks = time.perf_counter(), {}
    dataset = nec.open(told["store"])
    peaks["opened"] = peak_bytes()
    head = fit(told, dataset)
    fitted, peaks["fitted"] = time.perf_counter(), peak_bytes()
    fetched = dataset.nec.traffic.bytes
    part = dataset["embedding"].isel(y=slice(0, told["rows"]))
    out = write_map(head.predict(part), told["out"])
    peaks["mapped"] = peak_bytes()
    print(
        json.dumps(
            {
                "step": told["step"],
                "fit_seconds": round(fitted - start, 1),
                "map_seconds": round(time.perf_counter() - fitted, 1),
                "cpu_seconds": round(time.process_time(), 1),
                "bytes_fetched_to_fit": fetched,
                "bytes_fetched_to_map": dataset.nec.traffic.bytes - fetched,
                "mapped_tokens": int(part.sizes["y"] * part.sizes["x"]),
                "mapped_share": round(part.sizes["y"] / dataset.sizes["y"], 4),
                "embedding_gib_as_float32": round(dataset["embedding"].nbytes / 2**30, 2),
                "mapped_gib_as_float32": round(part.nbytes / 2**30, 2),
                "map_bytes": sum(
                    f.stat().st_size for f in ([out] if out.is_file() else Path(out).rglob("*"))
                ),
                "limit_bytes": told["limit"],
                "peak_bytes": peaks,
            }
        )
    )


if __name__ == "__main__":
    main()
