"""TIFF pyramids as SpatialData images, with lazy levels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from pathlib import Path

    import dask.array as da
    import xarray as xr
    import zarr
    from spatialdata.transformations import BaseTransformation

BLOCK = 1024
"""Side of a square, px, of the largest area of a dask chunk, unless one stored tile is larger."""


def read_pyramid(path: Path, to_global: BaseTransformation) -> xr.DataTree:
    """Open the first image of a TIFF, OME-TIFF or whole-slide TIFF with its stored levels, lazy ``(c, y, x)``.

    The RGB or RGBA image may be tiled or in strips, interleaved or with one plane a channel. ``to_global`` maps pixels
    of level 0 to the system ``"global"``. Arrays hold only the name of the file, so workers in other processes can read
    it.
    """
    import tifffile
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import set_transformation
    from xarray import DataArray, Dataset, DataTree

    with tifffile.TiffFile(path) as file:
        levels = [(level.axes, level.shape, level.dtype) for level in file.series[0].levels]
    modified = path.stat().st_mtime_ns
    arrays = [
        _plane(_Level(str(path), modified, number, shape, dtype), axes)
        for number, (axes, shape, dtype) in enumerate(levels)
    ]
    _, height, width = arrays[0].shape
    tree = {}
    for number, array in enumerate(arrays):
        # Coordinates of every level are pixel centres in px of level 0: spatialdata's convention.
        n_channels, rows, columns = array.shape
        coords = {
            "c": list("rgba")[:n_channels],
            "y": (np.arange(rows) + 0.5) * height / rows,
            "x": (np.arange(columns) + 0.5) * width / columns,
        }
        tree[f"scale{number}"] = Dataset({"image": DataArray(array, coords, ("c", "y", "x"), attrs={"transform": {}})})
    image = DataTree.from_dict(tree)
    set_transformation(image, to_global, "global")
    Image2DModel.validate(image)
    return image


@dataclass(frozen=True)
class _Level:
    """One stored level as an array that reads the indexed part, and can be pickled."""

    path: str
    modified: int  # so that a replaced file is not read from an open handle
    number: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(_open(self.path, self.modified, self.number, os.getpid())[index])


@lru_cache(maxsize=64)
def _open(path: str, modified: int, number: int, process: int) -> zarr.Array:
    """Keep levels open for each process, because a forked child would share the file position of its parent."""
    import tifffile
    import zarr

    return zarr.open_array(tifffile.imread(path, aszarr=True, series=0, level=number), mode="r")


def _plane(level: _Level, axes: str) -> da.Array:
    """A level as ``(c, y, x)``, in chunks that hold whole stored tiles."""
    import dask.array as da

    # Axes of length 1 (one focal plane, one time point) are dropped.
    kept = [(axis, n) for axis, n in zip(axes, level.shape, strict=True) if axis in "YX" or n > 1]
    channel = [axis for axis, n in kept if axis not in "YX"]
    if len(channel) != 1 or dict(kept)[channel[0]] not in (3, 4):
        raise SetupError(
            f"{level.path} holds an image of shape {level.shape} with axes {axes!r}. H&E must have red, green and blue; a "
            "fluorescence image or a mask is not H&E."
        )
    array = da.from_array(level, chunks=_chunks(level, axes), asarray=False, fancy=False)
    array = array[tuple(slice(None) if axis in "YX" or n > 1 else 0 for axis, n in zip(axes, level.shape, strict=True))]
    order = [axis for axis, _ in kept]
    return array.transpose([order.index(axis) for axis in (channel[0], "Y", "X")])


def _chunks(level: _Level, axes: str) -> tuple[int, ...]:
    """Whole stored tiles together, all channels, at most ``BLOCK``² px."""
    stored: dict[str, int] = dict(
        zip(axes, _open(level.path, level.modified, level.number, os.getpid()).chunks, strict=True)
    )
    wide = max(1, BLOCK // stored["X"]) * stored["X"]
    high = max(1, BLOCK**2 // wide // stored["Y"]) * stored["Y"]
    limit = {"X": wide, "Y": high}
    return tuple(min(limit.get(axis, n), n) for axis, n in zip(axes, level.shape, strict=True))
