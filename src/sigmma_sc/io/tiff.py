"""TIFF pyramids as SpatialData images, with lazy levels."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import ImageWarning, SetupError
from sigmma_sc.io.colours import channel_names, is_ycbcr, require_rgb, rgb_of_ycbcr

if TYPE_CHECKING:
    from pathlib import Path

    import dask.array as da
    import tifffile
    import xarray as xr
    import zarr
    from spatialdata.transformations import BaseTransformation

BLOCK = 1024
"""Side of a square, px, of the largest area of a dask chunk, unless one stored tile is larger."""

RIVAL = 0.5
"""Share of the area of the largest image of a file above which another one may be the section as well."""


def read_pyramid(path: Path, to_global: BaseTransformation) -> xr.DataTree:
    """Open the largest image of a TIFF, OME-TIFF or whole-slide TIFF with its stored levels, lazy ``(c, y, x)``.

    The RGB or RGBA image may be tiled or in strips, interleaved or with one plane a channel. Images of YCbCr that no codec
    converts are converted. Channels keep the names that the file gives them. ``to_global`` maps pixels of level 0 to the
    system ``"global"``. Arrays hold only the name of the file, so workers in other processes can read it.
    """
    import tifffile
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import set_transformation
    from xarray import DataArray, Dataset, DataTree

    with tifffile.TiffFile(path) as file:
        series = _slide_of(file, path)
        names = channel_names(file, series)
        require_rgb(file.series[series].keyframe, path)
        modified = path.stat().st_mtime_ns
        levels = []
        for number, level in enumerate(file.series[series].levels):
            converts = is_ycbcr(level.keyframe)
            levels.append(_Level(str(path), modified, series, number, level.axes, level.shape, level.dtype, converts))
    arrays = [_plane(level) for level in levels]
    _, height, width = arrays[0].shape
    tree = {}
    for number, array in enumerate(arrays):
        # Coordinates of every level are pixel centres in px of level 0: spatialdata's convention.
        n_channels, rows, columns = array.shape
        coords = {
            "c": names if len(names) == n_channels else list("rgba")[:n_channels],
            "y": (np.arange(rows) + 0.5) * height / rows,
            "x": (np.arange(columns) + 0.5) * width / columns,
        }
        tree[f"scale{number}"] = Dataset({"image": DataArray(array, coords, ("c", "y", "x"), attrs={"transform": {}})})
    image = DataTree.from_dict(tree)
    set_transformation(image, to_global, "global")
    Image2DModel.validate(image)
    return image


def _slide_of(file: tifffile.TiffFile, path: Path) -> int:
    """Number of the largest colour image of a file, which may hold a label, a macro and a thumbnail; 0 if there is none."""
    areas = []
    for series in file.series:
        sizes = dict(zip(series.axes, series.shape, strict=True))
        coloured = len(_channel_axes(series.axes, series.shape)) == 1
        areas.append(sizes.get("Y", 0) * sizes.get("X", 0) if coloured else 0)
    largest = int(np.argmax(areas))
    rivals = [number for number, area in enumerate(areas) if number != largest and area > RIVAL * areas[largest]]
    if rivals:
        shape = file.series[largest].shape
        warnings.warn(
            f"{path.name} holds {len(rivals) + 1} colour images of about the same size. Image {largest} of shape {shape} is read. "
            "If it is not the section, save the right one in a file of its own.",
            ImageWarning,
            stacklevel=4,
        )
    return largest


def _channel_axes(axes: str, shape: tuple[int, ...]) -> list[str]:
    """Axes of three or four colours, of which there is one; empty if an axis is neither that nor of the plane."""
    channels = [axis for axis, n in zip(axes, shape, strict=True) if axis not in "YX" and n > 1]
    sizes = dict(zip(axes, shape, strict=True))
    return channels if len(channels) == 1 and sizes[channels[0]] in (3, 4) else []


@dataclass(frozen=True)
class _Level:
    """One stored level as an array that reads the indexed part, and can be pickled."""

    path: str
    modified: int  # so that a replaced file is not read from an open handle
    series: int
    number: int
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    converts: bool  # from YCbCr to RGB

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def stored(self) -> zarr.Array:
        return _open(self.path, self.modified, self.series, self.number, os.getpid())

    def __getitem__(self, index: tuple[slice | int, ...]) -> np.ndarray:
        if not self.converts:
            return np.asarray(self.stored[index])
        axis = self.axes.index(_channel_axes(self.axes, self.shape)[0])
        # All colours are needed for each.
        found = np.asarray(self.stored[(*index[:axis], slice(None), *index[axis + 1 :])])
        place = sum(isinstance(part, slice) for part in index[:axis])
        rgb = rgb_of_ycbcr(np.moveaxis(found, place, -1))
        return np.moveaxis(rgb, -1, place)[(slice(None),) * place + (index[axis],)]


@lru_cache(maxsize=64)
def _open(path: str, modified: int, series: int, number: int, process: int) -> zarr.Array:
    """Keep levels open for each process, because a forked child would share the file position of its parent."""
    import tifffile
    import zarr

    return zarr.open_array(tifffile.imread(path, aszarr=True, series=series, level=number), mode="r")


def _plane(level: _Level) -> da.Array:
    """A level as ``(c, y, x)``, in chunks that hold whole stored tiles."""
    import dask.array as da

    channel = _channel_axes(level.axes, level.shape)
    if not channel:
        raise SetupError(
            f"{level.path} holds an image of shape {level.shape} with axes {level.axes!r}. H&E must have red, green and blue; a "
            "fluorescence image or a mask is not H&E."
        )
    # Axes of length 1 (one focal plane, one time point) are dropped.
    kept = [axis for axis, n in zip(level.axes, level.shape, strict=True) if axis in "YX" or n > 1]
    array = da.from_array(level, chunks=_chunks(level), asarray=False, fancy=False)
    array = array[tuple(slice(None) if axis in kept else 0 for axis in level.axes)]
    return array.transpose([kept.index(axis) for axis in (channel[0], "Y", "X")])


def _chunks(level: _Level) -> tuple[int, ...]:
    """Whole stored tiles together, all channels, at most ``BLOCK``² px."""
    stored: dict[str, int] = dict(zip(level.axes, level.stored.chunks, strict=True))
    wide = max(1, BLOCK // stored["X"]) * stored["X"]
    high = max(1, BLOCK**2 // wide // stored["Y"]) * stored["Y"]
    limit = {"X": wide, "Y": high}
    return tuple(min(limit.get(axis, n), n) for axis, n in zip(level.axes, level.shape, strict=True))
