"""Scenes: rasters and xarray objects read as reflectance by window, north-up on one grid."""

from nec.scene.collection import ImageCollection, is_collection
from nec.scene.mosaic import Mosaic
from nec.scene.opening import open_scene
from nec.scene.scaling import Scaling
from nec.scene.scene import Scene

__all__ = ["ImageCollection", "Mosaic", "Scaling", "Scene", "is_collection", "open_scene"]
