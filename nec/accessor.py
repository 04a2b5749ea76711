"""``ds.nec``: what a store knows of itself, features, a quicklook."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.errors import MissingLibraryError, StoreError

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from matplotlib.axes import Axes

    from nec.archive import Traffic


@xr.register_dataset_accessor("nec")
class NecAccessor:
    """Accessor of a Dataset that was opened from a nec store."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    @property
    def info(self) -> dict[str, Any]:
        """The store's `nec` block: model, rate, basis, expected cosine, sources, ...

        Raises
        ------
        StoreError
            If the Dataset does not come from a nec store.
        """
        block = self._dataset.attrs.get("nec")
        if not isinstance(block, dict):
            raise StoreError(
                "this Dataset has no nec block among its attributes",
                "open a nec store with xarray.open_zarr or nec.open, and keep its attributes",
            )
        return block

    def array(self, name: str) -> xr.DataArray:
        """Return an array of the store by name.

        Raises
        ------
        StoreError
            If it has none of that name: of vectors without a place it has no `embedding`.
        """
        if name not in self._dataset:
            raise StoreError(
                f"the store has no array {name!r} (has: "
                f"{', '.join(map(str, self._dataset.data_vars)) or 'none'})",
                "take one that is there",
            )
        return self._dataset[name]

    @property
    def model(self) -> str:
        """Name of the model whose embeddings these are."""
        return str(self.info["model"])

    @property
    def basis(self) -> NDArray[np.float32]:
        """Rotation (component, feature) from features to the embedding.

        Raises
        ------
        StoreError
            If the Dataset does not say which store it came from.
        """
        from nec.archive.reader import read_basis

        source = self._dataset.encoding.get("source")
        if source is None:
            raise StoreError(
                "this Dataset does not know its store any more, so it has no basis",
                "call ds.nec.features() on the Dataset as opened, before selecting variables",
            )
        options = self._dataset.encoding.get("storage_options")
        return read_basis(source, storage_options=options)

    @property
    def traffic(self) -> "Traffic":
        """Requests and bytes that this process has fetched of the store since it was opened.

        Counts grow as lazy values are read; what other processes fetch is not among them.

        Raises
        ------
        StoreError
            If the Dataset was not opened by `nec.open`.
        """
        traffic = self._dataset.encoding.get("traffic")
        if traffic is None:
            raise StoreError(
                "this Dataset counts no requests", "open the store with nec.open, and ask that"
            )
        counted: Traffic = traffic
        return counted

    @property
    def scenes(self) -> "pd.DataFrame":
        """Which scenes the times of a series hold, and which shards they have a part in.

        Returns
        -------
        pandas.DataFrame
            A row a scene and time, in the order in which scenes of a day lie over each other,
            the last on top: `time`, `name`, `sources` (file names), `acquired`, `shards` (tuples
            of row and column in `embedding`) and `digest` (SHA-256 of all that decides its
            pixels).

        Raises
        ------
        StoreError
            If the store is no series, or not known any more.
        """
        import pandas as pd

        from nec.archive.reader import read_steps

        source = self._dataset.encoding.get("source")
        if source is None:
            raise StoreError(
                "this Dataset does not know its store any more, so not its scenes either",
                "ask the Dataset as opened",
            )
        options = self._dataset.encoding.get("storage_options")
        rows = [
            {
                "time": pd.Timestamp(step.day),
                "name": scene.name,
                "sources": tuple(scene.details.get("sources", ())),
                "acquired": pd.Timestamp(scene.details["acquired"]),
                "shards": tuple(tuple(map(int, s.split("."))) for s in scene.shards),
                "digest": scene.digest,
            }
            for step in read_steps(source, storage_options=options)
            for scene in step.scenes
        ]
        columns = ["time", "name", "sources", "acquired", "shards", "digest"]
        return pd.DataFrame(rows, columns=columns)

    def features(self, variable: str = "embedding") -> xr.DataArray:
        """Return the encoder's features, rotated back from the embedding; lazy.

        Of the first bands alone (``nec.open(store, bands=...)``, or a selection) these are the
        features' projection on those components; of an overview, features of means.

        Parameters
        ----------
        variable : {"embedding", "scene_embedding"}

        Returns
        -------
        DataArray
            With dimension `feature` in place of `band`; NaN where missing.
        """
        embedding = self.array(variable)
        # A subset of bands rotates with its own rows of the basis.
        rows = self.basis[embedding["band"].to_numpy()]
        basis = xr.DataArray(rows, dims=("band", "feature"))
        rotated = xr.dot(embedding.drop_vars("band"), basis, dim="band").astype(np.float32)
        order = ["feature" if d == "band" else str(d) for d in embedding.dims]
        features: xr.DataArray = rotated.transpose(*order)
        # A head that was fitted on embeddings must not take them, nor the other way round.
        features.attrs = embedding.attrs | {"nec_basis": f"features of {self.model}"}
        return features

    def quicklook(
        self,
        path: str | Path | None = None,
        *,
        ax: "Axes | None" = None,
        components: tuple[int, int, int] = (0, 1, 2),
        step: int | None = None,
        time: int = 0,
    ) -> "Axes | Path":
        """Show three components of the embedding as red, green and blue.

        Parameters
        ----------
        path : path, optional
            Write a PNG there; else draw on axes.
        ax : matplotlib Axes, optional
        components : tuple of int
        step : int, optional
            Take every n-th token; by default as many as make 1,500 pixels.
        time : int
            Index of the time, or sample, that is shown.

        Returns
        -------
        Path or Axes
            Missing tokens are transparent. Each component is stretched from its 2 % to its 98 %
            quantile.
        """
        rgba, extent = self._picture(components, step, time)
        try:
            from matplotlib.image import imsave
        except ModuleNotFoundError as error:
            raise (MissingLibraryError.of(error) or error) from error
        if path is not None:
            imsave(path, rgba)
            return Path(path)
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        ax.imshow(rgba, extent=extent, interpolation="nearest", aspect=self._aspect())
        ax.set(xlabel="x", ylabel="y", title=f"{self.model}: components {components}")
        return ax

    def _aspect(self) -> float:
        """Return the height of a unit of y over the width of a unit of x, on the ground."""
        y = self._dataset.coords.get("y")
        if y is None or y.attrs.get("units") != "degrees_north":
            return 1.0
        return float(1 / np.cos(np.deg2rad(y.mean())))

    def _picture(
        self, components: tuple[int, int, int], step: int | None, time: int
    ) -> tuple[NDArray[np.float32], tuple[float, float, float, float] | None]:
        embedding = self.array("embedding")
        for extra in ("time", "sample"):
            if extra in embedding.dims:
                if not -embedding.sizes[extra] <= time < embedding.sizes[extra]:
                    raise StoreError(
                        f"there is no {extra} {time} among {embedding.sizes[extra]}",
                        f"choose 0 to {embedding.sizes[extra] - 1}",
                    )
                embedding = embedding.isel({extra: time})
        bands = embedding.sizes["band"]
        if wrong := [c for c in components if not -bands <= c < bands]:
            raise StoreError(
                f"there is no component {wrong[0]} among {bands}",
                "choose components= that are there, or open more bands",
            )
        step = step or max(1, max(embedding.sizes["y"], embedding.sizes["x"]) // 1500)
        embedding = embedding.isel(band=list(components)).transpose("band", "y", "x")
        embedding = embedding[:, ::step, ::step].load()
        # Stores are padded to whole shards: show what is there.
        seen = embedding.notnull().all("band")
        if bool(seen.any()):
            y = np.flatnonzero(seen.any("x"))
            x = np.flatnonzero(seen.any("y"))
            embedding = embedding[:, y[0] : y[-1] + 1, x[0] : x[-1] + 1]
        values = embedding.transpose("y", "x", "band").to_numpy()
        if np.isnan(values).all():
            values = np.zeros_like(values) + np.nan
            low, high = np.zeros(3), np.ones(3)
        else:
            low, high = np.nanquantile(values, (0.02, 0.98), axis=(0, 1))
        stretched = np.clip((values - low) / np.where(high > low, high - low, 1), 0, 1)
        missing = np.isnan(values).any(-1)
        rgba = np.concatenate([np.nan_to_num(stretched), ~missing[..., None]], -1)
        extent = None
        if {"y", "x"} <= set(embedding.coords) and min(rgba.shape[:2]) > 1:
            dy, dx = (float(abs(embedding[d][1] - embedding[d][0])) / 2 for d in ("y", "x"))
            left, right = float(embedding.x[0]), float(embedding.x[-1])
            top, bottom = float(embedding.y[0]), float(embedding.y[-1])
            extent = (left - dx, right + dx, bottom - dy, top + dy)
        return rgba.astype(np.float32), extent
