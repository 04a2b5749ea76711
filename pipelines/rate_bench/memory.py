"""Peak memory of encoding and of decoding one chunk, each method in a process of its own."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from codec_bench.baselines import PrincipalComponents
from encoder_bench.images import BATCH, image_tokens
from numpy.typing import NDArray

from nec.model import load_model
from nec.rotation import klt
from rate_bench.coders import Coder, principal, product, stream, uniform
from rate_bench.pixels import LADDERS, codec
from rate_bench.tasks import Task

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ENCODER = f"the encoder, {BATCH} images"
SHIPPED = "as shipped, "
SIMPLER = ("tokens, PCA-8 int8, zstd", "tokens, PQ 4 x 8", "KLT, uniform steps, order-0")

Floats = NDArray[np.float32]


def peak_of(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call returns, and by how many MB the process grew while it ran, at most."""
    # The mark of the highest water is set anew.
    _CLEAR.write_text("5")
    before = _kilobytes("VmRSS")
    done = work()
    return done, (_kilobytes("VmHWM") - before) / 1e3


def _kilobytes(name: str) -> int:
    (line,) = (s for s in _STATUS.read_text().splitlines() if s.startswith(f"{name}:"))
    return int(line.split()[1])


def bench_memory(task: Task, model: str, tokens: Floats) -> dict[str, dict[str, float]]:
    """Return peak MB by method, of a chunk of tokens (n, y, x, dim), or of one image's pixels.

    What a method holds beforehand, its tables and compiled code, is not counted, nor is the chunk.
    On systems without ``/proc`` nothing is measured.
    """
    if not _CLEAR.exists():
        return {}
    rates = tuple(load_model(model).compressors)
    names = [ENCODER, *(SHIPPED + rate for rate in rates), *SIMPLER]
    names += [n for n in LADDERS[task.name] if "size" not in n and "mosaic" not in n]
    chunk = np.ascontiguousarray(tokens, np.float32)
    found = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            try:
                found[name] = alone.submit(_peaks, name, task, model, chunk).result()
            except ModuleNotFoundError:
                continue
    return found


def _peaks(name: str, task: Task, model: str, chunk: Floats) -> dict[str, float]:
    if name == ENCODER:
        encoder = load_model(model).encoder
        # Whatever is loaded at the first call is loaded.
        image_tokens(encoder, task.shown(), slice(1))
        _, peak = peak_of(lambda: image_tokens(encoder, task.shown(), slice(BATCH)))
        return {"encode_mb": round(peak, 1)}
    ladder = LADDERS[task.name].get(name)
    coder: Any
    values: Any = chunk
    if ladder is None:
        coder = _coder(name, model, chunk)
        coder.decode(coder.encode(chunk[:1, :4, :4]))
    else:
        values = task.pixels[0]
        coder = codec(name, ladder[len(ladder) // 2])
        if coder is None:
            raise ModuleNotFoundError(name)
        coder.decode(coder.encode(values[:16, :16].copy()))
    data, encoding = peak_of(lambda: coder.encode(values))
    _, decoding = peak_of(lambda: coder.decode(data))
    return {"encode_mb": round(encoding, 1), "decode_mb": round(decoding, 1)}


def _coder(name: str, model: str, chunk: Floats) -> Coder:
    if name.startswith(SHIPPED):
        compressor = load_model(model).compressors[name.removeprefix(SHIPPED)]
        return stream(compressor, chunk[:1, :4, :4])
    train = chunk.reshape(-1, chunk.shape[-1])
    if name == SIMPLER[0]:
        return principal(PrincipalComponents.fit(train), 8, packed=True)
    if name == SIMPLER[1]:
        return product(train, 4, 8)
    return uniform(klt([chunk], whitening=0.0), train, 1.0)
