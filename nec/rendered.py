"""A scene that the package renders itself, for demos and tests where no real one is at hand."""

from pathlib import Path

import numpy as np

#: Common names of the bands, in file order.
BANDS = ("blue", "green", "red", "nir08", "swir16", "swir22")

#: Surface reflectance of each cover in each band, typical of Sentinel-2 in early summer.
SPECTRA = {
    "winter wheat": (0.028, 0.058, 0.030, 0.440, 0.170, 0.085),
    "maize": (0.045, 0.075, 0.065, 0.300, 0.250, 0.165),
    "rapeseed": (0.045, 0.120, 0.095, 0.420, 0.215, 0.115),
    "ripe barley": (0.068, 0.105, 0.138, 0.310, 0.335, 0.220),
    "sugar beet": (0.030, 0.072, 0.030, 0.520, 0.200, 0.095),
    "bare loam": (0.085, 0.115, 0.150, 0.235, 0.330, 0.290),
    "dark soil": (0.055, 0.072, 0.090, 0.145, 0.225, 0.190),
    "meadow": (0.038, 0.078, 0.052, 0.350, 0.235, 0.125),
    "conifers": (0.019, 0.034, 0.023, 0.215, 0.095, 0.042),
    "broadleaves": (0.024, 0.050, 0.027, 0.390, 0.165, 0.070),
    "water": (0.048, 0.056, 0.036, 0.020, 0.010, 0.007),
    "shore": (0.065, 0.090, 0.095, 0.190, 0.190, 0.140),
    "asphalt": (0.085, 0.098, 0.108, 0.140, 0.160, 0.145),
    "concrete": (0.150, 0.175, 0.195, 0.245, 0.265, 0.240),
    "tile roofs": (0.080, 0.100, 0.150, 0.225, 0.255, 0.235),
    "gardens": (0.050, 0.078, 0.062, 0.275, 0.205, 0.130),
}
_COVERS = list(SPECTRA)
_CROPS = [_COVERS.index(crop) for crop in _COVERS[:8]]


def render_scene(path: str | Path, *, seed: int = 0, shape: tuple[int, int] = (1024, 1024)) -> Path:
    """Write a plausible synthetic scene: fields, a river, a lake, forest and a town.

    Parameters
    ----------
    path : path
        GeoTIFF to write; six bands (`BANDS`), uint16, reflectance × 10⁴ with scale tags, 10 m,
        EPSG:32633; 0 where missing, in a wedge along the western edge as at a swath's end.
    seed : int
        The same seed and shape give the same pixels.
    shape : tuple of int
        Rows and columns.

    Returns
    -------
    Path
        `path`.
    """
    import rasterio
    from affine import Affine

    rng = np.random.default_rng(seed)
    cover = _land_cover(rng, shape)
    spectra = np.array([SPECTRA[name] for name in _COVERS], np.float32)
    image = spectra[cover].transpose(2, 0, 1)
    image *= _shading(rng, cover)
    image = _blur(image)  # the optics see a little of the neighbours
    image += rng.normal(0, 0.0012, image.shape).astype(np.float32)

    numbers = np.clip(np.rint(image * 1e4), 1, 65535).astype(np.uint16)
    rows, columns = np.indices(shape)
    numbers[:, columns < 0.13 * shape[1] - 0.22 * rows] = 0
    path = Path(path)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=shape[0],
        width=shape[1],
        count=len(BANDS),
        dtype="uint16",
        crs="EPSG:32633",
        transform=Affine(10, 0, 399960, 0, -10, 5700000),
        nodata=0,
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress="deflate",
        predictor=2,
    ) as dataset:
        dataset.write(numbers)
        dataset.descriptions = BANDS
        dataset.scales = (1e-4,) * len(BANDS)
    return path


