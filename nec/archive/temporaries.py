"""Temporary files and folders: seen by their final name whole or not at all, and swept up.

A producer holds a lock on what it is building; the kernel drops it when the producer dies, so
whatever is not locked was left by a kill. Writing needs a POSIX file system, reading does not.
"""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nec.errors import StoreError

SUFFIX = ".partial"
# A folder is made an instant before it is locked: younger ones are left alone, seconds.
_YOUNG = 10
_ATTEMPTS = 5
# No use in going on: every further write would fail the same way.
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def beside(path: Path) -> Path:
    """Make up a temporary name in the same folder."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{SUFFIX}")


def put(path: Path, data: bytes) -> None:
    """Write a file so that it is seen whole or not at all, and is there after a power cut."""
    for attempt in range(_ATTEMPTS):
        fresh = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(path)
        try:
            with temporary.open("wb") as file:
                _lock(file.fileno(), wait=True)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
        except FileNotFoundError:
            # Swept up between its making and its locking: once more.
            if attempt == _ATTEMPTS - 1:
                raise
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        else:
            # A name outlives a power cut once its folder is written, and so does a folder's own.
            for folder in (path.parent, *(folder.parent for folder in fresh)):
                _sync(folder)
            return


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """Make a locked temporary folder beside `path`; what is left of it at the end is removed."""
    folder = beside(path)
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, wait=True)
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(store: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a store: alone to change its metadata, shared to commit a task."""
    import fcntl

    try:
        descriptor = os.open(store, os.O_RDONLY)
    except FileNotFoundError as error:
        raise StoreError(f"no store at {store}", "it was removed: run again") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def tidy(store: Path) -> None:
    """Remove what killed producers left: temporary files inside, half-built stores beside."""
    for file in store.rglob(f".*{SUFFIX}"):
        if _abandoned(file):
            file.unlink(missing_ok=True)
    for folder in store.parent.glob(f".{store.name}.*{SUFFIX}"):
        if _abandoned(folder) and time.time() - folder.stat().st_mtime > _YOUNG:
            shutil.rmtree(folder, ignore_errors=True)


def _lock(descriptor: int, *, wait: bool) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _abandoned(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        _lock(descriptor, wait=False)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
