"""What is known of sensors: how files and bands are named, and how digital numbers are scaled."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nec.errors import SceneError

#: Band names of the STAC electro-optical extension that hold a reflectance. Panchromatic
#: bands are left out (their grid is half a pixel off), thermal ones too (not a reflectance).
COMMON_NAMES = (
    *("coastal", "blue", "green", "yellow", "red"),
    *("rededge", "rededge071", "rededge075", "rededge078"),
    *("nir", "nir08", "nir09", "cirrus", "swir16", "swir22"),
)
# Names of the extension that the caller may give to bands which hold no reflectance.
_OTHERS = ("pan", "lwir", "lwir11", "lwir12")
ALIASES = {"rededge1": "rededge071", "rededge2": "rededge075", "rededge3": "rededge078"}


@dataclass(frozen=True)
class Sensor:
    """A sensor and processing level whose band names and scaling are fixed.

    Attributes
    ----------
    name : str
        For messages and metadata.
    bands : dict
        Common name by the sensor's own band name, without a zero in front: ``"B2"``.
    scale, offset : float
        reflectance = digital number * scale + offset.
    nodata : float or None
        The number that fills pixels without data, where files do not tag it: in all bands, or,
        where it is negative, in any.
    """

    name: str
    bands: dict[str, str]
    scale: float
    offset: float
    nodata: float | None = None


_MSI = {
    **{"B1": "coastal", "B2": "blue", "B3": "green", "B4": "red"},
    **{"B5": "rededge071", "B6": "rededge075", "B7": "rededge078", "B8": "nir", "B8A": "nir08"},
    **{"B9": "nir09", "B10": "cirrus", "B11": "swir16", "B12": "swir22"},
}
_OLI = {
    **{"B1": "coastal", "B2": "blue", "B3": "green", "B4": "red", "B5": "nir08"},
    **{"B6": "swir16", "B7": "swir22", "B9": "cirrus"},
}
_TM = {"B1": "blue", "B2": "green", "B3": "red", "B4": "nir08", "B5": "swir16", "B7": "swir22"}

#: Of an unknown processing baseline.
SENTINEL2 = Sensor("Sentinel-2", _MSI, 1e-4, 0.0, nodata=0.0)
_HLS_S30 = Sensor("HLS S30", _MSI, 1e-4, 0.0, nodata=-9999.0)
_HLS_L30 = Sensor("HLS L30", _OLI, 1e-4, 0.0, nodata=-9999.0)

_HLS = re.compile(r"HLS[._-]?([SL])30")
_LANDSAT_PRODUCT = re.compile(r"(?<![A-Za-z0-9])L[COTEM]0([4-9])_L([12])")
_LANDSAT_NAME = re.compile(r"landsat[-_ ]?([4-9])?", re.IGNORECASE)
_SURFACE = re.compile(r"(?<![a-z0-9])(l2(sp|sr)?|sr|level[-_ ]?2)(?![a-z0-9])", re.IGNORECASE)
_SENTINEL2 = re.compile(
    r"(?i:sentinel[-_ ]?2)|(?<![A-Za-z0-9])S2(?![0-9])|T\d{2}[A-Z]{3}_\d{8}T\d{6}"
)
_BASELINE = re.compile(r"_N(\d{4})_")

_OWN_NAME = re.compile(r"(?:SR_|TOA_)?B0?(\d{1,2}A?)", re.IGNORECASE)
_TAIL = re.compile(
    r"(?:^|[_.\-])((?:SR_)?B\d{1,2}A?|"
    + "|".join((*sorted(COMMON_NAMES, key=len, reverse=True), *ALIASES))
    + r")(?:[_.\-]\d+m)?$",
    re.IGNORECASE,
)

_STAMP = re.compile(r"(?<!\d)(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})(?!\d)")
_DAY_OF_YEAR = re.compile(r"(?<!\d)(\d{4})(\d{3})T(\d{2})(\d{2})(\d{2})(?!\d)")
_DATE = re.compile(r"(?<!\d)((?:19|20)\d{2})([-_]?)(\d{2})\2(\d{2})(?!\d)")
_LANDSAT_DATE = re.compile(r"L[COTEM]0[4-9]_L\w{3}_\d{6}_(\d{4})(\d{2})(\d{2})_")


def _landsat(number: str | None, level: int) -> Sensor:
    bands = _TM if number in {"4", "5", "6", "7"} else _OLI
    scale, offset = (2e-5, -0.1) if level == 1 else (2.75e-5, -0.2)
    name = f"Landsat {number or ''}".strip() + f" level {level}"
    return Sensor(name, bands, scale, offset, nodata=0.0)


def _sentinel2(baseline: int) -> Sensor:
    if baseline < 400:
        return replace(SENTINEL2, name="Sentinel-2, baseline before 04.00")
    # From processing baseline 04.00 on, numbers are shifted by 1,000.
    return replace(SENTINEL2, name="Sentinel-2, baseline 04.00 or later", offset=-0.1)


def _named_in(text: str, *, surface: bool) -> Sensor | None:
    if match := _HLS.search(text):
        return _HLS_S30 if match[1] == "S" else _HLS_L30
    if match := _LANDSAT_PRODUCT.search(text):
        return _landsat(match[1], int(match[2]))
    if match := _LANDSAT_NAME.search(text):
        return _landsat(match[1], 2 if surface or _SURFACE.search(text) else 1)
    if not _SENTINEL2.search(text):
        return None
    baseline = _BASELINE.search(text)
    return _sentinel2(int(baseline[1])) if baseline else SENTINEL2


def recognise(texts: Iterable[str], own_names: Sequence[str] = ()) -> Sensor | None:
    """Return the sensor that file names, tags or band names speak of.

    Parameters
    ----------
    texts : iterable of str
        File names and tag values; the first that names a sensor decides.
    own_names : sequence of str
        Band names as the files give them; they decide where no text does.

    Returns
    -------
    Sensor or None
        None where nothing is recognised.
    """
    surface = any(name.upper().startswith("SR_") for name in own_names)
    for text in texts:
        if sensor := _named_in(text, surface=surface):
            return sensor
    # Only Sentinel-2 has a B8A, and of the others only HLS pads with zeros (and its files say HLS).
    if any(re.fullmatch(r"B8A|B0\d", name, re.IGNORECASE) for name in own_names):
        return SENTINEL2
    return None


def known_names(bands: Iterable[str]) -> list[str]:
    """Return the names that a caller gives to bands, aliases replaced.

    Raises
    ------
    SceneError
        If one is no common name: a misspelt band would be left out without a word.
    """
    names = [ALIASES.get(band, band) for band in bands]
    for name in names:
        if name not in COMMON_NAMES + _OTHERS:
            raise SceneError(
                f"{name!r} is no common name of a band",
                f"choose among {', '.join(COMMON_NAMES + _OTHERS)}; to leave a band out, name "
                "those that are wanted in a dict (--bands red=3)",
            )
    return names


def common_name(own_name: str, sensor: Sensor | None) -> str | None:
    """Return the common name of a band that a file calls `own_name`, or None."""
    name = own_name.strip().lower()
    if name in COMMON_NAMES or name in ALIASES:
        return ALIASES.get(name, name)
    if sensor and (match := _OWN_NAME.fullmatch(own_name.strip())):
        return sensor.bands.get(f"B{match[1].upper()}")
    return None


def band_in_file_name(stem: str) -> str | None:
    """Return the band name at the end of a file name: ``T33UUU_..._B02_10m`` gives ``B02``."""
    match = _TAIL.search(stem)
    return match[1] if match else None


def time_in_file_name(name: str) -> np.datetime64 | None:
    """Return the acquisition time that a Sentinel-2, HLS or Landsat file name carries, UTC."""
    try:
        if match := _STAMP.search(name):
            year, month, day, *clock = match.groups()
            return np.datetime64(f"{year}-{month}-{day}T{':'.join(clock)}", "s")
        if match := _DAY_OF_YEAR.search(name):
            year, day, *clock = match.groups()
            start = np.datetime64(f"{year}-01-01T{':'.join(clock)}", "s")
            return start + np.timedelta64(int(day) - 1, "D")
        if match := _LANDSAT_DATE.search(name):
            return np.datetime64("-".join(match.groups()), "s")
    except ValueError:  # digits that look like a stamp and are none
        return None
    return None


def date_in_name(name: str) -> np.datetime64 | None:
    """Return the first date in a name: ``2020-05-01``, ``2020_05_01`` or ``20200501``."""
    for year, _, month, day in _DATE.findall(name):
        try:
            return np.datetime64(f"{year}-{month}-{day}", "D")
        except ValueError:  # digits that are no date
            continue
    return None
