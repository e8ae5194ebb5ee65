"""Black padding of an image: tiles that a file lacks, fields that were not scanned, corners of a turned image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

GLASS = 255
"""Value of pixels that show nothing: empty glass, as beyond the edge of the image."""

BLACK = 3
"""Largest value of any channel in black padding: 0, and what compression by JPEG adds to it."""

WIDTH = 8.0
"""Side in µm of a square that must be black throughout to be padding.

Nuclei, pigment, blood and ink are dark, but rarely darker than 3 in all channels, and never in so large a square.
"""


def padding_width(microns: float) -> int:
    """Odd number of pixels of ``microns`` µm that measure about :data:`WIDTH`."""
    return round(WIDTH / microns) // 2 * 2 + 1


def black_padding(pixels: NDArray[np.uint8], width: int) -> NDArray[np.bool_] | None:
    """Which RGB pixels ``(h, w, 3)`` are black and near a square of ``width``² black ones; ``None`` if there are none.

    Beyond the edge of the array, black is taken to go on.
    """
    # A reduction over all values is many times faster than one for each pixel, and most tissue has no value so low.
    if pixels.size == 0 or pixels.min() > BLACK:
        return None
    black = (pixels[..., 0] | pixels[..., 1] | pixels[..., 2]) <= BLACK
    if not black.any():
        return None
    if black.all():
        return black
    centres = _box_sums(black, width, True) == width**2
    if not centres.any():
        return None
    # Twice the reach of a square, so that the tips of black triangles belong to it.
    return black & (_box_sums(centres, 2 * width + 1, False) > 0)


def _box_sums(mask: NDArray[np.bool_], width: int, beyond: bool) -> NDArray[np.int32]:
    """Number of true values in the square of ``width``² about each pixel, many times faster than by filters of SciPy."""
    # One row and column before the first square, so that each sum is a difference.
    around = width // 2
    padded = np.pad(mask, ((around + 1, around), (around + 1, around)), constant_values=beyond)
    sums = padded.cumsum(axis=0, dtype=np.int32)
    rows = sums[width:] - sums[:-width]
    sums = rows.cumsum(axis=1, dtype=np.int32)
    return sums[:, width:] - sums[:, :-width]


def without_padding(pixels: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The pixels ``(h, w, 3)`` with :func:`black_padding` as glass: a copy, or the array itself if there is none."""
    padding = black_padding(pixels, width)
    if padding is None:
        return pixels
    if padding.all():
        return np.full_like(pixels, GLASS)
    out = pixels.copy()
    out[padding] = GLASS
    return out
