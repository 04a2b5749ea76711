"""The archive: write, resume, seal, verify, publish, commit and read a store of embeddings."""

from nec.archive.commit import Commit, commit
from nec.archive.grid import Task, TokenGrid
from nec.archive.layout import ArrayLayout, Coordinate, Layout
from nec.archive.objects import Traffic
from nec.archive.publication import Publication, publish
from nec.archive.reader import open_store, read_basis
from nec.archive.receipts import Receipt
from nec.archive.repository import Snapshot, history
from nec.archive.seal import seal
from nec.archive.series import Contributor, TimeStep
from nec.archive.state import discard, is_of_earlier_source, is_sealed
from nec.archive.verification import Problem, Report, verify
from nec.archive.writer import StoreWriter

__all__ = [
    "ArrayLayout",
    "Commit",
    "Contributor",
    "Coordinate",
    "Layout",
    "Problem",
    "Publication",
    "Receipt",
    "Report",
    "Snapshot",
    "StoreWriter",
    "Task",
    "TimeStep",
    "TokenGrid",
    "Traffic",
    "commit",
    "discard",
    "history",
    "is_of_earlier_source",
    "is_sealed",
    "open_store",
    "publish",
    "read_basis",
    "seal",
    "verify",
]
