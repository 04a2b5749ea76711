"""Commits: the finished state of a store becomes one snapshot of an Icechunk repository."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import cpu
from zarr.core.sync import sync

from nec.archive.contents import ROOT, Contents
from nec.archive.creation import read_root
from nec.archive.metadata import canonical
from nec.archive.objects import checked
from nec.archive.receipts import checked_object
from nec.archive.repository import (
    BRANCH,
    MANIFEST,
    Revision,
    RevisionStore,
    document_place,
    imported,
    local,
    local_path,
    make_way,
    open_repository,
    reported,
)
from nec.archive.series import FOLDER as SCENES
from nec.archive.shard import damage
from nec.archive.temporaries import locked
from nec.errors import StoreError

logger = logging.getLogger(__name__)

# Objects that are sent at once: a shard holds about 100 KB.
_BATCH = 32
# Other producers may change the store, or the branch, meanwhile: then all begins anew.
_ATTEMPTS = 5


@dataclass(frozen=True)
class Commit:
    """What a commit did.

    Attributes
    ----------
    name : str
        Of the state, for `nec.open`: ``icechunk:LOCATION#snapshot=ID``.
    snapshot : str
        Name of the snapshot: a new one, or where nothing had changed the branch's last.
    new : bool
        Whether anything had changed.
    objects : int
        Objects of the store.
    written, removed : int
        Those that were written, or taken away.
    bytes : int
        Written.
    """

    name: str
    snapshot: str
    new: bool
    objects: int
    written: int = 0
    removed: int = 0
    bytes: int = 0


def commit(
    store: str | Path,
    repository: str | Path,
    *,
    message: str | None = None,
    tag: str | None = None,
    branch: str = BRANCH,
    replace: bool = False,
    allow_failed: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Commit:
    """Bring the finished state of a store into an Icechunk repository, as one snapshot.

    Only objects that changed since the branch's last snapshot are written, each checked first
    against the manifest or its receipt, and by its own checksums. Readers see the branch as it
    was or with all of the commit. A store that has not changed makes no snapshot.

    A commit that another one of the same branch comes before begins anew, from what the branch
    and the store then hold. In a folder of this machine, where Icechunk cannot compare and swap,
    commits of `nec` wait for each other.

    Parameters
    ----------
    store : str or Path
        A store on this machine: sealed, or finished.
    repository : str or Path
        A folder, or ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix``;
        it is made where there is none.
    message : str, optional
        What the history shall say; by default the store's name, its times and what was written.
    tag : str, optional
        Name that the snapshot gets; a tag never moves.
    branch : str, default: "main"
        The branch, which has to be there.
    replace : bool, default: False
        Commit though the branch holds another run's store, a sealed one, or scenes that this
        store lacks. What was committed stays in the history.
    allow_failed : bool, default: False
        Commit though tasks failed; they read as missing.
    storage_options : mapping, optional
        Options of ``icechunk.s3_storage``, ``gcs_storage`` or ``azure_storage``, such as
        ``endpoint_url`` and ``access_key_id``; keys are else taken from the environment.
    progress : callable, optional
        Called with the number of objects that are written, and of all that will be.

    Returns
    -------
    Commit
        What was done.

    Raises
    ------
    StoreError
        The store is unfinished or damaged; the branch holds what this store would take back;
        the tag is taken; others committed time and again meanwhile.
    MissingLibraryError
        Icechunk is not installed.
    """
    path, target = Path(store), Revision.parse(str(repository))
    if target != Revision(target.repository):
        raise StoreError(f"{target} is one state of a repository", "name the repository alone")
    read_root(path)
    imported()
    with _alone(target.repository):
        opened = open_repository(target.repository, storage_options, create=True)
        run = _Run(path, target.repository, opened, branch, progress)
        with reported(f"{target.repository}, branch {branch}"):
            for _ in range(_ATTEMPTS):
                done = run.attempt(message, tag, replace=replace, allow_failed=allow_failed)
                if done is not None:
                    return done
    raise StoreError(
        f"{path} or branch {branch} of {target.repository} changed {_ATTEMPTS} times meanwhile",
        "commit again when other producers are done",
    )


@contextmanager
def _alone(location: str) -> Iterator[None]:
    """Wait for other commits to a folder; elsewhere Icechunk's compare and swap tells of them."""
    if not local(location):
        yield
        return
    folder = local_path(location)
    if not folder.is_file():
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        # Within the lock: another commit may be making the repository.
        make_way(folder)
        yield


