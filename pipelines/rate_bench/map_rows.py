"""What codes the tokens of scenes, or their raw bands, or describes tokens without an encoder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from codec_bench.baselines import PrincipalComponents, product_quantiser, zstd_bytes
from encoder_bench.dense import PATCH, Tile
from numpy.typing import NDArray

from nec.compressor import Compressor
from nec.rotation import klt
from rate_bench.bands import BAND_CODECS, BandCodec
from rate_bench.eyes import SHIPPED, Eye
from rate_bench.rows import REFERENCE
from rate_bench.tasks import Stopwatch

# Bytes a token of the training scenes that our streams aim at.
SIZES = (0.1, 0.2, 0.3, 0.45, 0.7, 1.0, 1.5, 2.5, 4.0, 8.0, 12.0, 20.0)
PRINCIPAL, PARTS, STEPS = (1, 2, 4, 8, 16, 32), ((1, 8), (2, 8), (4, 8)), (4.0, 2.0, 1.0, 0.5, 0.25)
# Tokens that what is simpler is fitted to.
SIMPLE = 60_000
STREAM = "transform codec"
SEED = 31

Floats = NDArray[np.float32]
Row = tuple[str, str, Callable[[], "Left"]]


@dataclass(frozen=True)
class Left:
    """What a method leaves of the scenes, as tokens (n, dim), its bytes and CPU ms a token."""

    vectors: Floats
    size: float
    encode_ms: float = 0.0
    decode_ms: float = 0.0


def code_tokens(
    grids: list[Floats],
    encode: Callable[[Floats], Any],
    decode: Callable[[Any], Floats],
    size: Callable[[Any], float],
) -> Left:
    """Code the tokens (y, x, dim) of each scene for itself."""
    encoding, decoding = Stopwatch(), Stopwatch()
    out, total = [], 0.0
    for grid in grids:
        with encoding:
            data = encode(grid)
        with decoding:
            back = decode(data)
        out.append(np.asarray(back, np.float32).reshape(-1, grid.shape[-1]))
        total += size(data)
    count = sum(len(part) for part in out)
    each = 1e3 / count
    return Left(
        np.concatenate(out), total / count, encoding.seconds * each, decoding.seconds * each
    )


def code_stream(grids: list[Floats], compressor: Compressor) -> Left:
    """Code each scene as one chunk of a store."""
    compressor.decode(compressor.encode(grids[0][:8, :8]))  # kernels are compiled here
    return code_tokens(grids, compressor.encode, lambda c: compressor.decode(c)[0], len)


def token_rows(grids: list[Floats], eye: Eye) -> Iterator[Row]:
    """Give method, setting and maker of the rows that code tokens."""
    sample = eye.sample

    def floats(kind: str) -> Left:
        return code_tokens(
            grids,
            lambda g: g.astype(kind),
            lambda d: d.astype(np.float32),
            lambda d: float(d.nbytes),
        )

    yield REFERENCE, "", lambda: floats("float32")
    yield "tokens, float16", "", lambda: floats("float16")
    for aim in SIZES:
        yield STREAM, f"{aim:g} B", lambda a=aim: code_stream(grids, eye.fitted(a))
    for rate, compressor in eye.shipped.items():
        yield SHIPPED, rate, lambda c=compressor: code_stream(grids, c)
    flat = np.concatenate([s.reshape(-1, s.shape[-1]) for s in sample])
    flat = flat[np.isfinite(flat).all(1)]
    train = flat[np.sort(np.random.default_rng(SEED).permutation(len(flat))[:SIMPLE])]
    components = PrincipalComponents.fit(train)

    def principal(k: int, scaling: str, packed: bool) -> Left:
        return code_tokens(
            grids,
            lambda g: components.numbers(g.reshape(-1, g.shape[-1]), k, scaling),
            lambda n: components.decode(n, scaling),
            lambda n: zstd_bytes(n, len(n)) if packed else float(n.size),
        )

    for k in PRINCIPAL:
        yield "tokens, PCA-k int8", str(k), lambda k=k: principal(k, "per component", False)
        yield "tokens, PCA-k int8, zstd", str(k), lambda k=k: principal(k, "common", True)
    for parts, bits in PARTS:
        yield (
            "tokens, PQ",
            f"{parts} x {bits}",
            lambda m=parts, b=bits: _product(grids, train, m, b),
        )
    for step in STEPS:
        yield "KLT, uniform steps, order-0", f"{step:g}", lambda s=step: _uniform(grids, train, s)


def _product(grids: list[Floats], train: Floats, parts: int, bits: int) -> Left:
    import faiss

    faiss.omp_set_num_threads(1)
    quantiser = product_quantiser(faiss, train.shape[1], parts, bits)
    quantiser.train(np.ascontiguousarray(train[::3]))
    return code_tokens(
        grids,
        lambda g: quantiser.compute_codes(np.ascontiguousarray(g.reshape(-1, g.shape[-1]))),
        quantiser.decode,
        lambda c: len(c) * parts * bits / 8,
    )


def _uniform(grids: list[Floats], train: Floats, step: float) -> Left | None:
    """Round the KLT's components to one step and count their ideal order-0 code of the scene.

    The tables are the scene's own and not counted, which flatters the row.
    """
    basis = klt([train[:, None, None, :]], whitening=0.0)
    width = step * float((train @ basis).std(0).max())

    def bits(symbols: NDArray[np.int32]) -> float:
        total = 0.0
        for band in symbols.T:
            _, counts = np.unique(band, return_counts=True)
            total -= float((counts * np.log2(counts / len(band))).sum())
        return total / 8

    return code_tokens(
        grids,
        lambda g: np.rint(g.reshape(-1, g.shape[-1]) @ basis / width).astype(np.int32),
        lambda s: (s * np.float32(width)) @ basis.T,
        bits,
    )


def learned_rows(tiles: list[Tile], bands: tuple[str, ...], eye: Eye) -> Iterator[Row]:
    """Give the rows of learned models, each with its own encoder."""
    for name, (encoder, ladder) in eye.learned.items():
        own = replace(eye, encoder=encoder)
        # The encoder runs when a row is asked for, once.
        kept: list[Floats] = []

        def grids(own: Eye = own, kept: list[Floats] = kept) -> list[Floats]:
            if not kept:
                kept.extend(own.embed(tile.image, bands) for tile in tiles)
            return kept

        yield f"{name}, float32", "", lambda g=grids: code_tokens(g(), np.copy, np.copy, _bytes)
        for rate, compressor in ladder.items():
            yield name, rate, lambda g=grids, c=compressor: code_stream(g(), c)


def _bytes(values: Floats) -> float:
    return float(values.nbytes)


def band_rows(tiles: list[Tile], bands: tuple[str, ...], eye: Eye) -> Iterator[Row]:
    """Give the rows that code raw bands, and describe tokens by them without an encoder."""

    def coded(codec: BandCodec, setting: float) -> Left:
        encoding, decoding = Stopwatch(), Stopwatch()
        vectors, total, count = [], 0, 0
        for tile in tiles:
            decoded = []
            for band in tile.image:
                with encoding:
                    data = codec.encode(band, setting)
                with decoding:
                    decoded.append(codec.decode(data, band.shape))
                total += len(data)
            found = eye.embed(np.stack(decoded), bands)
            vectors.append(found.reshape(-1, found.shape[-1]))
            count += found.shape[0] * found.shape[1]
        each = 1e3 / count
        return Left(
            np.concatenate(vectors), total / count, encoding.seconds * each, decoding.seconds * each
        )

    for codec in BAND_CODECS:
        for setting in codec.ladder:
            yield codec.name, f"{setting:g}", lambda c=codec, s=setting: coded(c, s)
    described = [pixel_moments(tile) for tile in tiles]
    known = np.concatenate(described)
    for k in (None, 2, 4, known.shape[1]):
        yield (
            "bands of the token, mean and deviation" + ("" if k is None else ", PCA-k int8"),
            "" if k is None else str(k),
            lambda k=k: _described(known, k),
        )


def pixel_moments(tile: Tile) -> Floats:
    """Return mean and deviation of each band in each token, (token, 2 bands)."""
    bands, height, width = tile.image.shape
    cut = tile.image.reshape(bands, height // PATCH, PATCH, width // PATCH, PATCH)
    both = np.concatenate([cut.mean((2, 4)), cut.std((2, 4))])
    return np.nan_to_num(np.moveaxis(both, 0, -1).reshape(-1, 2 * bands))


def _described(known: Floats, k: int | None) -> Left:
    if k is None:
        return Left(known, float(known.shape[1] * known.itemsize))
    scaled = (known - known.mean(0)) / np.maximum(known.std(0), 1e-6)
    components = PrincipalComponents.fit(scaled)
    numbers = components.numbers(scaled, k, "per component")
    return Left(components.decode(numbers, "per component"), float(k))
