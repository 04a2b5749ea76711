"""Time what could run the encoder: torch, compiled or not, ONNX Runtime and OpenVINO.

    python pipelines/bench_backends.py ../shared/data --core 0

Batches of chips as a producer makes them of a scene, tokens to embeddings and back included; a row
a runtime and precision, on one thread in one process, run in turn; medians. Cosines are those of
embeddings to torch's in float32. What cannot be run is named with its reason. Writes OUT.json and
OUT.png. Takes about five minutes.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from measured_parts import installed
from production_bench.scenes import real_numbers, write_tiled
from production_bench.throughput import TimedEncoder
from torch import Tensor

import nec
from nec.encoders.openvino import Blocks, block_inputs

REFERENCE, PRODUCER = "torch float32", "torch bfloat16"
PRECISIONS = ("float32", "bfloat16")
PACKAGES = ("nec", "torch", "onnxruntime", "onnx", "openvino", "numpy")
# From 23 on attention is one operator.
OPSET = 23
Row = Callable[[Tensor], Tensor]


def producer_batches(data: Path, edge: int) -> tuple[list[Tensor], dict[str, Any]]:
    """Return the full batches that a producer embeds of a scene, and what it tells of them."""
    model = nec.load_model("nec-tiny")
    timed = TimedEncoder(model.encoder)
    timed.kept = []
    model.__dict__["encoder"] = timed  # where the cached property keeps it
    with tempfile.TemporaryDirectory() as work:
        scene = write_tiled(
            Path(work) / "scene.tif", real_numbers(data), (edge, edge), corner=(409600.0, 6000640.0)
        )
        nec.encode(scene, Path(work) / "store.zarr", model=model, workers=1)
    told = timed.kept[0][1]
    return [chips for chips, _ in timed.kept if len(chips) == model.tiling.batch], told


def torch_row(precision: str, *, compiled: bool, told: dict[str, Any]) -> Row:
    encoder = nec.load_model("nec-tiny", precision=precision).encoder
    if compiled:
        encoder.network.compile()
    return partial(encoder.embed, **told)


def openvino_row(precision: str, *, told: dict[str, Any]) -> Row:
    encoder = nec.load_model("nec-tiny", precision=precision, backend="openvino").encoder
    return partial(encoder.embed, **told)


def narrowed_row(*, told: dict[str, Any]) -> Row:
    """OpenVINO's own choice of what to compute in bfloat16: nearly everything."""
    import openvino

    encoder = nec.load_model("nec-tiny", precision="float32", backend="openvino").encoder
    compile_model = openvino.Core.compile_model

    def narrowed(self: Any, model: Any, device: str, settings: dict[str, Any]) -> Any:
        return compile_model(self, model, device, settings | {"INFERENCE_PRECISION_HINT": "bf16"})

    openvino.Core.compile_model = narrowed
    try:
        encoder = type(encoder)(encoder.name, encoder.network)
    finally:
        openvino.Core.compile_model = compile_model
    return partial(encoder.embed, **told)


def onnx_row(precision: str, example: Tensor, *, told: dict[str, Any]) -> Row:
    """ONNX Runtime; "int8" quantises the weights, and activations as they come."""
    import onnxruntime

    network = nec.load_model("nec-tiny", precision="float32").encoder.network
    index = network.band_index(told["bands"])
    gsd = torch.full((len(example),), told["gsd"])
    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        path = Path(work) / "blocks.onnx"
        blocks = Blocks(network, "bfloat16" if precision == "bfloat16" else "float32")
        inputs = block_inputs(network, example, index, gsd)
        torch.onnx.export(blocks, inputs, path, dynamo=True, opset_version=OPSET, verbose=False)
        if precision == "int8":
            from onnxruntime.quantization import quantize_dynamic

            quantize_dynamic(path, path.with_stem("int8"), op_types_to_quantize=["MatMul"])
            path = path.with_stem("int8")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    names = [slot.name for slot in session.get_inputs()]

    @torch.inference_mode()
    def embed(chips: Tensor) -> Tensor:
        tensors = [tensor.numpy() for tensor in block_inputs(network, chips, index, gsd)]
        found = session.run(None, dict(zip(names, tensors, strict=True)))[0]
        edge = chips.shape[-1] // network.config.patch_size
        return torch.from_numpy(found).transpose(1, 2).reshape(len(chips), -1, edge, edge)

    return embed


