"""Codecs on 8-bit RGB pixels, at their smallest: bare streams, shared tables not counted."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rate_bench.tasks import Coded, Fold, Progress, Stopwatch, Task, embedded

Pixels = NDArray[np.uint8]
# Images beside each other in a mosaic.
ACROSS = 10
_COMMENT, _START_OF_TILE, _JPEG2000 = 0xFF64, 0xFF90, 0xFF4F
# Heads of a WebP file's container.
_RIFF = 20
# Quality of JPEG, WebP and AVIF; distance of JPEG XL; bytes an image of JPEG 2000.
LADDERS: dict[str, dict[str, tuple[float, ...]]] = {
    "eurosat_rgb": {
        "JPEG": (1, 10, 25, 50, 80),
        "WebP": (0, 10, 30, 60, 85),
        "JPEG 2000": (155, 200, 300, 600, 1200, 2400),
        "AVIF": (1, 15, 35, 55, 75),
        "JPEG XL": (25, 15, 8, 4, 2),
        "half size, JPEG 2000": (155, 200, 300, 600),
        "quarter size, JPEG 2000": (155, 200),
        "JPEG 2000, mosaic of 100": (12, 36, 75, 150, 400, 1200),
    },
    "ucmerced": {
        "JPEG": (5, 20, 50),
        "WebP": (0, 20, 60),
        "JPEG 2000": (200, 580, 1200, 3000, 7500),
        "AVIF": (5, 25, 50),
        "JPEG XL": (25, 12, 5),
        "half size, JPEG 2000": (200, 580, 1200),
        "quarter size, JPEG 2000": (200, 580),
    },
}


@dataclass(frozen=True)
class PixelCodec:
    """One codec at one setting: an image (y, x, 3) to bytes, and back.

    `bare` counts the bytes of a stream without what all images of one size and setting share.
    """

    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes], Pixels]
    bare: Callable[[bytes], int] = len


def codec(name: str, setting: float) -> PixelCodec | None:
    """Return a codec; None where its library is not installed."""
    if name == "JPEG XL":
        return _jpeg_xl(setting)
    if name.endswith("size, JPEG 2000"):
        return _shrunk(2 if name.startswith("half") else 4, setting)
    if name.startswith("JPEG 2000"):
        return PixelCodec(lambda image: _jpeg2000(image, setting), _read)
    if name == "JPEG":
        # The same tables lead every stream of one quality: an abbreviated stream leaves them out.
        blank = np.zeros((8, 8, 3), np.uint8)
        tables = len(_written(blank, "JPEG", quality=int(setting))) - len(
            _written(blank, "JPEG", quality=int(setting), streamtype=2)
        )
        return PixelCodec(
            lambda image: _written(image, "JPEG", quality=int(setting)),
            _read,
            lambda data: len(data) - tables,
        )
    options: dict[str, Any]
    options, bare = {
        "WebP": ({"method": 6}, lambda data: len(data) - _RIFF),
        "AVIF": ({"speed": 4, "max_threads": 1}, _media_bytes),
    }[name]
    return PixelCodec(
        lambda image: _written(image, name, quality=int(setting), **options), _read, bare
    )


def code_pixels(
    task: Task, fold: Fold, name: str, setting: float, encoder: Any, progress: Progress
) -> Coded | None:
    """Code the images, embed what is decoded; None where the codec is not installed."""
    found = codec(name, setting if "mosaic" not in name else setting * task.chunk)
    if found is None:
        return None
    pixels, (_, test) = task.pixels, fold
    decoded, size = np.empty_like(pixels), np.zeros(len(pixels))
    encoding, decoding = Stopwatch(), Stopwatch()
    mosaic = "mosaic" in name
    groups = list(task.chunks(fold)) if mosaic else [np.array([i]) for i in range(len(pixels))]
    for group in groups:
        image = _joined(pixels[group]) if mosaic else pixels[group[0]]
        # A chunk that is not full gets its share of the bytes.
        one = codec(name, setting * len(group)) if mosaic else found
        assert one is not None
        with encoding:
            data = one.encode(image)
        with decoding:
            back = one.decode(data)
        decoded[group] = _parted(back, len(group), pixels.shape[1]) if mosaic else back
        size[group] = one.bare(data) / len(group)
    count = 1e3 / len(pixels)
    if not mosaic:
        # Streams of single images are the same in all folds: all that are tested.
        test = np.unique(np.concatenate([tested for _, tested in task.folds]))
    return Coded(
        embedded(encoder, task, decoded, progress),
        float(size[test].mean()),
        encoding.seconds * count,
        decoding.seconds * count,
    )


def _written(image: Pixels, name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format=name, **options)
    return stream.getvalue()


def _read(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _media_bytes(data: bytes) -> int:
    """Return the bytes of an AVIF file's AV1 data, without the boxes around it."""
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"mdat":
            return (length or len(data) - at) - 8
        at += length
    raise ValueError("an AVIF file without media data")


def _jpeg2000(image: Pixels, target: float) -> bytes:
    """Return a bare codestream of about so many bytes, without the encoder's comment."""
    data = _written(
        image,
        "JPEG2000",
        no_jp2=True,
        irreversible=True,
        quality_mode="rates",
        quality_layers=[image.size / target],
    )
    return bare_codestream(data)


def bare_codestream(data: bytes) -> bytes:
    """Return a JPEG 2000 codestream without the encoder's comment."""
    assert int.from_bytes(data[:2]) == _JPEG2000
    at, out = 2, data[:2]
    while (marker := int.from_bytes(data[at : at + 2])) != _START_OF_TILE:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        out += b"" if marker == _COMMENT else data[at:end]
        at = end
    return out + data[at:]


def _jpeg_xl(distance: float) -> PixelCodec | None:
    try:
        import imagecodecs
    except ImportError:
        return None

    def encode(image: Pixels) -> bytes:
        return imagecodecs.jpegxl_encode(
            image, distance=distance, effort=7, usecontainer=False, numthreads=1
        )

    return PixelCodec(encode, lambda data: imagecodecs.jpegxl_decode(data, numthreads=1))


def _shrunk(factor: int, target: float) -> PixelCodec:
    def encode(image: Pixels) -> bytes:
        return _jpeg2000(np.asarray(Image.fromarray(image).reduce(factor)), target)

    def decode(data: bytes) -> Pixels:
        small = Image.fromarray(_read(data))
        size = (small.width * factor, small.height * factor)
        return np.asarray(small.resize(size, Image.Resampling.BICUBIC))

    return PixelCodec(encode, decode)


def _joined(images: Pixels) -> Pixels:
    """Lay images (n, y, x, 3) beside each other, a last row filled up with the last image."""
    across = min(ACROSS, len(images))
    down = math.ceil(len(images) / across)
    filled = np.concatenate([images, *[images[-1:]] * (across * down - len(images))])
    rows = filled.reshape(down, across, *images.shape[1:]).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(rows.reshape(down * images.shape[1], -1, 3))


def _parted(mosaic: Pixels, count: int, edge: int) -> Pixels:
    down, across = mosaic.shape[0] // edge, mosaic.shape[1] // edge
    rows = mosaic.reshape(down, edge, across, edge, 3).transpose(0, 2, 1, 3, 4)
    return rows.reshape(-1, edge, edge, 3)[:count]
