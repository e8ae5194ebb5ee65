"""Where the levels of a pyramid are on level 0.

An odd side does not halve. What is left over at the edge is dropped by most writers at the end, and at the start by
xarray's coarsen, by which spatialdata makes its pyramids. Others stretch the pixels a little. The object states the ratio
of the sizes in all three cases, so the pixels themselves have to tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.tissue.byimage import ByImage
from sigmma_sc.tissue.decode import read_window
from sigmma_sc.tissue.frame import Slide, image_levels

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from xarray import DataArray

SIDE = 96
"""Side in px of the window of a coarser level that is compared with the finer one."""

LARGEST = 1024
"""Side in px of the part of the coarsest level in which the window is sought."""

CLEAR = 0.7
"""Largest mean square difference at the best place, as a share of that at the second, or else levels start together."""


@dataclass(frozen=True)
class LevelFrames:
    """Pixels of each level, in px of level 0."""

    scales: NDArray[np.float64]  # side of a pixel, (n_levels,)
    origins: NDArray[np.float64]  # upper left corner (x, y) of the level, (n_levels, 2)


_known = ByImage()


def level_frames(slide: Slide) -> LevelFrames:
    """Scales and origins of the levels of a slide's image, found once as long as it is there.

    Only levels of a side that the step does not divide are compared, in one window near the middle of the image, where
    pixels that are stretched over the image are half way between the other two. Origins are of the image as a whole.
    """
    return _known.get(slide, lambda: _frames(image_levels(slide.sdata, slide.image_key)))


def level_scales(levels: list[DataArray]) -> NDArray[np.float64]:
    """Side of a pixel of each level in px of level 0, ``(n_levels,)``.

    Pyramids drop or pad what remains at the edge, so the ratio of sizes is not exact. A whole number is used where it
    explains both sizes, and the ratio of the longer sides otherwise.
    """
    shapes = np.array([(level.sizes["x"], level.sizes["y"]) for level in levels], dtype=float)
    longer = int(np.argmax(shapes[0]))
    ratios = shapes[0, longer] / shapes[:, longer]
    whole = np.round(ratios)
    explains = (np.abs(shapes[0] / whole[:, None] - shapes) < 1).all(axis=1)
    return np.where(explains, whole, ratios)


def _frames(levels: list[DataArray]) -> LevelFrames:
    scales = level_scales(levels)
    origins = np.zeros((len(levels), 2))
    middle = None
    for number in range(1, len(levels)):
        step = scales[number] / scales[number - 1]
        if step != round(step):
            continue  # Pixels are stretched to the whole image, and begin where it does.
        fine, coarse = levels[number - 1], levels[number]
        left_over = _size(fine) - round(step) * _size(coarse)
        shift = np.zeros(2)
        if (left_over > 0).any():
            if middle is None:
                middle = _textured(levels[-1])
            shift = _shift(fine, coarse, round(step), left_over.clip(0), middle)
        origins[number] = origins[number - 1] + shift * scales[number - 1]
    return LevelFrames(scales, origins)


def _size(level: DataArray) -> NDArray[np.int64]:
    return np.array([level.sizes["x"], level.sizes["y"]])


def _textured(level: DataArray) -> NDArray[np.float64]:
    """Place (x, y) of most contrast in the middle third of a level, as a share of its sides."""
    from scipy.ndimage import uniform_filter

    size = _size(level)
    low = size // 3
    high = np.minimum(low + LARGEST, np.maximum(size - size // 3, low + 1))
    grey = read_window(level, *low, *high).mean(axis=2)
    across = np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    down = np.abs(np.diff(grey, axis=0, prepend=grey[:1]))
    contrast = uniform_filter(np.minimum(across, down), 9, mode="nearest")
    row, column = np.unravel_index(contrast.argmax(), contrast.shape)
    return np.asarray((low + (column, row) + 0.5) / size, float)


def _shift(
    fine: DataArray, coarse: DataArray, step: int, left_over: NDArray[np.int64], middle: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Place (x, y) of the first pixel of the coarser level in px of the finer one: 0, what is left over, or half of that."""
    side = np.minimum(SIDE, _size(coarse))
    low = (middle * _size(coarse) - side / 2).astype(np.int64).clip(0, _size(coarse) - side)
    seen = read_window(coarse, *low, *(low + side)).astype(np.float32)
    pixels = read_window(fine, *(low * step), *((low + side) * step + left_over)).astype(np.float32)
    places = [sorted({0.0, n / 2, float(n)}) for n in left_over]
    differences = {}
    for x, y in product(*places):
        moved = _between(_between(pixels, y, side[1] * step, 0), x, side[0] * step, 1)
        means = moved.reshape(side[1], step, side[0], step, 3).mean(axis=(1, 3))
        differences[x, y] = float(((means - seen) ** 2).mean())
    best, second = sorted(differences, key=differences.__getitem__)[:2]
    return np.array(best if differences[best] < CLEAR * differences[second] else (0.0, 0.0))


def _between(pixels: NDArray[np.float32], start: float, length: int, axis: int) -> NDArray[np.float32]:
    """Part of an axis from a whole or half pixel on."""
    whole = int(start)
    first: NDArray[np.float32] = pixels.take(range(whole, whole + length), axis)
    if start == whole:
        return first
    first += pixels.take(range(whole + 1, whole + 1 + length), axis)
    first /= 2
    return first
