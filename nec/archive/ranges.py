"""Parts of coded chunks by byte ranges: few requests, few bytes, every part checked by itself.

An object is read in three rounds: its index, the first bytes of the wanted chunks, and what is
still lacking of the wanted parts. Each round asks for all of its ranges at once.
"""

import asyncio
from collections.abc import Iterable, Iterator, Set
from typing import NamedTuple, Self

import numpy as np

from nec.archive.layout import ArrayLayout
from nec.archive.objects import REMEDY, CheckedStore
from nec.archive.shard import CRC, Span, index_size, read_index
from nec.codec import Coding
from nec.codec.container import Head, read_head
from nec.errors import ChunkError, StoreError

# Bytes that a request is worth: ranges that lie nearer to each other are fetched as one.
NEAR = 2048
# First bytes of a chunk that are asked for before anything is known, and of those after it: as
# many as were needed lately, and an eighth more, for a second request costs more than they do.
_LEAD, _MORE, _FALL = 4096, 1.125, 0.7

Index = tuple[int, ...]


def _joined(spans: Iterable[Span], gap: int) -> list[Span]:
    """Join spans that overlap or are no further apart than a gap."""
    joined: list[Span] = []
    for start, stop in sorted(spans):
        if joined and start - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _without(span: Span, taken: Iterable[Span]) -> Iterator[Span]:
    """Cut what is taken, disjoint and in order, out of a span."""
    start, stop = span
    for first, last in taken:
        if last <= start or first >= stop:
            continue
        if first > start:
            yield start, first
        start = max(start, last)
    if start < stop:
        yield start, stop


class _Object:
    """What has been fetched of one stored object."""

    def __init__(self, store: CheckedStore, key: str, size: int) -> None:
        self._store = store
        self.key = key
        self.size = size
        self._data = bytearray(size)
        self._here: list[Span] = []

    @classmethod
    async def of(cls, store: CheckedStore, key: str) -> Self | None:
        """Begin to read an object; None where there is none."""
        expected = await store.expected(key)
        if expected is not None:
            return cls(store, key, expected.size)
        # Without a receipt nobody knows its size, and nothing but its own checksums vouches for it.
        data = None if store.sealed else await store.whole(key)
        if data is None:
            return None
        known = cls(store, key, len(data))
        known._data, known._here = bytearray(data), [(0, len(data))]
        return known

    async def need(self, spans: Iterable[Span]) -> None:
        """Fetch what is not here yet of some spans, those near to each other in one request."""
        lacking = (part for span in spans for part in _without(span, self._here))
        await asyncio.gather(*(self._fetch(*span) for span in _joined(lacking, NEAR)))

    async def _fetch(self, start: int, stop: int) -> None:
        # One byte beyond the end: an object of another size than was written shows.
        data = await self._store.span(self.key, start, stop + (stop == self.size))
        where = self._store.where(self.key)
        if data is None:
            raise StoreError(f"{where} is missing", REMEDY)
        if len(data) == self.size:
            start, stop = 0, self.size  # a server that knows no ranges gives everything
        elif len(data) != stop - start:
            msg = f"{where} has not the {self.size:,} bytes that were written: swapped or stale"
            raise StoreError(msg, REMEDY)
        self._data[start:stop] = data
        self._here = _joined([*self._here, (start, stop)], 0)

    def bytes(self, start: int, stop: int) -> bytes:
        """Return bytes that are here."""
        return bytes(self._data[start:stop])

    def reach(self, start: int, stop: int) -> int:
        """Return where the bytes that are here from `start` on end, at most `stop`."""
        return next((min(last, stop) for first, last in self._here if first <= start < last), start)


class _Chunk(NamedTuple):
    """A chunk whose head is known: its index in the object, its first byte, its head."""

    at: Index
    start: int
    head: Head

    def spans(self, parts: Iterable[int]) -> list[Span]:
        """Return where parts lie in the object."""
        ends = (self.head.spans[part] for part in parts)
        return [(self.start + first, self.start + last) for first, last in ends if first < last]


