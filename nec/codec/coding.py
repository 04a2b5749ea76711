"""`Coding`: every number that a chunk is coded with, as it stands in `zarr.json`."""

import hashlib
import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.codec.codebook import LARGEST_UNIT, MOST_CODES, MOST_COUNTED, Codebook
from nec.codec.container import CODEBOOK_VERSION, DIGEST_BYTES, FORMAT_VERSION, VERSIONS
from nec.codec.contexts import (
    BLOCKS,
    CLASSES,
    CONTEXTS,
    FLAG_CONTEXTS,
    FLAG_NEIGHBOURS,
    MAGNITUDES,
    NEIGHBOURS,
    Parameters,
    Segment,
    rings_of,
    unpack_levels,
)
from nec.codec.tables import TOTAL, cumulate, unpack
from nec.errors import ChunkError

# What a codec's configuration may take in zarr.json, bytes.
LARGEST_CONFIGURATION = {FORMAT_VERSION: 16 * 1024, CODEBOOK_VERSION: 512 * 1024}
# Fields that only the encoder heeds: no part of the digest.
_ENCODERS = ("lagrangian", "min_cosine")
# Fields of version 2 alone.
_CODEBOOKS = ("codebook", "units", "counts")


@dataclass(frozen=True)
class Coding:
    """Configuration of the codec; equal codings have equal digests.

    Attributes
    ----------
    block : int
        Edge of a transform block, tokens: 1, 2, 4, 8, 16, 32 or 64.
    steps : str
        Quantiser step of each band, packed float32.
    offsets : tuple of 3 int
        Taken from the magnitude of an oscillating coefficient of magnitude 1, 2 and above on
        reconstruction, in sixteenths of a step.
    band_groups, octave_groups : tuple of int
        Where the segments of a chunk end: bands and octaves, ascending; the last is all.
    weights, flag_weights : str
        Of what is seen around coefficients and tiles (octave, neighbour), packed uint8.
    level, flag_level : str
        Codes of expected magnitudes (band, ring + 1) and energies (band, octave), packed uint8.
    mean, weight : str
        Prediction of the DC by band, packed int32 and uint8.
    flags : str
        Frequency of "nothing here" in each flag context, packed uint16.
    table_of : str
        Row of `tables` for each magnitude context, packed uint8.
    tables : str
        Frequencies of the magnitudes 0..14 and the escape, packed uint16.
    lagrangian : float
        Squared error, in steps, that the encoder takes for a bit; of no concern to a decoder.
    min_cosine : float
        Smallest cosine between a vector and its decoded self that the encoder allows; 0 for
        no guarantee.
    version : int
        Format version: 2 where there is a codebook, else 1.
    codebook, units, counts : str
        Vectors that lone vectors (`block` 1) lie near to (code, band), packed int8; what 1 of them
        is by band, 2**-16 of a step, packed uint32; and expected counts of them, packed uint16.
    falloff : float
        How many times less a squared error counts at each finer octave, to the encoder. Not part
        of the configuration: a store can be read, and its chunks checked, without it.
    """

    block: int
    steps: str = field(repr=False)
    offsets: tuple[int, int, int]
    band_groups: tuple[int, ...]
    octave_groups: tuple[int, ...]
    weights: str = field(repr=False)
    flag_weights: str = field(repr=False)
    level: str = field(repr=False)
    flag_level: str = field(repr=False)
    mean: str = field(repr=False)
    weight: str = field(repr=False)
    flags: str = field(repr=False)
    table_of: str = field(repr=False)
    tables: str = field(repr=False)
    lagrangian: float = 0.0
    min_cosine: float = 0.0
    version: int = FORMAT_VERSION
    codebook: str = field(default="", repr=False)
    units: str = field(default="", repr=False)
    counts: str = field(default="", repr=False)
    falloff: float = field(default=1.0, compare=False)

    def __post_init__(self) -> None:
        _check_version(self.version)
        if (self.version == CODEBOOK_VERSION) != bool(self.codebook):
            raise ChunkError(
                f"a codebook is of format version {CODEBOOK_VERSION}, and the coding of "
                f"{self.version}",
                "check zarr.json",
            )
        if self.codebook and self.block != 1:
            raise ChunkError(
                f"a codebook codes vectors alone, and the block is {self.block}", "take block 1"
            )
        if type(self.block) is not int or self.block not in BLOCKS:
            raise ChunkError(f"block {self.block} is not one of {BLOCKS}", "check zarr.json")
        if any(type(i) is not int for i in (*self.offsets, *self.band_groups, *self.octave_groups)):
            raise ChunkError("offsets or groups are not integers", "check zarr.json")
        steps = self.step_values
        if not len(steps) or not (np.isfinite(steps) & (steps > 0)).all():
            raise ChunkError("the steps are not all positive and finite", "check zarr.json")
        if len(self.offsets) != 3 or not all(-8 <= o <= 8 for o in self.offsets):
            raise ChunkError(f"offsets {self.offsets} are not 3 in -8..8", "check zarr.json")
        for name, groups, end in (
            ("band", self.band_groups, len(steps)),
            ("octave", self.octave_groups, self.octaves),
        ):
            if not groups or groups[-1] != end or any(np.diff((0, *groups)) <= 0):
                raise ChunkError(f"{name} groups {groups} do not end at {end}", "check zarr.json")
        if not 0 <= self.lagrangian < 1e9:
            raise ChunkError(f"a worth of a bit of {self.lagrangian} is none", "check zarr.json")
        if not 1 <= self.falloff <= 16:
            raise ChunkError(f"a falloff of {self.falloff} by octave is none", "give 1 to 16")
        if not 0 <= self.min_cosine <= 0.99999:
            raise ChunkError(
                f"a smallest cosine of {self.min_cosine} cannot be kept", "ask for 0 to 0.99999"
            )

    @cached_property
    def step_values(self) -> NDArray[np.float32]:
        """Quantiser step of each band, float32."""
        return unpack(self.steps, "float32", (-1,))

    @cached_property
    def offset_values(self) -> NDArray[np.int64]:
        """What is taken from magnitudes 0, 1, 2 and above, sixteenths of a step."""
        return np.array((0, *self.offsets), np.int64)

    @property
    def bands(self) -> int:
        """Number of bands."""
        return len(self.step_values)

    @property
    def octaves(self) -> int:
        """Number of octaves of a block."""
        return self.block.bit_length()

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The segments of a chunk in order: octaves outside, bands inside."""
        octaves, bands = (0, *self.octave_groups), (0, *self.band_groups)
        return tuple(Segment(a, b, c, d) for a, b in pairwise(octaves) for c, d in pairwise(bands))

    @cached_property
    def parameters(self) -> Parameters:
        """The integers that fix the contexts.

        Raises
        ------
        ChunkError
            If an array is damaged or out of range.
        """
        bands, octaves = self.bands, self.octaves
        level = unpack(self.level, "uint8", (bands, rings_of(self.block) + 1))
        flag_level = unpack(self.flag_level, "uint8", (bands, octaves))
        parameters = Parameters(
            unpack(self.weights, "uint8", (octaves, NEIGHBOURS)).astype(np.int64),
            unpack(self.flag_weights, "uint8", (octaves, FLAG_NEIGHBOURS)).astype(np.int64),
            unpack_levels(level),
            unpack_levels(flag_level),
            unpack(self.mean, "int32", (bands,)).astype(np.int64),
            unpack(self.weight, "uint8", (bands,)).astype(np.int64),
        )
        if (
            (np.abs(parameters.mean) > 1 << 20).any()
            or (parameters.weight > 16).any()
            or (level > 247).any()
            or (flag_level > 247).any()
        ):
            raise ChunkError("a context parameter is out of range", "fetch zarr.json again")
        return parameters

    @cached_property
    def vectors(self) -> Codebook | None:
        """The codebook; None where there is none.

        Raises
        ------
        ChunkError
            If it is damaged or out of range.
        """
        if not self.codebook:
            return None
        counts = unpack(self.counts, "uint16", (-1,)).astype(np.int64)
        numbers = unpack(self.codebook, "int8", (len(counts), self.bands)).astype(np.int64)
        units = unpack(self.units, "uint32", (self.bands,)).astype(np.int64)
        if (
            not 0 < len(counts) <= MOST_CODES
            or (counts == 0).any()
            or counts.sum() > MOST_COUNTED
            or (units > LARGEST_UNIT).any()
        ):
            raise ChunkError("the codebook is out of range", "fetch zarr.json again")
        return Codebook(numbers * units, counts)

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
        table_of = unpack(self.table_of, "uint8", (2 * CLASSES,)).astype(np.int64)
        count = int(table_of.max()) + 1
        tables = cumulate(unpack(self.tables, "uint16", (count, MAGNITUDES)))
        cumulative = np.full((CONTEXTS, MAGNITUDES + 1), TOTAL, np.uint32)
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
        """First 4 bytes of the SHA-256 of the canonical JSON of what a decoder needs."""
        plain = {k: v for k, v in self.to_dict().items() if k not in _ENCODERS}
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()[:DIGEST_BYTES]

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON types.

        Raises
        ------
        ChunkError
            If it is larger than a store's metadata should carry.
        """
        plain = {name: getattr(self, name) for name in sorted(_configured(self.version))}
        plain |= {k: list(v) for k, v in plain.items() if isinstance(v, tuple)}
        largest = LARGEST_CONFIGURATION[self.version]
        if len(json.dumps(plain)) > largest:
            raise ChunkError(
                f"the codec's configuration of {self.bands} bands takes more than "
                f"{largest:,} bytes",
                "keep fewer bands, or take smaller blocks or a smaller codebook",
            )
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Coding":
        """Read a configuration; what it does not know it refuses.

        Raises
        ------
        ChunkError
            If a field is missing, unknown, of another version or damaged.
        """
        _check_version(data.get("version"))
        known = _configured(data["version"])
        if set(data) != known:
            raise ChunkError(
                f"the codec's configuration has unknown or missing fields "
                f"{sorted(set(data) ^ known)}",
                "fetch zarr.json again, or install the release of nec that wrote it",
            )
        try:
            lists = {n: tuple(data[n]) for n in ("offsets", "band_groups", "octave_groups")}
            coding = cls(**data | lists)
        except (TypeError, ValueError) as error:
            raise ChunkError(
                f"the codec's configuration is malformed ({error})", "fetch zarr.json again"
            ) from error
        # Damage shows when a store is opened, not at its first chunk.
        _ = coding.parameters, coding.cumulative, coding.vectors
        return coding


def _configured(version: int) -> set[str]:
    """Fields of the configuration: all that make two codings differ."""
    known = {f.name for f in fields(Coding) if f.compare}
    return known if version == CODEBOOK_VERSION else known - set(_CODEBOOKS)


def _check_version(version: Any) -> None:
    if type(version) is not int or version not in VERSIONS:
        raise ChunkError(
            f"the codec's configuration is of format version {version}",
            f"this package reads versions {' and '.join(map(str, VERSIONS))}: install a release "
            f"of nec that reads version {version}",
        )
