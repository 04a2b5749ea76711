"""A new store: all but its vectors, built aside and renamed into place."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from nec.archive.layout import ArrayLayout, Coordinate, Layout
from nec.archive.metadata import (
    array_attributes,
    canonical,
    grid_mapping_attributes,
    merge,
    parse,
    parse_root,
    root_attributes,
    stamp_root,
)
from nec.archive.temporaries import FATAL, building
from nec.archive.vectors import FOLDER as VECTORS
from nec.archive.vectors import make_vector
from nec.codec import NecCodec
from nec.errors import StoreError


def create(
    path: Path,
    layout: Layout,
    *,
    codecs: Mapping[str, NecCodec],
    attributes: Mapping[str, Any],
    basis: NDArray[np.float32] | None,
    fingerprint: str,
) -> bool:
    """Build a store under a temporary sibling name and rename it to `path`.

    Parameters
    ----------
    path : Path
        Where the store is to be; absent, or an empty folder.
    layout : Layout
        What lies in it.
    codecs : mapping of str to NecCodec
        For each array of the layout, by name.
    attributes : mapping
        Root attributes of the producer.
    basis : ndarray of shape (component, feature), float32, optional
        Goes to the subgroup `nec`.
    fingerprint : str
        Of the run.

    Returns
    -------
    bool
        False where another producer was there first.

    Raises
    ------
    StoreError
        The codec does not fit the layout, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FATAL:
            raise
        raise StoreError(
            f"{path.parent} cannot become a folder ({error.strerror})", "choose another path"
        ) from error
    with building(path) as folder:
        root = zarr.create_group(folder, zarr_format=3)
        for array in layout.arrays():
            _array(root, array, codecs[array.name], array_attributes(array, layout, attributes))
        for coordinate in layout.coordinates:
            write_coordinate(root, coordinate)
        if layout.grid is not None:
            # Always 0, which is the fill value: the metadata are all there is of it.
            attrs = grid_mapping_attributes(layout.grid)
            root.create_array("spatial_ref", shape=(), dtype="int32", attributes=attrs)
        own = root.create_group("nec")
        if basis is not None:
            values = np.ascontiguousarray(basis, dtype=np.float32)
            write_coordinate(own, Coordinate("basis", ("component", "feature"), values))
        vectors = root.create_group(VECTORS)
        for array in layout.arrays():
            _vector(vectors.create_group(array.name), codecs[array.name])
        state = {
            "nec": {
                "format_version": max(codec.coding.version for codec in codecs.values()),
                "fingerprint": fingerprint,
                "install": "pip install nec",
            }
        }
        _consolidate(folder, merge(root_attributes(layout, attributes), state))
        return _rename(folder, path)


def _rename(folder: Path, path: Path) -> bool:
    try:
        folder.rename(path)  # replaces an empty folder, never one that holds something
    except OSError as error:
        if (path / "zarr.json").exists():
            return False
        msg = f"{path} cannot become a store ({error.strerror})"
        raise StoreError(msg, "choose another path") from error
    return True


def _array(
    group: zarr.Group, array: ArrayLayout, codec: NecCodec, attributes: Mapping[str, Any]
) -> None:
    group.create_array(
        array.name,
        shape=array.shape,
        chunks=array.chunk,
        shards=array.shard,
        dtype="float32",
        fill_value=float("nan"),
        serializer=codec,
        compressors=(Crc32cCodec(),),
        dimension_names=array.dims,
        attributes=dict(attributes),
    )