class _Run:
    """One call of `commit`."""

    def __init__(
        self,
        path: Path,
        location: str,
        repository: Any,
        branch: str,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._path = path
        self._location = location
        self._repository = repository
        self._branch = branch
        self._progress = progress

    def attempt(
        self, message: str | None, tag: str | None, *, replace: bool, allow_failed: bool
    ) -> Commit | None:
        """Try once; None where the branch or the store changed under our hands."""
        # The branch before the store: what another commit brought in meanwhile is then in both.
        session = self._repository.writable_session(self._branch)
        parent = session.snapshot_id
        self._check_tag(tag, parent)
        before, foreign = self._tip(parent, replace=replace)
        state = Contents.of(self._path, allow_failed=allow_failed)
        if (
            before is not None
            and before.root["attributes"]["nec"]["fingerprint"]
            != (state.root["attributes"]["nec"]["fingerprint"])
        ):
            self._refuse(replace, "another run's store")
            before, foreign = None, True
        changed = state.changed(before)
        removed = set() if before is None else before.objects.keys() - state.objects.keys()
        if not changed and not removed:
            self._tag(tag, parent)
            return Commit(self._name(parent), parent, False, len(state.objects))
        if tag is not None and tag in self._repository.list_tags():
            raise self._taken(tag)
        if before is not None:
            self._check_successor(before, state, replace=replace)
        if foreign:
            session.store.sync_clear()
        try:
            size, documents = self._send(session.store, state, changed, removed)
        except StoreError:
            if Contents.of(self._path, allow_failed=allow_failed) == state:
                raise
            return None  # no damage: another producer went on with the store
        _write_documents(session.store, state, before, documents)
        details = {**state.describe(), "written": len(changed), "removed": len(removed)}
        details["bytes"] = size
        try:
            snapshot = session.commit(message or self._message(details), metadata={"nec": details})
        except imported().ConflictError:
            logger.info("branch %s of %s moved: once more", self._branch, self._location)
            return None
        self._tag(tag, snapshot)
        logger.info("committed %s as %s: %d objects", self._path, snapshot, len(changed))
        return Commit(
            self._name(snapshot),
            snapshot,
            True,
            len(state.objects),
            len(changed),
            len(removed),
            size,
        )

    def _name(self, snapshot: str) -> str:
        return str(Revision(self._location, snapshot=snapshot))

    def _message(self, details: Mapping[str, Any]) -> str:
        times = f"{details['times']} times to {details['last']}, " if "times" in details else ""
        sealed = "sealed, " if details["sealed"] else ""
        return f"{self._path.name}: {sealed}{times}{details['written']} objects written"

    def _refuse(self, replace: bool, what: str) -> None:
        if not replace:
            msg = f"branch {self._branch} of {self._location} holds {what}"
            remedy = "choose another repository, or replace it (replace=True, --replace)"
            raise StoreError(msg, remedy)

    def _check_tag(self, tag: str | None, tip: str) -> None:
        tags = self._repository.list_tags()
        if tag is not None and tag in tags and self._repository.lookup_tag(tag) != tip:
            raise self._taken(tag)

    def _taken(self, tag: str) -> StoreError:
        at = self._repository.lookup_tag(tag)
        msg = f"tag {tag} of {self._location} is that of snapshot {at}"
        return StoreError(msg, "tags never move: choose another")

    def _tag(self, tag: str | None, snapshot: str) -> None:
        if tag is not None and tag not in self._repository.list_tags():
            self._repository.create_tag(tag, snapshot)

    def _tip(self, snapshot: str, *, replace: bool) -> tuple[Contents | None, bool]:
        """Take down what the branch holds; None, and whether that is to be cleared away."""
        name = self._name(snapshot)
        store = RevisionStore(self._repository.readonly_session(snapshot_id=snapshot).store, name)
        if sync(store.is_empty("")):
            return None, False
        try:
            tip = checked(store, name)
        except StoreError as error:
            self._refuse(replace, f"what is no store of nec ({error.what})")
            return None, True
        if not tip.sealed:
            self._refuse(replace, "a store without a manifest, which nec commit did not write")
            return None, True
        return Contents.committed(tip), False

    def _check_successor(self, before: Contents, state: Contents, *, replace: bool) -> None:
        """Refuse what would take back what was committed."""
        if "seal" in before.root["attributes"]["nec"]:
            self._refuse(replace, "this store sealed, so it never changes, and other bytes of it")
        if lost := sorted(before.scenes - state.scenes):
            some = ", ".join(f"{name} of {day}" for day, name in lost[:3])
            self._refuse(replace, f"{len(lost)} scenes that {self._path} lacks ({some})")

    def _send(
        self, store: Any, state: Contents, changed: set[str], removed: set[str]
    ) -> tuple[int, dict[str, bytes]]:
        """Write what changed; return bytes written, and documents that Zarr has no keys for."""
        documents = {k: self._checked(k, state) for k in changed if document_place(k) is not None}
        metadata = sorted(key for key in changed if key.endswith(ROOT))
        chunks = sorted(changed - documents.keys() - set(metadata))
        # Icechunk takes away chunks within an array's old shape, and adds them within its new one.
        sync(_delete(store, {key for key in removed if document_place(key) is None}))
        batches = [metadata, *(chunks[at : at + _BATCH] for at in range(0, len(chunks), _BATCH))]
        size, done = sum(map(len, documents.values())), len(documents)
        for keys in batches:
            batch = {key: self._checked(key, state) for key in keys}
            sync(_set(store, batch))
            size += sum(map(len, batch.values()))
            done += len(batch)
            if self._progress is not None:
                self._progress(done, len(changed))
        return size, documents

    def _checked(self, key: str, state: Contents) -> bytes:
        """Read an object, and hold it against its digest, its checksums and the root."""
        if key == ROOT:
            return canonical(state.root)
        data = checked_object(self._path, key, state.objects[key])
        name, _, rest = key.rpartition("/")
        if rest == ROOT:
            copy = state.root["consolidated_metadata"]["metadata"][name]
            own = {k: v for k, v in copy.items() if k != "consolidated_metadata"}
            problems = [] if canonical(own) == data else ["differs from its copy in zarr.json"]
        else:
            array = state.arrays.get(key.partition("/c/")[0])
            problems = [] if array is None else damage(array, data)
        if problems:
            msg = f"{key} of {self._path} is damaged: {'; '.join(problems)}"
            raise StoreError(msg, "run nec verify; restore it from a copy")
        return data


async def _set(store: Any, objects: Mapping[str, bytes]) -> None:
    await asyncio.gather(
        *(store.set(key, cpu.Buffer.from_bytes(data)) for key, data in objects.items())
    )


async def _delete(store: Any, keys: Iterable[str]) -> None:
    # An array's metadata last: Icechunk knows no chunks without it.
    for key in sorted(keys, key=lambda key: (key.endswith(ROOT), key)):
        await store.delete(key)


def _write_documents(
    store: Any, state: Contents, before: Contents | None, steps: Mapping[str, bytes]
) -> None:
    """Write the manifest and the scenes of times, those that changed, as arrays of strings."""
    old = {} if before is None else before.documents
    fresh = {key: data for key, data in state.documents.items() if old.get(key) != data}
    places: dict[str, dict[int, str]] = {MANIFEST: {}, SCENES: {}}
    for key, data in {**fresh, **steps}.items():
        name, index = document_place(key) or ("", 0)
        places[name][index] = data.decode()
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    for name, length in ((MANIFEST, len(state.documents)), (SCENES, len(state.steps))):
        array: Any = group.get(name)
        if array is None and length:
            array = group.create_array(
                name,
                shape=(length,),
                chunks=(1,),
                dtype="string",
                compressors=(ZstdCodec(level=9), Crc32cCodec()),
            )
        elif array is not None and array.shape != (length,):
            array.resize((length,))
        for index, text in places[name].items():
            array[index] = text
