"""Range coders of others under static tables by scale class: CompressAI's and constriction's.

Every coefficient has a scale class, by its band and its frequency ring; each class has a table
of its own over all values that occur in it. That is what these coders are made for: CompressAI's
takes a table index for each symbol, constriction's is fastest over runs of symbols of one table,
so its symbols come sorted by class. Their tables are counted on the very chunk that is coded,
and sorting, indexes, tables and models are made before the clock runs, all to their favour.
CompressAI's coder takes and gives Python lists: its own models turn arrays into lists and back,
so that is timed both with and without.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PRECISION = 16
CLASSES_AN_OCTAVE = 4


class Static(NamedTuple):
    """Symbols under static tables.

    Attributes
    ----------
    symbols : ndarray of shape (n,), int32
    classes : ndarray of shape (n,), int64
        Table of each symbol.
    tables : list of (int, ndarray)
        Smallest value and counts of each class.
    """

    symbols: NDArray[np.int32]
    classes: NDArray[np.int64]
    tables: list[tuple[int, NDArray[np.int64]]]

    def entropy_bytes(self) -> float:
        """Return the ideal code length."""
        total = 0.0
        for _, counts in self.tables:
            seen = counts[counts > 0]
            total -= (seen * np.log2(seen / seen.sum())).sum()
        return float(total) / 8


class Coder(NamedTuple):
    """A coder: its coded size, and what is timed."""

    size: int
    encode: Callable[[], Any]
    decode: Callable[[], Any]


def static_tables(symbols: NDArray[np.int32], rings: NDArray[np.int64]) -> Static:
    """Give the coefficients of a chunk scale classes by band and ring.

    Parameters
    ----------
    symbols : ndarray of shape (sample, row, column, band, coefficient), int32
    rings : ndarray of shape (coefficient,), int64
    """
    magnitude = np.abs(symbols).mean((0, 1, 2))  # (band, coefficient)
    count = np.bincount(rings)
    mean = np.stack([np.bincount(rings, band) for band in magnitude]) / count
    scale = np.floor(CLASSES_AN_OCTAVE * np.log2(np.maximum(mean, 2.0**-14)))
    of_ring = np.unique(scale, return_inverse=True)[1].reshape(scale.shape)
    classes = np.broadcast_to(of_ring[:, rings], symbols.shape).ravel()
    flat = symbols.ravel()
    tables = []
    for c in range(int(of_ring.max()) + 1):
        own = flat[classes == c]
        low = int(own.min())
        tables.append((low, np.bincount(own - low)))
    return Static(flat, classes.astype(np.int64), tables)


def compressai_coders(static: Static) -> dict[str, Coder]:
    """Return CompressAI's range coder on arrays and on lists; nothing where it is missing."""
    modules = {name: _extension(name) for name in ("ans", "_CXX")}
    if None in modules.values():
        return {}
    tables, lengths, offsets = [], [], []
    for low, counts in static.tables:
        # The last symbol announces values out of range; there are none.
        weights = np.append(np.maximum(counts, 1e-3), 1e-6)
        table = modules["_CXX"].pmf_to_quantized_cdf((weights / weights.sum()).tolist(), PRECISION)
        tables.append(table)
        lengths.append(len(table))
        offsets.append(low)
    symbols, indexes = static.symbols.tolist(), static.classes.tolist()
    encoder, decoder = modules["ans"].RansEncoder(), modules["ans"].RansDecoder()

    def encode(values: list[int] = symbols, which: list[int] = indexes) -> bytes:
        return encoder.encode_with_indexes(values, which, tables, lengths, offsets)

    data = encode()

    def decode(which: list[int] = indexes) -> list[int]:
        return decoder.decode_with_indexes(data, which, tables, lengths, offsets)

    assert decode() == symbols
    return {
        "compressai": Coder(
            len(data),
            lambda: encode(static.symbols.tolist(), static.classes.tolist()),
            lambda: np.array(decode(static.classes.tolist()), np.int32),
        ),
        "compressai, lists": Coder(len(data), encode, decode),
    }


def constriction_coders(static: Static) -> dict[str, Coder]:
    """Return constriction's ANS coder over whole classes; nothing where it is missing."""
    try:
        import constriction
    except ImportError:
        return {}
    stream = constriction.stream
    runs = []
    for c, (low, counts) in enumerate(static.tables):
        own = static.symbols[static.classes == c] - low
        weights = np.maximum(counts, 1e-3) if len(counts) > 1 else np.array([1.0, 1e-6])
        model = stream.model.Categorical(
            (weights / weights.sum()).astype(np.float32), perfect=False
        )
        runs.append((np.ascontiguousarray(own, np.int32), model))

    def encode() -> NDArray[np.uint32]:
        coder = stream.stack.AnsCoder()
        for own, model in reversed(runs):
            coder.encode_reverse(own, model)
        return coder.get_compressed()

    words = encode()

    def decode() -> list[NDArray[np.int32]]:
        coder = stream.stack.AnsCoder(words)
        return [coder.decode(model, len(own)) for own, model in runs]

    for (own, _), found in zip(runs, decode(), strict=True):
        np.testing.assert_array_equal(own, found)
    return {"constriction": Coder(4 * len(words), encode, decode)}


def _extension(name: str) -> Any | None:
    """Load an extension module of CompressAI alone: the package's import needs torchvision."""
    spec = importlib.util.find_spec("compressai")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = next(Path(spec.submodule_search_locations[0]).glob(f"{name}.*.so"), None)
    if file is None:
        return None
    own = importlib.util.spec_from_file_location(f"compressai.{name}", file)
    assert own is not None
    assert own.loader is not None
    module = importlib.util.module_from_spec(own)
    own.loader.exec_module(module)
    return module