def fidelity(found: list[Tensor], reference: list[Tensor]) -> dict[str, float]:
    """Return how far the embeddings are from the reference's, as 1 - cosine: mean, 99 %, most."""
    pairs = zip(found, reference, strict=True)
    cosines = [torch.cosine_similarity(a.double(), b.double(), dim=1).flatten() for a, b in pairs]
    lost = 1 - torch.cat(cosines)
    percentile = float(torch.quantile(lost[:: max(1, len(lost) // 100_000)], 0.99))
    return {
        "mean": float(f"{lost.mean():.4g}"),
        "p99": float(f"{percentile:.4g}"),
        "most": float(f"{lost.max():.4g}"),
    }


def bench(batches: list[Tensor], told: dict[str, Any], repeats: int) -> dict[str, Any]:
    makers: dict[str, Callable[[], Row]] = {}
    for precision in PRECISIONS:
        makers[f"torch {precision}"] = partial(torch_row, precision, compiled=False, told=told)
        makers[f"torch compiled {precision}"] = partial(
            torch_row, precision, compiled=True, told=told
        )
    for precision in (*PRECISIONS, "int8"):
        makers[f"onnxruntime {precision}"] = partial(onnx_row, precision, batches[0], told=told)
    for precision in PRECISIONS:
        makers[f"openvino {precision}"] = partial(openvino_row, precision, told=told)
    makers["openvino all bfloat16"] = partial(narrowed_row, told=told)
    rows: dict[str, Row] = {}
    refused: dict[str, str] = {}
    found: dict[str, list[Tensor]] = {}
    for name, make in makers.items():
        try:
            row = make()
            found[name] = [row(chips).clone() for chips in batches]
            rows[name] = row
        except Exception as error:
            if name in (REFERENCE, PRODUCER):
                raise
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        print(name, refused.get(name, "ready"), flush=True)
    wall: dict[str, list[float]] = {name: [] for name in rows}
    cpu: dict[str, list[float]] = {name: [] for name in rows}
    for repeat in range(repeats):
        chips = batches[repeat % len(batches)]
        for name, row in rows.items():
            start, used = time.perf_counter(), time.process_time()
            row(chips)
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
    producer = statistics.median(cpu[PRODUCER])
    return {
        "rows": {
            name: {
                "seconds": [round(v, 4) for v in wall[name]],
                "cpu_seconds": [round(v, 4) for v in cpu[name]],
                "median_cpu_seconds": round(statistics.median(cpu[name]), 4),
                "times_as_fast_as_producer": round(producer / statistics.median(cpu[name]), 3),
                "one_minus_cosine": fidelity(found[name], found[REFERENCE]),
            }
            for name in rows
        },
        "refused": refused,
    }


def machine() -> dict[str, Any]:
    """Say what this was measured on, and what of a processor matters here."""
    cpu, info = Path("/proc/cpuinfo"), {}
    if cpu.exists():
        lines = [line.partition(":") for line in cpu.read_text().splitlines()]
        info = {key.strip(): value.strip() for key, _, value in lines}
    flags = set(info.get("flags", "").split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    return {
        "processor": info.get("model name", platform.processor() or platform.machine()),
        "features": {name: name in flags for name in wanted},
        "cores_used": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "packages": {name: installed(name) for name in PACKAGES},
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the seconds of a batch, with how much of the cosine each row loses."""
    rows = sorted(result["rows"].items(), key=lambda item: -item[1]["median_cpu_seconds"])
    figure, axis = plt.subplots(figsize=(7.5, 0.42 * len(rows) + 1.1), layout="constrained")
    for at, (name, row) in enumerate(rows):
        colour = "#a53b3b" if name == PRODUCER else "#3b6ea5"
        axis.barh(at, row["median_cpu_seconds"], color=colour)
        lost = row["one_minus_cosine"]["mean"]
        text = f" {row['times_as_fast_as_producer']:.2f} times, 1 - cosine {max(lost, 0):.1e}"
        axis.annotate(text, (row["median_cpu_seconds"], at), va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.margins(x=0.45)
    axis.set_xlabel(f"CPU seconds for {result['batch']} chips of {result['chip_pixels']} pixels")
    axis.set_title("nec-tiny on one thread; red: the default, 1.00", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/backends"))
    parser.add_argument("--edge", type=int, default=512, help="edge of the scene, pixels")
    parser.add_argument("--repeats", type=int, default=9, help="of each timing")
    parser.add_argument("--core", type=int, help="the core to stay on")
    args = parser.parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of exporters, about torch's own future
    batches, told = producer_batches(args.data, args.edge)
    result = {
        "chips": sum(map(len, batches)),
        "batch": len(batches[0]),
        "chip_pixels": int(batches[0].shape[-1]),
        "bands": list(told["bands"]),
        **bench(batches, told, args.repeats),
        "machine": machine(),
    }
    for name, row in result["rows"].items():
        print(name, row["median_cpu_seconds"], row["one_minus_cosine"])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