def write_coordinate(group: zarr.Group, coordinate: Coordinate) -> None:
    """Write a coordinate to a group, chunks of nothing but the fill value too."""
    values = coordinate.values
    dtype: Any = values.dtype
    serializer: Any = BytesCodec(endian="little")
    compressor: Any = BloscCodec(
        typesize=values.dtype.itemsize, cname="zstd", clevel=9, shuffle="shuffle"
    )
    if values.dtype.kind not in "iufb":
        values, dtype, serializer = values.astype(object), "string", "auto"
        compressor = ZstdCodec(level=19)
    array = group.create_array(
        coordinate.name,
        shape=values.shape,
        chunks=tuple(coordinate.chunk or max(size, 1) for size in values.shape),
        dtype=dtype,
        serializer=serializer,
        compressors=(compressor, Crc32cCodec()),
        dimension_names=coordinate.dims,
        attributes=dict(coordinate.attributes),
        config={"write_empty_chunks": True},
    )
    array[...] = values


def _vector(group: zarr.Group, codec: NecCodec) -> None:
    chunk, values = make_vector(codec)
    for name, dims, data in (
        ("chunk", ("byte",), chunk),
        ("values", ("sample", "band", "y", "x"), values),
    ):
        # Plain bytes: a reader that is tried on them need not have any compressor.
        array = group.create_array(
            name,
            shape=data.shape,
            chunks=data.shape,
            dtype=data.dtype,
            serializer=BytesCodec(endian="little"),
            compressors=(Crc32cCodec(),),
            dimension_names=dims,
            config={"write_empty_chunks": True},
        )
        array[...] = data


def _consolidate(store: Path, attributes: Mapping[str, Any]) -> None:
    """Rewrite every ``zarr.json`` in canonical form, and the root's with all others inside."""
    metadata: dict[str, Any] = {}
    for file in sorted(store.rglob("zarr.json")):
        name = file.parent.relative_to(store).as_posix()
        document = json.loads(file.read_bytes())
        file.write_bytes(canonical(document))
        if name == ".":
            root = document
            continue
        if document["node_type"] == "group":
            inner = {"kind": "inline", "must_understand": False, "metadata": {}}
            document = {**document, "consolidated_metadata": inner}
        metadata[name] = document
    inline = {"kind": "inline", "must_understand": False, "metadata": metadata}
    root = {**root, "attributes": dict(attributes), "consolidated_metadata": inline}
    (store / "zarr.json").write_bytes(canonical(stamp_root(root)))
    for folder in [store, *(entry for entry in store.rglob("*") if entry.is_dir())]:
        _sync(folder)


def _sync(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_file():
            with entry.open("rb") as file:
                os.fsync(file.fileno())


def stored_arrays(root: Mapping[str, Any]) -> dict[str, ArrayLayout]:
    """Every array of a store, by name, from the metadata consolidated in its root."""
    metadata = root.get("consolidated_metadata", {}).get("metadata", {})
    return {
        name: ArrayLayout.from_metadata(name, document)
        for name, document in metadata.items()
        if document.get("node_type") == "array"
    }


def serializer_of(array: ArrayLayout, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the codec that makes bytes of an array's chunks."""
    codec = document["codecs"][0]
    return dict(codec["configuration"]["codecs"][0] if array.shard is not None else codec)


def stored_codec(root: Mapping[str, Any], name: str) -> NecCodec:
    """Return the codec of one array of a store; ChunkError where it is not understood."""
    document = root["consolidated_metadata"]["metadata"][name]
    array = ArrayLayout.from_metadata(name, document)
    return NecCodec.from_dict(serializer_of(array, document))


def read_root(path: Path) -> dict[str, Any]:
    """Read and check the root ``zarr.json`` of a store on disk; see `parse_root`."""
    try:
        data = (path / "zarr.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"no store at {path}: it has no zarr.json", "check the path") from error
    return parse_root(data, str(path))


def consolidated_document(root: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return one array's or group's ``zarr.json`` as the root has it."""
    document = root["consolidated_metadata"]["metadata"][name]
    return {k: v for k, v in document.items() if k != "consolidated_metadata"}


def child_document(path: Path, name: str) -> dict[str, Any]:
    """Read one array's or group's own ``zarr.json``; StoreError where it is not as written."""
    return parse((path / name / "zarr.json").read_bytes(), f"{name}/zarr.json of {path}")
