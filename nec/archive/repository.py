"""Icechunk repositories: where they are, which state of one is meant, what Zarr reads of it.

Icechunk keeps Zarr's metadata and chunks alone. The other documents of a store, its manifest and
the scenes of its times, are elements of two Zarr arrays of strings beside the basis.
"""

import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from zarr import AsyncArray
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import StorePath, WrapperStore

from nec.archive.manifest import FOLDER, KEY
from nec.archive.series import FOLDER as SCENES
from nec.archive.series import step_key
from nec.errors import MissingLibraryError, StoreError

PREFIX = "icechunk:"
MANIFEST = "nec/manifest"
BRANCH = "main"
# What Icechunk writes to make a repository, which it does in clean folders alone.
_FIRST = {"snapshots/1CECHNKREP0F1RSTCMT0", f"refs/branch.{BRANCH}/ref.json"}


@dataclass(frozen=True)
class Revision:
    """One state of a repository, written ``icechunk:LOCATION#tag=v1``.

    Attributes
    ----------
    repository : str
        A folder, or a URL: ``s3://bucket/prefix``, ``gs://``, ``az://container/prefix``.
    branch : str, optional
        Its last state is meant, or the one at `as_of`; ``main`` where nothing is said.
    tag, snapshot : str, optional
        Name of a tag, or of a snapshot.
    as_of : datetime, optional
        The last state of the branch that was committed then or before; UTC where it has no zone.
    """

    repository: str
    branch: str | None = None
    tag: str | None = None
    snapshot: str | None = None
    as_of: datetime | None = None

    def __post_init__(self) -> None:
        branch = f"{self.branch or BRANCH} as of {self.as_of}" if self.as_of else self.branch
        said = [word for word in (branch, self.tag, self.snapshot) if word]
        if len(said) > 1:
            msg = f"{self.repository} has no state that is {' and '.join(said)} at once"
            raise StoreError(msg, "name a tag, a snapshot, or a branch with or without as_of")

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read ``icechunk:LOCATION``, with ``#`` and ``tag=``, ``snapshot=``, … where wanted."""
        location, _, fragment = name.removeprefix(PREFIX).partition("#")
        words = dict(w.partition("=")[::2] for w in fragment.split("&")) if fragment else {}
        if not location or not all(words.values()) or words.keys() - set(_CHOICES):
            msg = f"{name} names no state of a repository"
            raise StoreError(msg, f"write {PREFIX}LOCATION or {PREFIX}LOCATION#tag=NAME")
        return cls(location.rstrip("/")).at(**words)

    def at(self, **choices: "str | datetime | None") -> Self:
        """Return the state that `tag`, `snapshot`, `branch` or `as_of` choose; None: no choice."""
        chosen: dict[str, Any] = {key: value for key, value in choices.items() if value is not None}
        moment = chosen.get("as_of")
        if isinstance(moment, str):
            try:
                moment = datetime.fromisoformat(moment)
            except ValueError as error:
                msg = f"as_of={moment} is no time"
                raise StoreError(msg, "write it as 2026-05-01T12:00:00Z") from error
        if isinstance(moment, datetime):
            moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
            chosen["as_of"] = moment
        return replace(self, **chosen)

    def __str__(self) -> str:
        words = {key: getattr(self, key) for key in _CHOICES}
        if self.as_of is not None:
            words["as_of"] = self.as_of.isoformat().replace("+00:00", "Z")
        said = "&".join(f"{key}={value}" for key, value in words.items() if value is not None)
        return f"{PREFIX}{self.repository}" + (f"#{said}" if said else "")