class PartReader:
    """Reader of the same parts of many chunks of an array.

    Parameters
    ----------
    store : CheckedStore
        The store.
    array : ArrayLayout
        The array.
    coding : Coding
        Of its chunks.
    wanted : set of int
        Numbers of the parts, as `nec.codec.container` counts them; those that a chunk lacks are
        no error.
    """

    def __init__(
        self, store: CheckedStore, array: ArrayLayout, coding: Coding, wanted: Set[int]
    ) -> None:
        self._store = store
        self._array = array
        self._coding = coding
        self._wanted = frozenset(wanted)
        self._lead = _LEAD

    async def read(self, key: str, chunks: Set[Index]) -> dict[Index, dict[int, bytes]]:
        """Fetch and check the wanted parts of some chunks of an object.

        Parameters
        ----------
        key : str
            Of the object.
        chunks : set of tuple of int
            Their indexes in the object.

        Returns
        -------
        dict of tuple of int to dict of int to bytes
            Checked parts by number, by the index of their chunk; chunks without a valid token
            are not stored, and left out.

        Raises
        ------
        StoreError
            The object is missing, or its index or a wanted part is damaged.
        """
        stored = await _Object.of(self._store, key)
        if stored is None:
            return {}
        found = await self._chunks(stored, chunks)
        parts = {chunk.at: self._parts(chunk.head) for chunk in found}
        await stored.need(span for chunk in found for span in chunk.spans(parts[chunk.at]))
        result = {}
        for at, start, head in found:
            data = {}
            for part in parts[at]:
                first, last = head.spans[part]
                data[part] = stored.bytes(start + first, start + last)
                try:
                    head.check(part, data[part])
                except ChunkError as error:
                    raise self.damaged(key, at, error.what) from error
            result[at] = {n: d for n, d in data.items() if n in self._wanted}
        return result

    def damaged(self, key: str, index: Index, what: str) -> StoreError:
        """Make the error of a damaged chunk."""
        which = f"chunk {index} of the shard" if self._array.shard is not None else "chunk"
        return StoreError(f"{self._store.where(key)} is damaged: {which}: {what}", REMEDY)

    async def heads(self, key: str) -> dict[Index, Head]:
        """Fetch the heads of all chunks of an object; see `read`."""
        stored = await _Object.of(self._store, key)
        if stored is None:
            return {}
        every = set(np.ndindex(self._array.chunks_per_object))
        return {chunk.at: chunk.head for chunk in await self._chunks(stored, every)}

    async def _chunks(self, stored: _Object, chunks: Set[Index]) -> list[_Chunk]:
        """Find those of some chunks that are stored, and read their heads."""
        size = index_size(self._array)
        end = stored.size - size
        await stored.need([(end if end > NEAR else 0, stored.size)])
        try:
            index = read_index(self._array, stored.bytes(max(end, 0), stored.size), stored.size)
        except StoreError as error:
            where = self._store.where(stored.key)
            raise StoreError(f"{where} is damaged: {error.what}", REMEDY) from error
        spans = {}
        for at in sorted(chunks & index.keys()):
            start, stop = index[at]
            if not start + CRC < stop <= end:
                raise self.damaged(stored.key, at, "it lies outside of the shard")
            spans[at] = (start, stop - CRC)
        await stored.need((a, min(a + self._lead, b)) for a, b in spans.values())
        return await asyncio.gather(*(self._chunk(stored, *item) for item in spans.items()))

    async def _chunk(self, stored: _Object, index: Index, span: Span) -> _Chunk:
        """Read the head of a chunk, all of its first bytes that it takes."""
        start, stop = span
        while True:
            reach = stored.reach(start, stop)
            try:
                head = read_head(stored.bytes(start, reach), self._coding)
            except ChunkError as error:
                raise self.damaged(stored.key, index, error.what) from error
            if head is not None:
                break
            if reach == stop:
                raise self.damaged(stored.key, index, "its head is cut short")
            await stored.need([(reach, min(reach + NEAR, stop))])
        if head.size != stop - start:
            msg = f"it has {stop - start:,} bytes and its head says {head.size:,}"
            raise self.damaged(stored.key, index, msg)
        chunk = _Chunk(index, start, head)
        first = min(first for first, _ in head.spans.values())
        run = _joined([(start, start + first), *chunk.spans(self._parts(head))], NEAR)[0]
        self._lead = int(max(_MORE * (run[1] - start), _FALL * self._lead))
        return chunk

    def _parts(self, head: Head) -> list[int]:
        """Return the parts to fetch: the wanted ones, and one that vouches for the head."""
        parts = [part for part in head.spans if part in self._wanted]
        if head.sums and head.sums.keys().isdisjoint(parts):
            # A damaged head may call a wanted part empty: every checksum covers the head.
            parts.append(min(head.sums, key=lambda n: head.spans[n][1] - head.spans[n][0]))
        return parts
