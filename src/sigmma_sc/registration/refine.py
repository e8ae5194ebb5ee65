"""Local improvement of a pose by how well expression explains colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.registration.coarse import Candidate
from sigmma_sc.registration.explain import explain
from sigmma_sc.registration.pose import nudged, scale_of, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.registration.colour import ColourMap
    from sigmma_sc.registration.squares import Squares


def refine(
    squares: Squares,
    colours: ColourMap,
    pose: NDArray[np.float64],
    scales: tuple[float, float],
    step: float,
    tolerance: float,
) -> Candidate:
    """Nearest similarity with the best score, by Nelder and Mead's simplex of ``step`` µm, to ``tolerance`` µm.

    Poses with a scale outside of ``scales`` are not considered.
    """
    from scipy.optimize import minimize

    middle, radius = spread(squares.xy)
    low, high = scales

    def loss(change: NDArray[np.float64]) -> float:
        moved = nudged(pose, change, middle, radius)
        beyond = max(0.0, low - scale_of(moved), scale_of(moved) - high)
        return 10 * beyond * radius / step - explain(squares, colours, moved).score

    simplex = np.vstack([np.zeros(4), step * np.eye(4)]) - step / 5
    options = {"initial_simplex": simplex, "xatol": tolerance, "fatol": 1e-5, "maxfev": 300}
    found = minimize(loss, np.zeros(4), method="Nelder-Mead", options=options)
    return Candidate(nudged(pose, found.x, middle, radius), -float(found.fun))
