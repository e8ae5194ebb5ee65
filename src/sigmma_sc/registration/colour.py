"""Colour of an image in squares: optical density of red, green and blue, and its spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.registration.haematoxylin import Zoom
from sigmma_sc.tissue.blank import padding_width, without_padding
from sigmma_sc.tissue.decode import read_window
from sigmma_sc.tissue.mask import is_tissue

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide

FINE = 2.0
"""Largest size of the pixels, µm, that the spread of optical density is of, if the image has them."""

RASTER = 8.0
"""Side of the pixels, µm, that colours are averaged over when they are read."""

STRIP = 2**24
"""Number of pixels read at once."""

DENSITY = -np.log10((np.arange(256) + 1) / 256).astype(np.float32)
"""Optical density of a byte."""


@dataclass(frozen=True)
class ColourRaster:
    """Optical density of an image, averaged over pixels of about 8 µm."""

    density: NDArray[np.float32]  # mean optical density of red, green, blue, (h, w, 3)
    square: NDArray[np.float32]  # mean of its square, (h, w, 3)
    tissue: NDArray[np.bool_]  # stained pixels, (h, w)
    microns: float  # side of a pixel, µm
    origin: tuple[float, float] = (0.0, 0.0)  # upper left corner (x, y), µm

    def smoothed(self, side: float) -> ColourMap:
        """Colours of squares of ``side`` µm about every pixel, or about every few if squares are large."""
        from scipy.ndimage import gaussian_filter
        from skimage.measure import block_reduce

        block = max(1, int(side / 8 / self.microns))
        microns = block * self.microns
        sigma = side / np.sqrt(12) / microns

        def smooth(layer: NDArray) -> NDArray[np.float32]:
            mean = block_reduce(layer.astype(np.float32), block, np.mean) if block > 1 else layer.astype(np.float32)
            return gaussian_filter(mean, sigma, mode="constant")

        tissue = smooth(self.tissue)
        floor = np.maximum(tissue, 1e-3)
        mean = np.stack([smooth(c * self.tissue) / floor for c in np.moveaxis(self.density, -1, 0)], axis=-1)
        second = np.stack([smooth(c * self.tissue) / floor for c in np.moveaxis(self.square, -1, 0)], axis=-1)
        spread = np.sqrt(np.maximum(second - mean**2, 1e-6))
        colours = np.concatenate([mean, spread], axis=-1)
        on = tissue > 0.5
        if on.any():
            middle = colours[on].mean(axis=0)
            scale = colours[on].std(axis=0)
            colours = ((colours - middle) / np.where(scale > 0, scale, 1)).clip(-4, 4)
        return ColourMap(colours.astype(np.float32), tissue, microns, side, self.origin)


@dataclass(frozen=True)
class ColourMap:
    """Standardised colours of squares of one size, about every pixel of a raster."""

    colours: NDArray[np.float32]  # (h, w, n_channels)
    tissue: NDArray[np.float32]  # share of tissue of each square, (h, w)
    microns: float  # side of a pixel, µm
    side: float  # side of the squares, µm
    origin: tuple[float, float] = (0.0, 0.0)  # upper left corner of the raster (x, y), µm

    def at(self, xy: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Colours ``(n, n_channels)`` and shares of tissue ``(n,)`` at places in µm of the image, bilinear; 0 off it."""
        height, width = self.tissue.shape
        place = (xy - self.origin) / self.microns - 0.5
        corner = np.floor(place).astype(np.int64)
        inside = ((corner >= 0) & (corner < (width - 1, height - 1))).all(axis=1)
        corner[~inside] = 0
        right, below = (place - corner).astype(np.float32).T
        first = corner[:, 1] * width + corner[:, 0]
        flat = self.colours.reshape(height * width, -1)
        share = self.tissue.ravel()
        colours = np.zeros((len(xy), flat.shape[1]), np.float32)
        tissue = np.zeros(len(xy), np.float32)
        weights = ((1 - right) * (1 - below), right * (1 - below), (1 - right) * below, right * below)
        for offset, weight in zip((0, 1, width, width + 1), weights, strict=True):
            colours += flat[first + offset] * weight[:, None]
            tissue += share[first + offset] * weight
        tissue[~inside] = 0
        return colours, tissue


def read_colours(slide: Slide) -> ColourRaster:
    """Read an image at pixels of at most 2 µm, strip by strip, and average it over pixels of about 8 µm."""
    zoom = Zoom.of(slide, FINE)
    level = zoom.level
    pixel = zoom.microns / zoom.block
    block = max(1, min(round(RASTER / pixel), level.sizes["y"], level.sizes["x"]))
    height, width = level.sizes["y"] // block, level.sizes["x"] // block
    density = np.empty((height, width, 3), np.float32)
    square = np.empty((height, width, 3), np.float32)
    rows = max(1, STRIP // (level.sizes["x"] * block))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels = read_window(level, 0, top * block, width * block, bottom * block)
        pixels = without_padding(pixels, padding_width(pixel))
        shape = bottom - top, block, width, block, 3
        for out, table in ((density, DENSITY), (square, DENSITY**2)):
            out[top:bottom] = table[pixels].reshape(shape).mean(axis=3).mean(axis=1)
    mean = density.mean(axis=-1)
    x, y = (zoom.origin * slide.microns_per_pixel).tolist()
    return ColourRaster(density, square, is_tissue(mean, mean), block * pixel, (x, y))
