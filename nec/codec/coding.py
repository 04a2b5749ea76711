"""`Coding`: every number that a chunk is coded with, as it stands in `zarr.json`."""

import hashlib
import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.codec.contexts import (
    FLAG_CONTEXTS,
    MAGNITUDES,
    NEIGHBOURHOODS,
    RINGS,
    SCALES,
    Parameters,
)
from nec.codec.tables import TOTAL, cumulate, unpack
from nec.errors import ChunkError

FORMAT_VERSION = 0
BLOCKS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Coding:
    """Configuration of the codec; equal codings have equal digests.

    Attributes
    ----------
    block : int
        Edge of a transform block, tokens: 1, 2, 4, 8 or 16.
    steps : tuple of float
        Quantiser step of each band, exact float32 values.
    offsets : tuple of 4 int
        Taken from the magnitude of an oscillating coefficient of magnitude 0, 1, 2 and above
        on reconstruction, in sixteenths of a step.
    lagrangian : float
        Squared error, in steps, that the encoder takes for a bit; of no concern to a decoder.
    scale, activity, mean, weight : str
        `nec.codec.model.Parameters`, packed.
    flags : str
        Frequency of "nothing here" in each flag context, packed uint16.
    table_of : str
        Row of `tables` for each (scale class, neighbourhood), packed uint8.
    tables : str
        Frequencies of the magnitudes 0..14 and the escape, packed uint16.
    version : int
        Format version.
    """

    block: int
    steps: tuple[float, ...]
    offsets: tuple[int, int, int, int]
    lagrangian: float
    scale: str = field(repr=False)
    activity: str = field(repr=False)
    mean: str = field(repr=False)
    weight: str = field(repr=False)
    flags: str = field(repr=False)
    table_of: str = field(repr=False)
    tables: str = field(repr=False)
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise ChunkError(
                f"the codec's configuration is of format version {self.version}",
                f"this package reads version {FORMAT_VERSION}: install a release of nec that "
                f"reads version {self.version}",
            )
        if self.block not in BLOCKS:
            raise ChunkError(f"block {self.block} is not one of {BLOCKS}", "check zarr.json")
        steps = np.array(self.steps, np.float32)
        if not len(steps) or not (np.isfinite(steps) & (steps > 0)).all():
            raise ChunkError("the steps are not all positive and finite", "check zarr.json")
        if len(self.offsets) != 4 or not all(-8 <= o <= 8 for o in self.offsets):
            raise ChunkError(f"offsets {self.offsets} are not 4 in -8..8", "check zarr.json")

    @property
    def bands(self) -> int:
        """Number of bands."""
        return len(self.steps)

    @cached_property
    def parameters(self) -> Parameters:
        """The integers that fix the contexts.

        Raises
        ------
        ChunkError
            If an array is damaged or out of range.
        """
        groups = self.block.bit_length()
        parameters = Parameters(
            unpack(self.scale, "uint8", (self.bands, RINGS + 1)),
            unpack(self.activity, "uint8", (self.bands, groups - 1)),
            unpack(self.mean, "int32", (self.bands,)),
            unpack(self.weight, "uint8", (self.bands,)),
        )
        if (
            (parameters.scale >= SCALES).any()
            or (parameters.activity >= FLAG_CONTEXTS // 24).any()
            or (np.abs(parameters.mean.astype(np.int64)) > 1 << 20).any()
            or (parameters.weight > 16).any()
        ):
            raise ChunkError("a context parameter is out of range", "fetch zarr.json again")
        return parameters

    @cached_property
    def cumulative(self) -> NDArray[np.uint32]:
        """Cumulative frequencies of every context, shape (context, symbol + 1).

        Raises
        ------
        ChunkError
            If a table is damaged.
        """
        flags = unpack(self.flags, "uint16", (FLAG_CONTEXTS,)).astype(np.uint32)
        if (flags == 0).any():
            raise ChunkError("a flag context has frequency 0", "fetch zarr.json again")
        contexts = SCALES * NEIGHBOURHOODS
        table_of = unpack(self.table_of, "uint8", (contexts,)).astype(np.int64)
        count = int(table_of.max()) + 1
        tables = cumulate(unpack(self.tables, "uint16", (count, MAGNITUDES)))
        cumulative = np.full((FLAG_CONTEXTS + contexts, MAGNITUDES + 1), TOTAL, np.uint32)
        cumulative[:, 0] = 0
        cumulative[:FLAG_CONTEXTS, 1] = flags
        cumulative[FLAG_CONTEXTS:] = tables[table_of]
        return cumulative

    @cached_property
    def cost(self) -> NDArray[np.float32]:
        """Bits of every symbol in every context, shape (context, symbol); for the encoder."""
        frequency = np.diff(self.cumulative.astype(np.float32), axis=1)
        return (-np.log2(np.maximum(frequency, 1) / TOTAL)).astype(np.float32)

    @cached_property
    def digest(self) -> bytes:
        """First 8 bytes of the SHA-256 of the canonical JSON of the configuration."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()[:8]

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON types."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"steps": list(self.steps), "offsets": list(self.offsets)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Coding":
        """Read a configuration; what it does not know it refuses.

        Raises
        ------
        ChunkError
            If a field is missing, unknown, of another version or damaged.
        """
        version = data.get("version")
        known = {f.name for f in fields(cls)}
        if version == FORMAT_VERSION and set(data) != known:
            raise ChunkError(
                f"the codec's configuration has unknown or missing fields "
                f"{sorted(set(data) ^ known)}",
                "fetch zarr.json again, or install the release of nec that wrote it",
            )
        if version != FORMAT_VERSION:
            raise ChunkError(
                f"the codec's configuration is of format version {version}",
                f"this package reads version {FORMAT_VERSION}: install a release of nec that "
                f"reads version {version}",
            )
        try:
            coding = cls(
                **data
                | {
                    "steps": tuple(float(s) for s in data["steps"]),
                    "offsets": tuple(int(o) for o in data["offsets"]),
                }
            )
        except (TypeError, ValueError) as error:
            raise ChunkError(
                f"the codec's configuration is malformed ({error})", "fetch zarr.json again"
            ) from error
        # Damage shows when a store is opened, not at its first chunk.
        _ = coding.parameters, coding.cumulative
        return coding
