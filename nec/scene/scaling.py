"""How the numbers of a scene become reflectance: one stated scale and offset, never per chip."""

import logging
from dataclasses import dataclass

import numpy as np

from nec.errors import SceneError
from nec.scene.sensors import SENTINEL2, Sensor

logger = logging.getLogger(__name__)

#: Share of values above 4 from which floats cannot be reflectance.
_COMMONLY = 0.01
#: From here on ESA's Sentinel-2 products are of baseline 04.00, shifted by 1,000.
_SHIFTED_FROM = np.datetime64("2022-01-25")


@dataclass(frozen=True)
class Scaling:
    """reflectance = number * scale + offset.

    Attributes
    ----------
    scale, offset : float
        The same for all bands of a scene.
    source : str
        Where they come from, a sentence for logs and metadata.
    """

    scale: float
    offset: float
    source: str


def decide_scaling(
    name: str,
    dtype: np.dtype[np.generic],
    tags: tuple[float, float],
    sensor: Sensor | None,
    *,
    scale: float | None = None,
    offset: float | None = None,
    time: np.datetime64 | None = None,
    tagged_by: str = "file",
) -> Scaling:
    """Choose the scaling: what the caller says, then the file's tags, then type and sensor.

    Parameters
    ----------
    name : str
        The scene's name, for messages.
    dtype : dtype
        Type of the stored numbers.
    tags : tuple of float
        Scale and offset that the file itself states; (1, 0) where it states none.
    sensor : Sensor, optional
        What was recognised of the sensor.
    scale, offset : float, optional
        The caller's; an offset without a scale replaces that of the scaling found otherwise.
    time : datetime64, optional
        Acquisition; Sentinel-2 of a time of shifted numbers and of unknown baseline is warned of.
    tagged_by : str
        What states `tags`, for logs and metadata.

    Raises
    ------
    SceneError
        If integers come without a scaling, or the numbers are no reals.
    """
    if dtype.kind not in "iuf":
        raise SceneError(
            f"{name} holds {dtype} numbers, which are no reflectance",
            "convert them to integers or floats",
        )
    for option, value in (("scale", scale), ("offset", offset)):
        if value is not None and not np.isfinite(value):
            raise SceneError(f"{option}={value} is no number", f"pass {option}= as a number")
    if scale is not None:
        found = Scaling(float(scale), float(offset or 0.0), "Scale and offset given by the caller.")
    elif tags != (1.0, 0.0):
        found = Scaling(*tags, f"Scale and offset tags of the {tagged_by}.")
    elif dtype == np.uint8:
        found = Scaling(1 / 255, 0.0, "8-bit display values, divided by 255.")
    elif dtype.kind == "f":
        found = Scaling(1.0, 0.0, "Floats, taken as reflectance as they are.")
    elif sensor is not None:
        found = Scaling(
            sensor.scale, sensor.offset, f"Fixed scaling of digital numbers of {sensor.name}."
        )
        if sensor == SENTINEL2 and offset is None and time is not None and time >= _SHIFTED_FROM:
            logger.warning(
                "%s: Sentinel-2 of %s, and nothing states its processing baseline: from 04.00 on "
                "reflectance comes out 0.1 too high; pass offset=-0.1, or offset=0 if the numbers "
                "are not shifted",
                name,
                time.astype("datetime64[D]"),
            )
    else:
        raise SceneError(
            f"{name} holds {dtype} numbers, carries no scale tag and names no sensor",
            "pass scale= and offset= (Sentinel-2: scale=1e-4; Landsat level 1: scale=2e-5, "
            "offset=-0.1; Landsat Collection 2 level 2: scale=2.75e-5, offset=-0.2)",
        )
    if offset is not None and scale is None:
        source = f"{found.source[:-1]}; offset given by the caller."
        found = Scaling(found.scale, float(offset), source)
    logger.info(
        "%s: reflectance = number * %g + %g. %s", name, found.scale, found.offset, found.source
    )
    return found


def check_floats(
    name: str,
    reflectance: np.ndarray,
    remedy: str = "pass scale= (digital numbers of Sentinel-2: scale=1e-4; 0 to 255: scale=1/255)",
) -> None:
    """Refuse floats that cannot be reflectance, such as digital numbers stored as floats.

    Parameters
    ----------
    name : str
        The scene's name, for the message.
    reflectance : ndarray
        A sample of values; NaN is missing.
    remedy : str
        For the message.

    Raises
    ------
    SceneError
        If more than one value in a hundred is above 4.
    """
    values = reflectance[np.isfinite(reflectance)]
    if values.size and (values > 4).mean() > _COMMONLY:
        raise SceneError(
            f"{name} holds floats that are no reflectance (median {np.median(values):.4g})",
            remedy,
        )