_CHOICES = ("branch", "tag", "snapshot", "as_of")


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository's history.

    Attributes
    ----------
    id : str
        Name of the snapshot, for ``nec.open(..., snapshot=)``.
    time : datetime
        When it was written, UTC.
    message : str
    tags : tuple of str
        Those that point to it.
    details : dict
        What `nec.commit` noted: model, fingerprint, times, objects that were written; empty of
        commits of other programs.
    """

    id: str
    time: datetime
    message: str
    tags: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def history(
    repository: str | Path, *, storage_options: Mapping[str, Any] | None = None
) -> list[Snapshot]:
    """List the commits of a repository, the last first.

    Parameters
    ----------
    repository : str or Path
        A folder or URL; with ``#tag=``, ``#branch=`` or ``#snapshot=`` the commits up to there.
    storage_options : mapping, optional
        For Icechunk, see `nec.commit`.

    Returns
    -------
    list of Snapshot
        Empty where nothing was committed yet.

    Raises
    ------
    StoreError
        There is no such repository, branch, tag or snapshot.
    """
    revision = Revision.parse(str(repository))
    opened = open_repository(revision.repository, storage_options)
    with reported(str(revision)):
        tags: dict[str, list[str]] = {}
        for tag in sorted(opened.list_tags()):
            tags.setdefault(opened.lookup_tag(tag), []).append(tag)
        at = opened.readonly_session(**_choice(revision)).snapshot_id
        return [
            Snapshot(
                one.id,
                one.written_at,
                one.message,
                tuple(tags.get(one.id, ())),
                dict(one.metadata.get("nec", {})),
            )
            for one in opened.ancestry(snapshot_id=at)
            if one.parent_id is not None  # the first is of the empty repository
        ]


def is_revision(name: str) -> bool:
    """Whether a name is that of a state of a repository."""
    return name.startswith(PREFIX)


def is_repository(path: Path) -> bool:
    """Whether a folder of this machine looks like a repository."""
    return (path / "refs").is_dir() and (path / "snapshots").is_dir()


def make_way(folder: Path) -> None:
    """Remove what is left where the making of a repository was killed; refuse what is another's."""
    if is_repository(folder) and next(folder.glob("refs/*/ref.json"), None) is not None:
        return
    files = [path for path in folder.rglob("*") if path.is_file()]
    # Objects are written beside their place, as NAME#1, and then renamed.
    names = {path.relative_to(folder).as_posix().partition("#")[0] for path in files}
    if folder.is_file() or not names <= _FIRST:
        msg = f"{folder} is there and is no Icechunk repository"
        raise StoreError(msg, "choose another folder")
    for path in files:
        path.unlink()


def open_revision(
    revision: Revision, storage_options: Mapping[str, Any] | None = None
) -> "tuple[RevisionStore, str]":
    """Open a state for reading; return what Zarr reads, and its name by its snapshot."""
    repository = open_repository(revision.repository, storage_options)
    with reported(str(revision)):
        session = repository.readonly_session(**_choice(revision))
        name = str(Revision(revision.repository, snapshot=session.snapshot_id))
        return RevisionStore(session.store, name), name


def open_repository(
    location: str, storage_options: Mapping[str, Any] | None = None, *, create: bool = False
) -> Any:
    """Open an `icechunk.Repository`; StoreError where there is none and none is to be made."""
    icechunk = imported()
    remedy = "nec commit STORE REPOSITORY makes one"
    if local(location) and not create and not local_path(location).is_dir():
        raise StoreError(f"no Icechunk repository at {location}", remedy)
    with reported(location):
        storage = _storage(location, dict(storage_options or {}))
        if not create:
            if not icechunk.Repository.exists(storage):
                raise StoreError(f"no Icechunk repository at {location}", remedy)
            return icechunk.Repository.open(storage)
        try:
            return icechunk.Repository.open_or_create(storage)
        except icechunk.IcechunkError:
            # Another process made it at the same moment; else this tells what is wrong.
            return icechunk.Repository.open(storage)


def imported() -> Any:
    """Import Icechunk; MissingLibraryError where it is not installed."""
    first = "icechunk" not in sys.modules
    try:
        import icechunk
    except ModuleNotFoundError as error:
        raise (MissingLibraryError.of(error) or error) from error
    if first and "ICECHUNK_LOG" not in os.environ:
        # It warns of commits to folders at every opening; ours wait for each other.
        icechunk.set_logs_filter("warn,icechunk::storage::object_store=error")
    return icechunk


@contextmanager
def reported(name: str) -> Iterator[None]:
    """Turn errors of Icechunk to one line."""
    icechunk = imported()
    try:
        yield
    except icechunk.IcechunkError as error:
        said = error.message.strip().splitlines()[0].removeprefix("x ").strip()
        remedy = "check the name (nec history), the address and --option"
        raise StoreError(f"{name}: Icechunk says: {said}", remedy) from error


