"""The scenes of an archive: found in a folder, or named in a list or a table."""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nec.errors import SceneError
from nec.scene.opening import RASTER_SUFFIXES
from nec.scene.sources import scene_name_of
from nec.scene.stac import is_stac, read_items, scene_name

if TYPE_CHECKING:
    import pystac

_LISTS = (".txt", ".lst")
_TABLES = (".csv", ".tsv")
# Columns of a table besides `path` and `name`: options of the scene, and how they are read.
_COLUMNS: dict[str, type] = {
    "time": str,
    "crs": str,
    "mask": str,
    "mask_classes": str,
    "scale": float,
    "offset": float,
    "nodata": float,
}


@dataclass(frozen=True)
class SceneEntry:
    """One scene of an archive.

    Attributes
    ----------
    name : str
        Of the scene and of its store, ``NAME.zarr``; may hold folders, as ``2019/T33UUU``.
    source : str or pystac.Item
        Path or URL of a raster, or of a folder of one scene's files; a STAC item.
    options : dict
        Of `nec.scene.open_scene`, for this scene alone.
    """

    name: str
    source: "str | pystac.Item"
    options: dict[str, Any] = field(default_factory=dict)


def find_scenes(source: Any) -> list[SceneEntry]:
    """List the scenes of an archive, in order of their names.

    Parameters
    ----------
    source : path, sequence of them, or STAC object
        A folder: every raster in it, and every folder in it that holds rasters (the files of one
        scene, as a .SAFE), is a scene; hidden entries do not count. A list (.txt): a path or URL
        a line, comments after #. A table (.csv, .tsv) with a column `path` and, where wanted,
        `name`, time, crs, mask, mask_classes, scale, offset and nodata. The JSON of a STAC
        ItemCollection, Item, Collection or Catalog, or the pystac object: every item. Or paths of
        scenes. Relative paths in lists and tables start from their folder.

    Returns
    -------
    list of SceneEntry
        A path that is named twice is one scene.

    Raises
    ------
    SceneError
        If there is none, a list cannot be read, or two scenes would have one name.
    """
    if is_stac(source):
        entries = _items(source)
    elif isinstance(source, str | Path):
        entries = _of_one(Path(source)) if "://" not in str(source) else [_named(str(source))]
    else:
        entries = [
            entry
            for path in source
            for entry in (_items(path) if is_stac(path) else [_named(os.fspath(path))])
        ]
    found: dict[str, SceneEntry] = {}
    for entry in entries:
        other = found.setdefault(entry.name, entry)
        if other != entry:
            raise SceneError(
                f"{entry.source} and {other.source} would both be stored as {entry.name}.zarr",
                "name them apart in a table with columns path and name",
            )
    if not found:
        raise SceneError(f"{source} holds no scene", "pass a folder of rasters, or a list of paths")
    return [found[name] for name in sorted(found)]


def _named(path: str) -> SceneEntry:
    return SceneEntry(scene_name_of(path), path)


def _items(source: Any) -> list[SceneEntry]:
    return [SceneEntry(scene_name(item), item) for item in read_items(source)]


def _of_one(path: Path) -> list[SceneEntry]:
    if path.is_dir():
        return list(_in_folder(path))
    suffix = path.suffix.lower()
    if suffix not in (*_LISTS, *_TABLES):
        return [_named(str(path))]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SceneError(f"{path} cannot be read as a list ({error})", "check the path") from error
    return _in_table(path, text) if suffix in _TABLES else _in_list(path, text)


def _in_folder(folder: Path) -> Iterator[SceneEntry]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            pattern = "GRANULE/*/IMG_DATA/**/*" if entry.suffix == ".SAFE" else "*"
            holds = any(file.suffix.lower() in RASTER_SUFFIXES for file in entry.glob(pattern))
        else:
            holds = entry.suffix.lower() in RASTER_SUFFIXES
        if holds:
            yield _named(str(entry))


def _in_list(path: Path, text: str) -> list[SceneEntry]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [_named(_from(path, line)) for line in lines if line]


def _in_table(path: Path, text: str) -> list[SceneEntry]:
    reader = csv.DictReader(
        text.splitlines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ","
    )
    columns = set(reader.fieldnames or ())
    if "path" not in columns or columns - {"path", "name", *_COLUMNS}:
        raise SceneError(
            f"{path} has columns {sorted(columns)}",
            f"it needs path, and may have name, {', '.join(_COLUMNS)}",
        )
    entries = []
    for number, row in enumerate(reader, start=2):
        if not row["path"]:
            raise SceneError(f"line {number} of {path} has no path", "give the file of the scene")
        try:
            options = {key: read(row[key]) for key, read in _COLUMNS.items() if row.get(key)}
        except ValueError as error:
            raise SceneError(f"line {number} of {path}: {error}", "correct it") from error
        if "mask" in options:
            mask, beside = options["mask"], _from(path, options["mask"])
            # A bare word that is no file names a band of the scene.
            bare = not Path(mask).suffix and "/" not in mask and not Path(beside).exists()
            options["mask"] = mask if bare else beside
        source = _from(path, row["path"])
        entries.append(SceneEntry(row.get("name") or Path(source).stem, source, options))
    return entries


def _from(table: Path, path: str) -> str:
    return path if "://" in path or path.startswith("/vsi") else str(table.parent / path)
