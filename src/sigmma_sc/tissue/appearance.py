"""What an image looks like as a whole, judged by its coarsest level: values, brightness, black padding."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import ImageWarning, SetupError
from sigmma_sc.tissue.blank import black_padding, padding_width
from sigmma_sc.tissue.byimage import ByImage
from sigmma_sc.tissue.channels import channel_names, has_alpha, is_numbered, require_colours
from sigmma_sc.tissue.decode import to_uint8
from sigmma_sc.tissue.frame import Slide, image_levels
from sigmma_sc.tissue.levels import level_scales

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from xarray import DataArray

WHOLE = 4_000_000
WINDOWS = 5
WINDOW = 256
"""Most pixels of a level that is read whole; number of windows per side, and their side in px, of a larger one."""

ENOUGH = 100_000
"""Number of pixels that tell a median."""

FULL = 2**14
BRIGHT = 0.999
"""Value that the brightest 0.1 % of 16-bit H&E exceed. Glass and most tissue are brighter than half of the range, and
cameras of 14 bits end here."""

DARK = 80
"""Median brightness, of 255, below which an image is not bright as H&E is. Whole sections have 150 to 245."""

SHOWN_SHARE = 0.01
"""Share of padding from which on a warning tells it."""

ALPHA_SHARE = 0.9
OPAQUE_SHARE = 0.05
"""Least share of pixels that are fully transparent or opaque, and of opaque ones, where a channel without a name is alpha."""


@dataclass(frozen=True)
class Appearance:
    """Measures of an image."""

    blank: float  # share of pixels that are black padding or transparent
    median: float  # median of the mean of red, green and blue of the rest, 0 to 255; NaN where there is no rest


_known = ByImage()


def appearance_of(slide: Slide) -> Appearance:
    """Measure a slide's image, once as long as it is there, or raise :class:`SetupError` if it cannot be H&E."""
    try:
        return _known.get(slide, lambda: _measure(slide))
    except SetupError as error:
        raise SetupError(f"Image {slide.image_key!r}: {error}") from error


def warn_of_image(slide: Slide, stacklevel: int) -> None:
    """Warn of what may be wrong with a slide's image: its channels, a dark image, black padding."""
    found = appearance_of(slide)
    doubts = [require_colours(image_levels(slide.sdata, slide.image_key)[0])]
    if found.blank >= SHOWN_SHARE:
        doubts.append(
            f"{found.blank:.0%} of it is black or transparent, and counts as empty glass. Such pixels are padding, or tiles "
            "that the file lacks. If tissue belongs there, export the image again."
        )
    if found.median < DARK:
        doubts.append(
            f"It is dark: its median brightness is {found.median:.0f} of 255, and that of H&E is above {DARK}. Choose the H&E with "
            "image_key=…; a fluorescence image is not H&E. If it is H&E, bring its values to their full range."
        )
    for doubt in filter(None, doubts):
        warnings.warn(f"Image {slide.image_key!r}: {doubt}", ImageWarning, stacklevel=stacklevel + 1)


def _measure(slide: Slide) -> Appearance:
    levels = image_levels(slide.sdata, slide.image_key)
    to_uint8(np.empty(0, levels[0].dtype))
    width = padding_width(slide.microns_per_pixel * float(level_scales(levels)[-1]))
    parts = _sample(levels[-1])
    flat = [part.reshape(len(part), -1) for part in parts]
    values = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
    _require_range(values[:3])
    alpha = None
    if has_alpha(levels[-1]):
        alpha = to_uint8(values[3])
        _require_alpha(alpha, channel_names(levels[-1]))
    blank = np.concatenate([_padding(part, width) for part in parts])
    if alpha is not None:
        blank |= alpha < 128
    every = max(1, len(blank) // ENOUGH)
    shown = to_uint8(values[:3, ::every])[:, ~blank[::every]]
    median = float(np.median(shown.mean(axis=0))) if shown.size else float("nan")
    return Appearance(float(blank.mean()), median)


def _sample(level: DataArray) -> list[NDArray]:
    """Pixels ``(c, h, w)`` in their own type: of the whole level, or of windows spread over it."""
    height, width = level.sizes["y"], level.sizes["x"]
    boxes = [(0, 0, width, height)]
    if width * height > WHOLE:
        middles = (np.arange(WINDOWS) + 0.5) / WINDOWS
        x = (middles * max(0, width - WINDOW)).astype(int)
        y = (middles * max(0, height - WINDOW)).astype(int)
        boxes = [(left, top, left + WINDOW, top + WINDOW) for top in y for left in x]
    # In a task of a Dask worker the default scheduler is the cluster's, whose workers may all be waiting here.
    data = level.data[:4]
    return [data[:, top:bottom, left:right].compute(scheduler="threads") for left, top, right, bottom in boxes]


def _require_range(values: NDArray) -> None:
    """Raise :class:`SetupError` if :func:`to_uint8` would make values ``(3, n)`` black or white."""
    if values.dtype == np.uint8:
        return
    most = values.max(axis=0)
    if np.issubdtype(values.dtype, np.floating):
        if not most.max() <= 1:
            raise SetupError(
                f"its values reach {most.max():g}, floats must be in [0, 1]. Divide them by their full range."
            )
        return
    # Black and white padding are the same in any range.
    rest = most[(most > 0) & (values.min(axis=0) < 2**16 - 1)]
    if rest.size and np.quantile(rest, BRIGHT) < FULL:
        raise SetupError(
            f"{BRIGHT:.1%} of its 16-bit values are at most {np.quantile(rest, BRIGHT):.0f}, and the largest is {most.max()} of "
            "65535. It would be read as dark or black. Bring the values to their full range, or those up to 255 to 8 bits with "
            "astype(numpy.uint8)."
        )


def _require_alpha(alpha: NDArray[np.uint8], names: list[str]) -> None:
    """Raise :class:`SetupError` if a fourth channel without a name does not look like alpha."""
    if not is_numbered(names):
        return
    opaque = float((alpha == 255).mean())
    if opaque < OPAQUE_SHARE or opaque + float((alpha == 0).mean()) < ALPHA_SHARE:
        raise SetupError(
            f"it has four channels without names, and the fourth is not alpha: it is opaque in {opaque:.0%} of the pixels. CMYK and "
            "fluorescence are not H&E. If the channels are red, green, blue and alpha, name them r, g, b, a with "
            "sdata.set_channel_names(…)."
        )


def _padding(planes: NDArray, width: int) -> NDArray[np.bool_]:
    """Which pixels ``(h * w,)`` of planes ``(c, h, w)`` are black padding."""
    found = black_padding(to_uint8(planes[:3]).transpose(1, 2, 0), width)
    return np.zeros(planes[0].size, bool) if found is None else found.ravel()
