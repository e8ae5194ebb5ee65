"""Haematoxylin under the cells and under the same cells shifted, measured on windows of the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.tissue.blank import padding_width, without_padding
from sigmma_sc.tissue.decode import read_window
from sigmma_sc.tissue.frame import Slide, image_levels
from sigmma_sc.tissue.levels import level_frames
from sigmma_sc.tissue.mask import GLASS, is_tissue, optical_density

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import xarray as xr
    from numpy.typing import NDArray


WINDOW = 200.0
REACH = 40.0
"""Side of the windows and largest shift of the curve, µm."""

SURROUNDINGS = 50.0
"""Side of the square, µm, whose mean haematoxylin is subtracted, so that nuclei are peaks and dense tissue is not."""

SMOOTHING = 1.5
"""Standard deviation of the smoothing of the curve, µm."""

OWN_PEAK = 7.0
OWN_CELLS = 50
OWN_WINDOWS = 5
"""Least score and cells for a peak within one window, and least number of such windows for an agreement."""


@dataclass(frozen=True)
class Match:
    """Haematoxylin at the cells for every shift of them."""

    on_image: float  # share of cells under the image
    on_tissue: float  # share of the cells in the windows that are on stained tissue
    score: float  # haematoxylin at zero shift, in standard deviations of the curve at shifts far from its peak
    best_shift: tuple[float, float]  # shift (x, y) of the cells along the image's axes at which the curve peaks, µm
    best_score: float  # height of that peak, on the scale of score
    agreement: float  # share of the windows with a peak that have it near best_shift; 1 if fewer than five have a peak
    shifts: NDArray[np.float64]  # shifts of the curve along x and y, µm, (n,)
    # Haematoxylin above its surroundings at the shifted cells, (n, n) as (y, x): mean over cells, or covariance with
    # the rank of the counts.
    curve: NDArray[np.float64]
    n_cells: int  # cells in the windows

    def without_peak(self) -> Match:
        """The same with NaN for scores and shifts, for cells whose curve has no meaning."""
        nan = float("nan")
        return replace(self, score=nan, best_shift=(nan, nan), best_score=nan, agreement=nan)


def measure_shift(
    slide: Slide,
    xy: NDArray[np.float64],
    totals: Callable[[NDArray[np.int64]], NDArray[np.float64]] | None,
    n_windows: int,
    seed: int,
    coarse: float = 1.0,
) -> Match:
    """Measure haematoxylin under cells at ``xy`` (px of level 0) and at shifts of them, by correlation in each window.

    ``totals`` gives total counts by positions of cells, whose ranks weigh the cells; ``None`` for equal weights.
    Windows are around random cells, and each cell counts in one. ``coarse`` multiplies pixel size, window and largest
    shift, which are 1, 200 and 40 µm.
    """
    under = ((xy >= 0) & (xy < (slide.width, slide.height))).all(axis=1)
    image = Zoom.of(slide, coarse)
    reach = round(coarse * REACH / image.microns)
    half = round(coarse * (WINDOW / 2) / image.microns)
    shifts = np.arange(-reach, reach + 1, dtype=np.float64) * image.microns
    curves = []
    counts = []
    density = [np.empty(0)]
    around = [np.full(1, GLASS)]
    for corner, cells in cell_windows(image.place(xy), np.flatnonzero(under), half, n_windows, seed):
        stain, optical = image.stains(corner - reach, 2 * (half + reach), coarse)
        column, row = (np.floor(image.place(xy[cells])).astype(np.int64) - corner).T
        curves.append(shift_curve(stain, row, column, half, None if totals is None else centred_ranks(totals(cells))))
        counts.append(len(cells))
        density.append(optical[row + reach, column + reach])
        # Pixels beyond the edge are left out: they are read as pure white, brighter than any glass.
        left, top = np.maximum(reach - corner, 0)
        right, bottom = image.size - corner + reach
        around.append(optical[top:bottom:4, left:right:4].ravel())
    on_tissue = is_tissue(np.concatenate(density), np.concatenate(around))
    sigma = coarse * SMOOTHING / image.microns
    total = np.sum(curves, axis=0) if curves else np.zeros((len(shifts), len(shifts)))
    score, best, best_score = peak_of(total, shifts, sigma)
    peaks = [peak_of(c, shifts, sigma)[1:] for c, n in zip(curves, counts, strict=True) if n >= OWN_CELLS]
    apart = [np.hypot(s[0] - best[0], s[1] - best[1]) for s, height in peaks if height >= OWN_PEAK]
    return Match(
        on_image=float(under.mean()),
        on_tissue=float(on_tissue.mean()) if len(on_tissue) else 0.0,
        score=score,
        best_shift=best,
        best_score=best_score,
        agreement=float(np.mean(np.array(apart) <= 8.0)) if len(apart) >= OWN_WINDOWS else 1.0,
        shifts=shifts,
        curve=total / max(1, sum(counts)),
        n_cells=sum(counts),
    )


@dataclass(frozen=True)
class Zoom:
    """An image seen at one pixel size."""

    level: xr.DataArray  # pyramid level (c, y, x)
    block: int  # side of the blocks of its pixels that are averaged
    # Side of one pixel in px of level 0, and in µm.
    px: float
    microns: float
    origin: NDArray[np.float64]  # upper left corner (x, y) of the level in px of level 0, (2,)

    @classmethod
    def of(cls, slide: Slide, microns: float, exact: bool = False) -> Zoom:
        """Choose level and block for pixels of at most ``microns`` µm, or level 0 if its pixels are larger.

        ``exact`` takes level 0 always. Where a side is odd, coarser levels may be off by a part of their pixel.
        """
        levels = image_levels(slide.sdata, slide.image_key)[: 1 if exact else None]
        frames = level_frames(slide)
        scales = frames.scales[: len(levels)]
        number = max(0, int(np.searchsorted(scales * slide.microns_per_pixel, microns, side="right")) - 1)
        block = max(1, int(microns / (scales[number] * slide.microns_per_pixel)))
        px = block * float(scales[number])
        return cls(levels[number], block, px, px * slide.microns_per_pixel, frames.origins[number])

    def place(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions ``(n, 2)`` in px of level 0 as those in px of this view."""
        return (xy - self.origin) / self.px

    @property
    def size(self) -> NDArray[np.int64]:
        """Width and height in whole pixels."""
        return np.array([self.level.sizes["x"], self.level.sizes["y"]]) // self.block

    def pixels(self, corner: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
        """RGB ``(side, side, 3)`` of the square whose upper left pixel is ``corner`` (x, y)."""
        from skimage.measure import block_reduce

        x, y = corner * self.block
        pixels = read_window(self.level, x, y, x + side * self.block, y + side * self.block)
        pixels = without_padding(pixels, padding_width(self.microns / self.block))
        return block_reduce(pixels, (self.block, self.block, 1), np.mean).round().astype(np.uint8)

    def stains(self, corner: NDArray[np.int64], side: int, coarse: float) -> tuple[NDArray, NDArray]:
        """Haematoxylin above its surroundings, and smoothed optical density, of the same square, ``(side, side)`` each."""
        from scipy.ndimage import uniform_filter

        pixels = self.pixels(corner, side)
        optical = optical_density(pixels)
        return self.nuclei(pixels, coarse), uniform_filter(optical, max(1, round(coarse * 10.0 / self.microns)))

    def nuclei(self, pixels: NDArray[np.uint8], coarse: float = 1.0) -> NDArray[np.float32]:
        """Haematoxylin of pixels ``(h, w, 3)`` above its surroundings, ``(h, w)``."""
        from scipy.ndimage import uniform_filter

        stain = haematoxylin(pixels).astype(np.float32)
        return stain - uniform_filter(stain, max(1, round(coarse * SURROUNDINGS / self.microns)))


def haematoxylin(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Haematoxylin of RGB pixels ``(h, w, 3)`` by colour deconvolution (Ruifrok & Johnston 2001, as scikit-image does it)."""
    from skimage.color import rgb2hed

    return rgb2hed(pixels)[..., 0]


def cell_windows(
    xy: NDArray[np.float64], cells: NDArray[np.int64], half: int, n_windows: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Corners of squares of ``2 * half`` px around random cells, and the cells in each that no earlier one held."""
    free = np.ones(len(xy), dtype=bool)
    column, row = np.floor(xy[cells]).astype(np.int64).T
    left = n_windows
    for k in np.random.default_rng(seed).permutation(len(cells)):
        if not left:
            return
        if not free[cells[k]]:
            continue
        corner = np.array([column[k], row[k]]) - half
        right, below = corner + 2 * half
        inside = cells[(column >= corner[0]) & (column < right) & (row >= corner[1]) & (row < below)]
        inside = inside[free[inside]]
        free[inside] = False
        left -= 1
        yield corner, inside


def shift_curve(
    stain: NDArray, row: NDArray, column: NDArray, half: int, weight: NDArray | None
) -> NDArray[np.float64]:
    """Sum over cells of weight · stain at every shift, ``(2 * reach + 1,) * 2``."""
    from scipy.signal import correlate

    points = np.zeros((2 * half, 2 * half), dtype=np.float32)
    np.add.at(points, (row, column), 1.0 if weight is None else weight)
    return correlate(stain, points, mode="valid", method="fft")


def centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks of values as shares of their number, less the mean rank, ``(n,)``."""
    from scipy.stats import rankdata

    return rankdata(values) / len(values) - (len(values) + 1) / (2 * len(values))


def peak_of(curve: NDArray, shifts: NDArray, sigma: float) -> tuple[float, tuple[float, float], float]:
    """Score at zero, shift of the peak and its score, in standard deviations of shifts far from the peak."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(curve, sigma, mode="nearest")
    y, x = np.unravel_index(np.argmax(smooth), smooth.shape)
    far = np.hypot(*np.meshgrid(shifts - shifts[x], shifts - shifts[y])) > shifts[-1] / 2
    std = smooth[far].std()
    scores = (smooth - smooth[far].mean()) / std if std > 0 else np.zeros_like(smooth)
    zero = len(shifts) // 2
    return float(scores[zero, zero]), (float(shifts[x]), float(shifts[y])), float(scores[y, x])
