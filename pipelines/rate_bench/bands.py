"""Codecs on single bands of reflectance, 16 bits a pixel, at their smallest."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nec.encoders.tiling import fill_missing
from rate_bench.pixels import bare_codestream

# Reflectance that fills the 16 bits. Codecs see its square root, as the encoder does: dark and
# bright land then count alike, which serves the codecs.
BRIGHTEST = 1.5
FULL = 65535

Band = NDArray[np.float32]
Numbers = NDArray[np.uint16]


@dataclass(frozen=True)
class BandCodec:
    """A codec of one band (y, x) with the settings that are tried."""

    name: str
    ladder: tuple[float, ...]
    to_bytes: Callable[[Numbers, float], bytes]
    to_numbers: Callable[[bytes], Numbers]
    factor: int = 1

    def encode(self, band: Band, setting: float) -> bytes:
        """Return the stream; what is missing in the band is filled."""
        filled = fill_missing(band[None])[0]
        root = np.sqrt(np.clip(filled, 0, BRIGHTEST) / BRIGHTEST)
        numbers = np.rint(FULL * root).astype(np.uint16)
        if self.factor > 1:
            numbers = np.asarray(_resized(numbers, 1 / self.factor), np.uint16)
        return self.to_bytes(numbers, setting)

    def decode(self, data: bytes, shape: tuple[int, ...]) -> Band:
        """Return the reflectance that a stream stands for."""
        numbers = self.to_numbers(data).astype(np.float32)
        if self.factor > 1:
            image = Image.fromarray(numbers)
            size = (shape[1], shape[0])
            numbers = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        return np.square(np.clip(numbers, 0, FULL) / FULL) * np.float32(BRIGHTEST)


def _resized(numbers: Numbers, scale: float) -> NDArray[np.float32]:
    image = Image.fromarray(numbers.astype(np.float32))
    size = (round(image.width * scale), round(image.height * scale))
    return np.rint(np.asarray(image.resize(size, Image.Resampling.BOX)))


def _jpeg2000(numbers: Numbers, quality: float) -> bytes:
    """Return a bare codestream at a PSNR of the 16 bits: one distortion for all bands."""
    stream = io.BytesIO()
    Image.fromarray(numbers).save(
        stream,
        format="JPEG2000",
        no_jp2=True,
        irreversible=True,
        quality_mode="dB",
        quality_layers=[quality],
    )
    return bare_codestream(stream.getvalue())


def _jpeg2000_numbers(data: bytes) -> Numbers:
    return np.asarray(Image.open(io.BytesIO(data))).astype(np.uint16)


def _jpeg_xl(numbers: Numbers, distance: float) -> bytes:
    import imagecodecs

    return bytes(
        imagecodecs.jpegxl_encode(
            numbers, distance=distance, effort=7, usecontainer=False, numthreads=1
        )
    )


def _jpeg_xl_numbers(data: bytes) -> Numbers:
    import imagecodecs

    return np.asarray(imagecodecs.jpegxl_decode(data, numthreads=1), np.uint16)


QUALITIES = (26, 29, 32, 35, 38, 41, 45)
BAND_CODECS = (
    BandCodec("JPEG 2000", QUALITIES, _jpeg2000, _jpeg2000_numbers),
    BandCodec("JPEG XL", (25, 15, 8, 4, 2, 1, 0.5), _jpeg_xl, _jpeg_xl_numbers),
    BandCodec("half size, JPEG 2000", QUALITIES[1:6], _jpeg2000, _jpeg2000_numbers, factor=2),
)
