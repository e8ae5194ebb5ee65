"""Where tissue is: pixels that are stained, on a coarse level of the image."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sigmma_sc.tissue.blank import black_padding, padding_width
from sigmma_sc.tissue.channels import has_alpha
from sigmma_sc.tissue.decode import to_uint8
from sigmma_sc.tissue.frame import Slide, image_levels
from sigmma_sc.tissue.levels import level_frames

RESOLUTION = 8.0
"""µm per pixel of the mask: a few cells."""

GLASS = 0.06
STAINED = 0.03
"""Largest optical density of glass, however dim the lamp, and least excess over it of stained tissue."""


@dataclass(frozen=True)
class TissueMask:
    """Stained pixels of one slide."""

    mask: NDArray[np.bool_]  # (h, w) bool
    scale: float  # side of a pixel of the mask in px of level 0
    origin: tuple[float, float] = (0.0, 0.0)  # upper left corner (x, y) of the mask in px of level 0

    def share(self, origins: NDArray[np.float64], side: float) -> NDArray[np.float64]:
        """Share of tissue in squares of ``side`` px with corners ``(n, 2)`` in px of level 0; off the image is no tissue."""
        height, width = self.mask.shape
        total = np.zeros((height + 1, width + 1), np.int32)
        total[1:, 1:] = self.mask.cumsum(0, np.int32).cumsum(1, np.int32)
        low = np.round((origins - self.origin) / self.scale).astype(np.int64)
        high = np.maximum(np.round((origins - self.origin + side) / self.scale).astype(np.int64), low + 1)
        area = np.prod(high - low, axis=1)
        x0, y0 = low.clip(0, (width, height)).T
        x1, y1 = high.clip(0, (width, height)).T
        return (total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]) / area


def tissue_mask(slide: Slide) -> TissueMask:
    """Find stained pixels by their optical density, which is higher than that of glass.

    The coarsest level of at most 8 µm per pixel is read, chunk by chunk, and averaged down to about 8 µm. Black padding
    and transparent pixels are no tissue, and say nothing of the glass.
    """
    import dask.array as da

    levels = image_levels(slide.sdata, slide.image_key)
    frames = level_frames(slide)
    microns = frames.scales * slide.microns_per_pixel
    number = max(0, int(np.searchsorted(microns, RESOLUTION * (1 + 1e-6), side="right")) - 1)
    factor = max(1, min(round(RESOLUTION / microns[number]), *levels[number].shape[1:]))
    planes = da.asarray(levels[number].data)[: 4 if has_alpha(levels[number]) else 3]
    planes = planes.rechunk({0: -1})
    seen = planes.map_blocks(
        partial(_seen, width=padding_width(microns[number])), chunks=((4,), *planes.chunks[1:]), dtype=np.uint8
    )
    # Single precision saves memory: a slide 30 mm wide has many pixels of 8 µm.
    small = da.coarsen(np.mean, seen, {1: factor, 2: factor}, trim_excess=True, dtype=np.float32).compute()
    shown = small[3] / 255
    # Each colour is that of the pixels that show something.
    density = optical_density((small[:3] / np.maximum(shown, 1 / 255)).transpose(1, 2, 0))
    full = shown > 0.5
    tissue = is_tissue(density, density[full]) & full if full.any() else full
    x, y = frames.origins[number].tolist()
    return TissueMask(tissue, factor * frames.scales[number], (x, y))


def _seen(planes: NDArray, width: int) -> NDArray[np.uint8]:
    """Red, green and blue ``(4, h, w)`` of RGB or RGBA planes, 0 where a pixel shows nothing, and 255 where one does."""
    out = np.empty((4, *planes.shape[1:]), np.uint8)
    for plane, channel in zip(out, planes[:3], strict=False):
        plane[:] = to_uint8(channel)
    out[3] = 255
    padding = black_padding(out[:3].transpose(1, 2, 0), width)
    if padding is not None:
        out[:, padding] = 0
    if len(planes) == 4:
        out[:, to_uint8(planes[3]) < 128] = 0
    return out


def optical_density(pixels: NDArray) -> NDArray[np.floating]:
    """Mean optical density of RGB pixels ``(..., 3)``."""
    density = pixels.astype(np.float32)
    density += 1
    density /= 256
    return -np.log10(density, out=density).mean(axis=-1)


def is_tissue(density: NDArray, around: NDArray) -> NDArray[np.bool_]:
    """Which optical densities are those of stained tissue; ``around`` are densities of the whole image, with glass."""
    return density > min(GLASS, np.quantile(around, 0.01)) + STAINED
