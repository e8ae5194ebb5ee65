"""Fine step: the similarity, or affine, that puts single cells on their nuclei in windows over the whole section."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.registration.haematoxylin import Zoom, cell_windows, centred_ranks
from sigmma_sc.registration.pose import displacement, nudged, spread
from sigmma_sc.tissue.frame import apply_affine

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide

    Totals = Callable[[NDArray[np.int64]], NDArray[np.float64]]

WINDOW = 200.0
"""Side of the windows, µm."""

LEAST_CELLS = 10
"""Windows with fewer cells are left out."""

GAIN = 0.01
"""Least relative gain in windows held out for an affine to be preferred to a similarity."""

N_SPLITS = 4
"""Number of random halvings of the windows."""


@dataclass(frozen=True)
class WindowCurves:
    """Haematoxylin under the cells of each window, for every shift of them about one pose."""

    pose: NDArray[np.float64]  # pose of the cells at zero shift
    middle: NDArray[np.float64]  # mean position of the cells of each window in their own frame, µm, (n, 2)
    # Sum over cells of the standardised stain at shifts along y and x, (n, k, k); zero shift is in the middle.
    curves: NDArray[np.float32]
    n_cells: NDArray[np.int64]  # cells of each window, (n,)
    pitch: float  # distance of the shifts of the curves, µm

    def __len__(self) -> int:
        return len(self.middle)

    def take(self, some: NDArray) -> WindowCurves:
        """Some of the windows."""
        return WindowCurves(self.pose, self.middle[some], self.curves[some], self.n_cells[some], self.pitch)

    @cached_property
    def extent(self) -> tuple[NDArray[np.float64], float]:
        """Middle and radius of the windows."""
        return spread(self.middle)

    def height(self, pose: NDArray[np.float64]) -> float:
        """Mean standardised stain under the cells at a pose; windows it takes beyond their curves count as zero."""
        shift = apply_affine(pose, self.middle) - apply_affine(self.pose, self.middle)
        size = self.curves.shape[1]
        place = shift / self.pitch + size // 2
        corner = np.floor(place).astype(np.int64)
        inside = ((corner >= 1) & (corner < size - 2)).all(axis=1)
        corner[~inside] = 1
        across, down = _cubic(place - corner).transpose(1, 0, 2)
        near = corner[:, :, None] + np.arange(-1, 3)
        some = self.splines[np.arange(len(self))[:, None, None], near[:, 1, :, None], near[:, 0, None, :]]
        heights = np.einsum("nij,ni,nj->n", some, down, across)
        return float((heights * inside).sum() / self.n_cells.sum())

    @cached_property
    def splines(self) -> NDArray[np.float64]:
        """Coefficients of cubic splines through the curves: linear interpolation would peak at whole pixels alone."""
        from scipy.ndimage import spline_filter1d

        return spline_filter1d(spline_filter1d(self.curves, axis=1, mode="mirror"), axis=2, mode="mirror")

    def common_shift(self) -> NDArray[np.float64]:
        """Shift in µm at which all windows together peak."""
        total = self.curves.sum(axis=0)
        y, x = np.unravel_index(np.argmax(total), total.shape)
        return (np.array([x, y]) - total.shape[0] // 2) * self.pitch

    def best_pose(self, start: NDArray[np.float64], n_parameters: int, step: float) -> NDArray[np.float64]:
        """Pose near ``start`` with the most stain under the cells: a similarity of it (4 parameters) or an affine (6)."""
        from scipy.optimize import minimize

        middle, radius = self.extent

        def loss(change: NDArray[np.float64]) -> float:
            return -self.height(nudged(start, change, middle, radius))

        simplex = np.vstack([np.zeros(n_parameters), step * np.eye(n_parameters)]) - step / 5
        options = {"initial_simplex": simplex, "xatol": 0.01, "fatol": 1e-7, "maxfev": 200 * n_parameters}
        found = minimize(loss, np.zeros(n_parameters), method="Nelder-Mead", options=options)
        return nudged(start, found.x, middle, radius)

    def split_error(self, pose: NDArray[np.float64], n_parameters: int, seed: int) -> float:
        """Expected error of a pose in µm: half of how far apart poses fitted to halves of the windows are."""
        rng = np.random.default_rng(seed)
        apart = []
        for _ in range(N_SPLITS):
            order = rng.permutation(len(self))
            halves = np.array_split(order, 2)
            one, other = (self.take(np.sort(half)).best_pose(pose, n_parameters, 1.0) for half in halves)
            apart.append(displacement(one, other, self.middle))
        return float(np.sqrt(np.mean(np.square(apart))) / 2)


def window_curves(
    slide: Slide,
    pose: NDArray[np.float64],
    reach: float,
    smoothing: float,
    totals: Totals | None,
    n_windows: int,
    seed: int,
) -> WindowCurves:
    """Curves of random windows up to shifts of ``reach`` µm, smoothed by a Gaussian of ``smoothing`` µm.

    ``pose`` takes ``slide.xy`` times the pixel size to µm of the image. ``totals`` gives counts of cells, whose ranks
    weigh bins; ``None`` for cells.
    """
    from scipy.ndimage import gaussian_filter

    microns = slide.microns_per_pixel
    image = Zoom.of(slide, 1.0, exact=True)
    own = slide.xy * microns
    xy = apply_affine(pose, own) / microns / image.px
    under = np.flatnonzero(((xy >= 0) & (xy < image.size)).all(axis=1))
    half = round(WINDOW / 2 / image.microns)
    far = round(reach / image.microns)
    middles = []
    curves = []
    n_cells = []
    for corner, cells in cell_windows(xy, under, half, n_windows, seed):
        if len(cells) < LEAST_CELLS:
            continue
        stain = image.nuclei(image.pixels(corner - far, 2 * (half + far)))
        stain /= max(float(stain.std()), 1e-3)
        place = np.floor(xy[cells]).astype(np.int64) - corner
        weight = np.ones(len(cells)) if totals is None else centred_ranks(totals(cells)) * np.sqrt(12)
        curves.append(gaussian_filter(_curve(stain, place, weight, far), smoothing / image.microns, mode="nearest"))
        middles.append(own[cells].mean(axis=0))
        n_cells.append(len(cells))
    size = 2 * far + 1
    return WindowCurves(
        pose,
        np.array(middles).reshape(-1, 2),
        np.array(curves, np.float32).reshape(-1, size, size),
        np.array(n_cells, np.int64),
        image.microns,
    )


def _curve(stain: NDArray, place: NDArray[np.int64], weight: NDArray, far: int) -> NDArray[np.float32]:
    """Sum over cells of weight · stain at every shift of up to ``far`` px, looked up, which is fast for few shifts."""
    around = np.lib.stride_tricks.sliding_window_view(stain, (2 * far + 1, 2 * far + 1))
    return np.tensordot(weight.astype(np.float32), around[place[:, 1], place[:, 0]], axes=1)


def _cubic(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights ``(..., 4)`` of the coefficients at -1, 0, 1 and 2 in a cubic B-spline at ``offset`` from 0 to 1."""
    left = 1 - offset
    inner = 2 / 3 - offset**2 * (2 - offset) / 2
    outer = 2 / 3 - left**2 * (2 - left) / 2
    return np.stack([left**3 / 6, inner, outer, offset**3 / 6], axis=-1)


def prefers_affine(curves: WindowCurves, pose: NDArray[np.float64], seed: int) -> bool:
    """Whether an affine fitted to half of the windows beats a similarity in the other half, both ways."""
    order = np.random.default_rng(seed).permutation(len(curves))
    halves = [curves.take(np.sort(half)) for half in np.array_split(order, 2)]
    for fitted, held in (halves, halves[::-1]):
        similar, affine = (held.height(fitted.best_pose(pose, n, 1.0)) for n in (4, 6))
        if affine < (1 + GAIN) * similar:
            return False
    return True
