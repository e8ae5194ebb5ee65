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
    from scipy.ndimage import maximum_filter, minimum_filter

    centres = minimum_filter(black, width, mode="constant", cval=True)
    if not centres.any():
        return None
    # Twice the reach of a square, so that the tips of black triangles belong to it.
    return black & maximum_filter(centres, 2 * width + 1, mode="constant", cval=False)


def without_padding(pixels: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The pixels ``(h, w, 3)`` with :func:`black_padding` as glass: a copy, or the array itself if there is none."""
    padding = black_padding(pixels, width)
    if padding is None:
        return pixels
    out = pixels.copy()
    out[padding] = GLASS
    return out
