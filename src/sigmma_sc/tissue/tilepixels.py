"""Pixels of whole tiles at any corner, for training on images."""

import math
import tempfile

import numpy as np
from numpy.typing import NDArray

from sigmma_sc.tissue.frame import Slide
from sigmma_sc.tissue.pixels import read_crops

MICRONS = 0.5
"""Finest pixel read, µm (paper, section 6): finer slides are downsampled by a whole factor."""

SQUARE = 1024


class TilePixels:
    """Part of a slide's image as an uncompressed temporary file, from which tiles are cut at random.

    Each stored chunk is decoded once. The file holds 3 bytes a pixel of the part with tiles, and is deleted with the
    object. It covers tiles of ``side`` px of level 0 with corners ``origins``. The attribute ``side`` is that of the
    tiles returned, in px: a multiple of all grids.
    """

    def __init__(self, slide: Slide, origins: NDArray[np.float64], side: float, grids: tuple[int, ...]):
        self.factor = max(1, int(MICRONS / slide.microns_per_pixel + 1e-6))
        parts = math.lcm(*grids)
        self.side = parts * max(1, round(side / self.factor / parts))
        corners = self._corners(origins)
        self.low = corners.min(axis=0)
        width, height = corners.max(axis=0) + self.side - self.low
        file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the array
        self.pixels = np.memmap(file, np.uint8, "w+", shape=(int(height), int(width), 3))
        steps = np.minimum(np.arange(0, self.side + SQUARE, SQUARE), self.side - 1)
        reached = [(corners - self.low + (x, y)) // SQUARE for x in steps for y in steps]
        squares = np.unique(np.concatenate(reached), axis=0)
        sides = np.full(len(squares), SQUARE)
        crops = np.column_stack([squares * SQUARE + self.low, sides]) * float(self.factor)
        for index, images in read_crops(slide, crops, SQUARE):
            for (x, y), image in zip(squares[index] * SQUARE, images, strict=True):
                part = self.pixels[y : y + SQUARE, x : x + SQUARE]
                part[:] = image[: part.shape[0], : part.shape[1]]

    def __call__(self, origins: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Tiles ``(n, 3, side, side)`` RGB; corners are rounded to whole pixels."""
        out = np.empty((len(origins), 3, self.side, self.side), np.uint8)
        for tile, (x, y) in zip(out, self._corners(origins) - self.low, strict=True):
            tile[:] = self.pixels[y : y + self.side, x : x + self.side].transpose(2, 0, 1)
        return out

    def _corners(self, origins: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.round(origins / self.factor).astype(np.int64)