def _land_cover(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Index into `SPECTRA` of every pixel."""
    height, width = shape
    rows, columns = np.indices(shape, dtype=np.float32)
    cover = _fields(rng, rows, columns)

    woods = _noise(rng, shape, 190) + 0.35 * _noise(rng, shape, 45) + 0.12 * _noise(rng, shape, 9)
    mixed = _noise(rng, shape, 70) + 0.5 * _noise(rng, shape, 4)
    leaves = np.where(mixed > 0.15, _COVERS.index("broadleaves"), _COVERS.index("conifers"))
    cover = np.where(woods > 0.62, leaves, cover)

    town = np.hypot((rows - 0.36 * height) / height, (columns - 0.66 * width) / width)
    town = town + 0.022 * _noise(rng, shape, 60) + 0.01 * _noise(rng, shape, 12)
    cover = np.where(town < 0.15, _streets(rng, rows, columns, town), cover)

    # The bends of the river are sines, thrown out of step by noise.
    bends = 0.055 * np.sin(columns / width * 11) + 0.03 * np.sin(columns / width * 23 + 1)
    middle = height * (0.72 - 0.18 * columns / width + bends) + 9 * _noise(rng, shape, 80)
    river = np.abs(rows - middle) - (7 + 2.5 * _noise(rng, shape, 120))
    lake = np.hypot((rows - 0.17 * height) / 0.075, (columns - 0.30 * width) / 0.12) / height
    lake = (
        (lake - 1 + 0.22 * _noise(rng, shape, 50) + 0.05 * _noise(rng, shape, 11)) * 0.08 * height
    )
    water = np.minimum(river, lake)
    cover = np.where(water < 1.2, _COVERS.index("shore"), cover)
    cover = np.where(water < 0, _COVERS.index("water"), cover)

    road = np.abs(columns - width * (0.45 + 0.25 * rows / height) - 12 * np.sin(rows / 90))
    return np.where(road < 1.3, _COVERS.index("asphalt"), cover)


def _fields(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Crops in parcels: blocks of a turned, bent grid, each cut in strips of its own width."""
    bend = 14 * _noise(rng, rows.shape, 260)
    along = 0.95 * columns + 0.31 * rows + bend
    across = 0.95 * rows - 0.31 * columns + bend
    block_x, block_y = np.floor(along / 96).astype(int), np.floor(across / 72).astype(int)
    table = rng.random((4, 64, 64), dtype=np.float32)
    lengthwise, width, start, path = table[:, block_y % 64, block_x % 64]
    strip = np.where(lengthwise > 0.5, along % 96, across % 72) + 20 * start
    number = np.floor(strip / (14 + 30 * width)).astype(int)
    crop = rng.choice(_CROPS, size=(64, 64, 8))[block_y % 64, block_x % 64, number % 8]
    # Farm tracks between some of the blocks, a pixel wide.
    track = (np.minimum(along % 96, across % 72) < 1.2) & (path > 0.4)
    return np.where(track, _COVERS.index("meadow"), crop)


def _streets(
    rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, town: np.ndarray
) -> np.ndarray:
    """Lay a street grid with houses of some pixels; concrete in the middle, gardens at the edge."""
    along, across = 0.87 * columns + 0.5 * rows, 0.87 * rows - 0.5 * columns
    street = (along % 13 < 2) | (across % 9 < 2)
    house = rng.random((256, 256), dtype=np.float32)[
        np.floor(across / 3).astype(int) % 256, np.floor(along / 3).astype(int) % 256
    ]
    dense = house + np.clip((0.12 - town) * 6, -0.4, 0.6)
    block = np.where(dense > 0.55, _COVERS.index("tile roofs"), _COVERS.index("gardens"))
    block = np.where(dense > 1.05, _COVERS.index("concrete"), block)
    return np.where(street, _COVERS.index("asphalt"), block)


def _shading(rng: np.random.Generator, cover: np.ndarray) -> np.ndarray:
    """Brightness of every pixel: soil and growth vary slowly, tree crowns and houses quickly."""
    shape = cover.shape
    slow = 1 + 0.07 * _noise(rng, shape, 30) + 0.05 * _noise(rng, shape, 7)
    grain = rng.normal(0, 1, shape).astype(np.float32)
    crowns = 1 + 0.16 * grain + 0.12 * _noise(rng, shape, 3)
    trees = np.isin(cover, [_COVERS.index("conifers"), _COVERS.index("broadleaves")])
    built = cover >= _COVERS.index("asphalt")
    shading = np.where(trees, slow * crowns, slow * (1 + 0.015 * grain))
    shading = np.where(built, 1 + 0.14 * grain, shading)
    return np.clip(shading, 0.4, 1.8).astype(np.float32)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], period: float) -> np.ndarray:
    """Smooth noise of about unit variance whose bumps are `period` pixels wide."""
    knots = rng.normal(0, 1.5, [int(size // period) + 2 for size in shape]).astype(np.float32)
    for axis, size in enumerate(shape):
        at = np.arange(size, dtype=np.float32) / np.float32(period)
        low = at.astype(int)
        share = at - low
        share = (share * share * (3 - 2 * share)).reshape((-1, 1) if axis == 0 else (1, -1))
        knots = knots.take(low, axis) * (1 - share) + knots.take(low + 1, axis) * share
    return knots


def _blur(image: np.ndarray) -> np.ndarray:
    """Convolve (band, y, x) with a separable kernel of 1/6, 2/3, 1/6."""
    for axis in (1, 2):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        size = image.shape[axis]
        before, centre, after = (padded.take(range(k, k + size), axis) for k in range(3))
        image = (before + 4 * centre + after) / 6
    return image