def local(location: str) -> bool:
    """Whether a repository is a folder of this machine."""
    return "://" not in location or location.startswith("file://")


def local_path(location: str) -> Path:
    """Return the folder of a local repository."""
    return Path(location.removeprefix("file://"))


def _choice(revision: Revision) -> dict[str, Any]:
    if revision.tag is not None:
        return {"tag": revision.tag}
    if revision.snapshot is not None:
        return {"snapshot_id": revision.snapshot}
    return {"branch": revision.branch or BRANCH, "as_of": revision.as_of}


def _storage(location: str, options: dict[str, Any]) -> Any:
    icechunk = imported()
    if local(location):
        if options:
            msg = f"{location} is a folder of this machine: it takes no {min(options)}"
            raise StoreError(msg, "leave the option out")
        return icechunk.local_filesystem_storage(str(local_path(location)))
    scheme, _, rest = location.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme == "s3":
        if endpoint := options.get("endpoint_url"):
            # A server of one's own: buckets are no host names there.
            options = {
                "force_path_style": True,
                "allow_http": str(endpoint).startswith("http://"),
                **options,
            }
        make, place = icechunk.s3_storage, {"bucket": bucket, "prefix": prefix}
    elif scheme in ("gs", "gcs"):
        make, place = icechunk.gcs_storage, {"bucket": bucket, "prefix": prefix}
    elif scheme in ("az", "azure", "abfs"):
        make, place = icechunk.azure_storage, {"container": bucket, "prefix": prefix}
    else:
        msg = f"{location}: nec opens no repositories on {scheme}://"
        raise StoreError(msg, "choose a folder, s3://, gs:// or az://")
    try:
        return make(**place, **options)
    except TypeError as error:  # it names the option that it does not know, or lacks
        msg = f"{location}: icechunk.{make.__name__} does not take these options ({error})"
        raise StoreError(msg, "see its documentation for their names") from error


class RevisionStore(WrapperStore[Store]):
    """Objects of one state of a repository, by the keys that they have in a store's folder.

    Parameters
    ----------
    store : icechunk.IcechunkStore
        Of a session.
    name : str
        For messages.
    """

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store)
        self._name = name

    def _with_store(self, store: Store) -> "RevisionStore":
        return type(self)(store, self._name)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Fetch an object; StoreError, with its key, where Icechunk cannot."""
        place = document_place(key)
        if place is None and key.endswith(".json") and not key.endswith("zarr.json"):
            return None  # receipts: a commit holds finished tasks alone
        where, remedy = f"{key} of {self._name}", "fetch the repository again, or commit anew"
        try:
            with reported(where):
                if place is None:
                    return await self._store.get(key, prototype, byte_range)
                return await self._document(*place, prototype)
        except ValueError as error:  # of the checksum of a document
            raise StoreError(f"{where} is damaged ({error})", remedy) from error
        except StoreError as error:
            raise StoreError(error.what, remedy) from error

    async def list(self) -> AsyncIterator[str]:
        """List all keys, those of documents as in a store's folder."""
        async for key in self._store.list():
            array, _, rest = key.partition("/c/")
            if rest and array in _DOCUMENTS:
                yield _DOCUMENTS[array](int(rest))
            elif key.removesuffix("/zarr.json") not in _DOCUMENTS:
                yield key

    async def _document(self, name: str, index: int, prototype: BufferPrototype) -> Buffer | None:
        try:
            array = await AsyncArray.open(StorePath(self._store, name), zarr_format=3)
        except FileNotFoundError:
            return None
        if index >= array.shape[0]:
            return None
        text: Any = await array.getitem(index)
        return prototype.buffer.from_bytes(str(text).encode())


_DOCUMENTS = {
    MANIFEST: lambda index: f"{FOLDER}/{index - 1}.json" if index else KEY,
    SCENES: step_key,
}


def document_place(key: str) -> tuple[str, int] | None:
    """Say which array of strings holds a document, and where; None of what Zarr has a key for."""
    if key == KEY:
        return MANIFEST, 0
    folder, _, name = key.rpartition("/")
    number = name.removesuffix(".json")
    if folder not in (FOLDER, SCENES) or not number.isdecimal():
        return None
    # The parts of a manifest follow its index.
    return (MANIFEST, int(number) + 1) if folder == FOLDER else (SCENES, int(number))
