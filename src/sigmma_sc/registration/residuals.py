"""Local residuals of a registration: where in the section cells would still move, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.registration.explain import regression, tissue_weight
from sigmma_sc.registration.haematoxylin import peak_of
from sigmma_sc.tissue.frame import apply_affine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.registration.colour import ColourMap
    from sigmma_sc.registration.fine import WindowCurves
    from sigmma_sc.registration.squares import Squares

PEAK = 7.0
"""Least height of a window's own peak, in standard deviations of its curve, for a residual."""

LEAST_SQUARES = 60
"""Least number of squares on tissue for a residual of a block: four times the number of components."""

STEPS = 6
"""Shifts tried to each side, each a quarter of a square."""


@dataclass(frozen=True)
class Residuals:
    """Shifts of the cells, window by window, that would improve a registration."""

    xy: NDArray[np.float64]  # middle of each window on the image, µm, (n, 2)
    shift: NDArray[np.float64]  # best shift of its cells along x and y of the image, µm, (n, 2)

    @property
    def median(self) -> float:
        """Median length of the shifts, µm: the deformation of the section and the error of a window; NaN without any."""
        return float(np.median(np.hypot(*self.shift.T))) if len(self.shift) else float("nan")


def residuals_of_windows(curves: WindowCurves) -> Residuals:
    """Peaks of the windows' own curves about a pose, of windows that have one within their curve."""
    far = curves.curves.shape[1] // 2
    shifts = np.arange(-far, far + 1) * curves.pitch
    kept = []
    places = []
    for number, curve in enumerate(curves.curves):
        _, best, height = peak_of(curve, shifts, 0.0)
        column, row = np.round(np.array(best) / curves.pitch).astype(np.int64) + far
        if height >= PEAK and min(row, column) > 0 and max(row, column) < 2 * far:
            across = _vertex(*-curve[row, column - 1 : column + 2])
            down = _vertex(*-curve[row - 1 : row + 2, column])
            kept.append(number)
            places.append((column + across - far, row + down - far))
    shift = np.array(places, float).reshape(-1, 2) * curves.pitch
    return Residuals(apply_affine(curves.pose, curves.middle[kept]), shift)


def residuals_of_blocks(
    squares: Squares, blocks: NDArray[np.int64], colours: ColourMap, pose: NDArray[np.float64]
) -> Residuals:
    """Shifts of blocks of squares, ``(n,)`` numbers from 0 on, at which the common regression predicts colour best.

    Blocks with few squares on tissue, and those whose best shift is the largest tried, have no residual.
    """
    place = apply_affine(pose, squares.xy)
    y, share = colours.at(place)
    weight = tissue_weight(share)
    beta, x_mean, y_mean = regression(squares.values, y, weight)
    expected = y_mean + (squares.values - x_mean) @ beta
    n_blocks = blocks.max() + 1
    n = np.bincount(blocks, weight > 0, n_blocks)
    loss = np.empty((2 * STEPS + 1, 2 * STEPS + 1, n_blocks))
    for i, j in product(range(2 * STEPS + 1), repeat=2):
        there, share = colours.at(place + (np.array([j, i]) - STEPS) * squares.side / 4)
        weight = tissue_weight(share)
        error = ((there - expected) ** 2).sum(axis=1) * weight
        loss[i, j] = np.bincount(blocks, error, n_blocks) / np.maximum(np.bincount(blocks, weight, n_blocks), 1e-6)
    row, column = np.unravel_index(loss.reshape(-1, n_blocks).argmin(axis=0), loss.shape[:2])
    within = (np.minimum(row, column) > 0) & (np.maximum(row, column) < 2 * STEPS)
    kept = np.flatnonzero(within & (n >= LEAST_SQUARES))
    row, column = row[kept], column[kept]
    down = _vertex(loss[row - 1, column, kept], loss[row, column, kept], loss[row + 1, column, kept])
    across = _vertex(loss[row, column - 1, kept], loss[row, column, kept], loss[row, column + 1, kept])
    shift = (np.column_stack([column + across, row + down]) - STEPS) * squares.side / 4
    held = np.bincount(blocks, minlength=n_blocks)
    middle = np.column_stack([np.bincount(blocks, axis, n_blocks) / held for axis in place.T])
    return Residuals(middle[kept], shift)


def _vertex(before: NDArray, at: NDArray, after: NDArray) -> NDArray:
    """Offset from -0.5 to 0.5 of the lowest point of parabolas through three values each."""
    curvature = before - 2 * at + after
    return np.where(curvature > 0, (before - after) / np.maximum(2 * curvature, 1e-12), 0.0).clip(-0.5, 0.5)
