"""What codes the tokens of scenes, or their raw bands, or describes tokens without an encoder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from codec_bench.baselines import PrincipalComponents
from encoder_bench.dense import Tile, moments
from numpy.typing import NDArray

from nec.compressor import Compressor
from nec.rotation import klt
from rate_bench.bands import BAND_CODECS, BandCodec
from rate_bench.coders import STREAM, Coder, Passage, plain, principal, product, stream
from rate_bench.eyes import SHIPPED, Eye
from rate_bench.rows import REFERENCE

# Bytes a token of the training scenes that our streams aim at.
SIZES = (0.1, 0.2, 0.3, 0.45, 0.7, 1.0, 1.5, 2.5, 4.0, 8.0, 12.0, 20.0)
PRINCIPAL, PARTS, STEPS = (1, 2, 4, 8, 16, 32), ((1, 8), (2, 8), (4, 8)), (4.0, 2.0, 1.0, 0.5, 0.25)
# Tokens that what is simpler is fitted to.
SIMPLE = 60_000
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


def code_tokens(grids: list[Floats], coder: Coder) -> Left:
    """Code the tokens (y, x, dim) of each scene for itself."""
    passage = Passage(coder)
    out, total = [], 0.0
    for grid in grids:
        back, size = passage.through(grid)
        out.append(back.reshape(-1, grid.shape[-1]))
        total += size
    count = sum(map(len, out))
    return Left(np.concatenate(out), total / count, *passage.milliseconds(count))


def code_stream(grids: list[Floats], compressor: Compressor) -> Left:
    """Code each scene as one chunk of a store."""
    return code_tokens(grids, stream(compressor, grids[0][:8, :8]))


def token_rows(grids: list[Floats], eye: Eye) -> Iterator[Row]:
    """Give method, setting and maker of the rows that code tokens."""
    yield REFERENCE, "", lambda: code_tokens(grids, plain("float32"))
    yield "tokens, float16", "", lambda: code_tokens(grids, plain("float16"))
    for aim in SIZES:
        yield STREAM, f"{aim:g} B", lambda a=aim: code_stream(grids, eye.fitted(a))
    for rate, compressor in eye.shipped.items():
        yield SHIPPED, rate, lambda c=compressor: code_stream(grids, c)
    flat = np.concatenate([s.reshape(-1, s.shape[-1]) for s in eye.sample])
    flat = flat[np.isfinite(flat).all(1)]
    train = flat[np.sort(np.random.default_rng(SEED).permutation(len(flat))[:SIMPLE])]
    components = PrincipalComponents.fit(train)
    for packed, name in ((False, "tokens, PCA-k int8"), (True, "tokens, PCA-k int8, zstd")):
        for k in PRINCIPAL:
            yield (
                name,
                str(k),
                lambda k=k, p=packed: code_tokens(grids, principal(components, k, p)),
            )
    for parts, bits in PARTS:
        yield (
            "tokens, PQ",
            f"{parts} x {bits}",
            lambda m=parts, b=bits: code_tokens(grids, product(train, m, b)),
        )
    for step in STEPS:
        yield (
            "KLT, uniform steps, order-0",
            f"{step:g}",
            lambda s=step: code_tokens(grids, _uniform(train, s)),
        )


def _uniform(train: Floats, step: float) -> Coder:
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

    return Coder(
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

        yield f"{name}, float32", "", lambda g=grids: code_tokens(g(), plain("float32"))
        for rate, compressor in ladder.items():
            yield name, rate, lambda g=grids, c=compressor: code_stream(g(), c)


def band_rows(tiles: list[Tile], bands: tuple[str, ...], eye: Eye) -> Iterator[Row]:
    """Give the rows that code raw bands, and describe tokens by them without an encoder."""

    def coded(codec: BandCodec, setting: float) -> Left:
        passage = Passage(
            Coder(
                lambda band: (codec.encode(band, setting), band.shape),
                lambda data: codec.decode(*data),
                lambda data: len(data[0]),
            )
        )
        vectors, total, count = [], 0.0, 0
        for tile in tiles:
            parts = [passage.through(band) for band in tile.image]
            total += sum(size for _, size in parts)
            found = eye.embed(np.stack([band for band, _ in parts]), bands)
            vectors.append(found.reshape(-1, found.shape[-1]))
            count += found.shape[0] * found.shape[1]
        return Left(np.concatenate(vectors), total / count, *passage.milliseconds(count))

    for codec in BAND_CODECS:
        for setting in codec.ladder:
            yield codec.name, f"{setting:g}", lambda c=codec, s=setting: coded(c, s)
    described = [moments(tile) for tile in tiles]
    known = np.nan_to_num(np.concatenate([d.reshape(-1, d.shape[-1]) for d in described]))
    for k in (None, 2, 4, known.shape[1]):
        yield (
            "bands of the token, mean and deviation" + ("" if k is None else ", PCA-k int8"),
            "" if k is None else str(k),
            lambda k=k: _described(known, k),
        )


def _described(known: Floats, k: int | None) -> Left:
    if k is None:
        return Left(known, float(known.shape[1] * known.itemsize))
    scaled = (known - known.mean(0)) / np.maximum(known.std(0), 1e-6)
    components = PrincipalComponents.fit(scaled)
    numbers = components.numbers(scaled, k, "per component")
    return Left(components.decode(numbers, "per component"), float(k))
