"""Streaming reader of image crops: each window of the image is decoded once, and all its crops are cut from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc._checks import SetupError
from sigmma_sc.tissue.frame import image_levels

if TYPE_CHECKING:
    from collections.abc import Iterator

    import xarray as xr
    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide

WINDOW = 2048
GLASS = 255
"""Value of pixels beyond the image's edge: empty glass."""


def read_crops(
    slide: Slide, crops: NDArray[np.float64], size: int, window: int = WINDOW
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Read square crops, resampled to ``size`` × ``size`` with antialiasing.

    The pyramid level is the coarsest that still holds at least one pixel for each output pixel. Crops lie at fractional
    positions and are never rounded to pixels.

    Parameters
    ----------
    slide
        Whose image to read.
    crops
        ``(n, 3)`` as (x, y, side) in px of level 0.
    size
        Output size in px.
    window
        Side of the windows that are decoded at once, in px of the level read.

    Yields
    ------
    index
        Which crops, ``(k,)``.
    pixels
        ``(k, size, size, 3)`` uint8 RGB.
    """
    levels = image_levels(slide.sdata, slide.image_key)
    scales = np.array([slide.width / level.sizes["x"] for level in levels])
    level_of = np.maximum(np.searchsorted(scales, crops[:, 2] / size * (1 + 1e-6), side="right") - 1, 0)
    for number in np.unique(level_of):
        members = np.flatnonzero(level_of == number)
        boxes = crops[members] / scales[number]
        bins = np.floor(boxes[:, :2] / window).astype(np.int64)
        order = np.lexsort((bins[:, 0], bins[:, 1]))
        cuts = np.flatnonzero(np.any(np.diff(bins[order], axis=0) != 0, axis=1)) + 1
        for group in np.split(order, cuts):
            yield members[group], _cut(levels[number], boxes[group], size)


def _cut(level: xr.DataArray, boxes: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Decode the window that holds all boxes and resample each box from it."""
    from PIL import Image

    # The resampling kernel reaches beyond the box by its support, which grows when the crop shrinks.
    margin = np.ceil(3 * np.maximum(1.0, boxes[:, 2:] / size)).astype(int)
    low = np.floor(boxes[:, :2]).astype(int) - margin
    high = np.ceil(boxes[:, :2] + boxes[:, 2:]).astype(int) + margin
    x0, y0 = low.min(axis=0)
    pixels = read_window(level, x0, y0, *high.max(axis=0))
    out = np.empty((len(boxes), size, size, 3), np.uint8)
    for k, (x, y, side) in enumerate(boxes):
        # Resampled from its own surroundings, so that a crop's pixels do not depend on what else is read with it.
        (left, top), (right, bottom) = low[k], high[k]
        around = Image.fromarray(pixels[top - y0 : bottom - y0, left - x0 : right - x0])
        box = (x - left, y - top, x - left + side, y - top + side)
        out[k] = np.asarray(around.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return out


def read_window(level: xr.DataArray, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
    """Pixels ``(y1 - y0, x1 - x0, 3)`` of a window that may reach beyond the image, where it is glass."""
    height, width = level.sizes["y"], level.sizes["x"]
    out = np.full((y1 - y0, x1 - x0, 3), GLASS, np.uint8)
    cx0, cy0, cx1, cy1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if cx0 < cx1 and cy0 < cy1:
        part = level.isel(x=slice(cx0, cx1), y=slice(cy0, cy1), c=slice(0, 3)).transpose("y", "x", "c")
        out[cy0 - y0 : cy1 - y0, cx0 - x0 : cx1 - x0] = to_uint8(
            part.data.compute() if hasattr(part.data, "compute") else part.data
        )
    return out


def to_uint8(pixels: NDArray) -> NDArray[np.uint8]:
    """Bring RGB pixels of any usual type to 8 bits; unsigned 16-bit and floats in [0, 1] are scaled by their full range."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return (pixels >> 8).astype(np.uint8)
    if np.issubdtype(pixels.dtype, np.floating):
        return np.clip(np.round(pixels * 255), 0, 255).astype(np.uint8)
    raise SetupError(f"The image holds {pixels.dtype} values. H&E must be uint8, uint16, or floats in [0, 1].")
