"""The bytes of a chunk: a head, a checksum for each part, and the parts.

The head holds the version, flags, the digest of the coding and the lengths of all parts; every
checksum covers the head and its part, so that any part can be fetched and checked by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import google_crc32c

from nec.errors import ChunkError

if TYPE_CHECKING:
    from nec.codec.coding import Coding

# Version 2 has a codebook; all that has none is of version 1.
FORMAT_VERSION, CODEBOOK_VERSION = 1, 2
VERSIONS = (FORMAT_VERSION, CODEBOOK_VERSION)
DIGEST_BYTES = 4
# Parts before the segments of coefficients, present where their flag is set.
MASK, REFINEMENTS, VERBATIM, PATCHES, CODES = range(5)
PART_NAMES = ("validity mask", "refinements", "verbatim blocks", "patches", "codes")
# How many of them there can be.
_KNOWN = {FORMAT_VERSION: CODES, CODEBOOK_VERSION: len(PART_NAMES)}
_FIXED = 2 + DIGEST_BYTES
_CRC = 4


def _name(part: int) -> str:
    return PART_NAMES[part] if part < len(PART_NAMES) else f"segment {part - len(PART_NAMES)}"


def assemble(coding: "Coding", parts: Sequence[bytes | None]) -> bytes:
    """Put a chunk together.

    Parameters
    ----------
    coding : Coding
    parts : sequence of bytes or None
        Mask, refinements, verbatim blocks, patches and codes, each None where there is none;
        then the segments.
    """
    flags = sum(1 << i for i in range(len(PART_NAMES)) if parts[i] is not None)
    present = [part for part in parts if part is not None]
    head = bytes([coding.version, flags]) + coding.digest
    head += b"".join(_varint(len(part)) for part in present)
    checked = [part for part in present if part] or [b""]
    sums = b"".join(_checksum(head, part) for part in checked)
    return head + sums + b"".join(present)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _checksum(head: bytes, part: bytes | memoryview) -> bytes:
    crc = google_crc32c.extend(google_crc32c.value(head), bytes(part))
    return int(crc).to_bytes(_CRC, "little")


@dataclass(frozen=True)
class Head:
    """Where the parts of a chunk lie.

    Attributes
    ----------
    raw : bytes
        The head itself.
    spans : dict of int to (int, int)
        First and last + 1 byte in the chunk of each part that is present, by its number.
    sums : dict of int to bytes
        Checksums of those that are not empty.
    size : int
        Bytes of the whole chunk.
    """

    raw: bytes
    spans: dict[int, tuple[int, int]]
    sums: dict[int, bytes]
    size: int

    def check(self, part: int, data: bytes | memoryview) -> None:
        """Check a part that was fetched.

        Raises
        ------
        ChunkError
            If it does not match its checksum.
        """
        if part in self.sums and _checksum(self.raw, data) != self.sums[part]:
            raise ChunkError(
                f"the chunk's {_name(part)} does not match its checksum", "fetch it again"
            )


def read_head(data: bytes | memoryview, coding: "Coding") -> Head | None:
    """Read the head of a chunk from its first bytes; None where they do not reach.

    Raises
    ------
    ChunkError
        If the chunk is of another version or coding, or its head is malformed.
    """
    if len(data) and data[0] != coding.version:
        raise ChunkError(
            f"the chunk is of format version {data[0]}, its codec of {coding.version}",
            "fetch it again, or install a release of nec that reads it",
        )
    if len(data) < _FIXED:
        return None
    if bytes(data[2:_FIXED]) != coding.digest:
        raise ChunkError(
            f"the chunk was coded with tables {bytes(data[2:_FIXED]).hex()}, zarr.json holds "
            f"{coding.digest.hex()}",
            "the chunk belongs to another store: fetch it again",
        )
    flags = data[1]
    if flags >> _KNOWN[coding.version]:
        raise ChunkError(f"the chunk has unknown flags {flags:#x}", "fetch it again")
    numbers = [i for i in range(len(PART_NAMES)) if flags >> i & 1]
    numbers += [len(PART_NAMES) + i for i in range(len(coding.segments))]
    at, lengths = _FIXED, {}
    for n in numbers:
        found = _read_varint(data, at)
        if found is None:
            return None
        lengths[n], at = found
    raw = bytes(data[:at])
    checked = [n for n, length in lengths.items() if length]
    if at + _CRC * max(len(checked), 1) > len(data):
        return None
    sums = {n: bytes(data[at + _CRC * i : at + _CRC * (i + 1)]) for i, n in enumerate(checked)}
    if not checked and bytes(data[at : at + _CRC]) != _checksum(raw, b""):
        raise ChunkError("the chunk's head does not match its checksum", "fetch it again")
    at += _CRC * max(len(checked), 1)
    spans = {}
    for n, length in lengths.items():
        spans[n], at = (at, at + length), at + length
    return Head(raw, spans, sums, at)


def _read_varint(data: bytes | memoryview, at: int) -> tuple[int, int] | None:
    """Return a length and where it ends; None where the bytes do not reach."""
    length = shift = 0
    while at < len(data):
        length |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 128:
            return length, at
        if shift > 28:
            raise ChunkError("the chunk's head is malformed", "fetch it again")
    return None


def take_apart(data: memoryview, coding: "Coding") -> dict[int, memoryview]:
    """Return the parts of a whole chunk, by number, each checked.

    Raises
    ------
    ChunkError
        If anything is wrong with the bytes, or they are too few or too many.
    """
    head = read_head(data, coding)
    if head is None or head.size != len(data):
        size = "its head is cut short" if head is None else f"its head says {head.size:,}"
        raise ChunkError(f"the chunk has {len(data):,} bytes and {size}", "fetch it again")
    parts = {n: data[a:b] for n, (a, b) in head.spans.items()}
    for n, part in parts.items():
        head.check(n, part)
    return parts
