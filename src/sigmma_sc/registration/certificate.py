"""Certificate: whether a pose found by search is to be believed, and how far it may be off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.registration.explain import explain
from sigmma_sc.registration.held_out import predicted_share
from sigmma_sc.registration.pose import displacement, nudged, spread
from sigmma_sc.registration.refine import refine
from sigmma_sc.registration.squares import Squares

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.registration.coarse import Candidate
    from sigmma_sc.registration.colour import ColourMap

LEAST_R2 = 0.1
"""Least R² of colour in squares held out. The right poses of four tissues reach 0.3 or more, and wrong ones stay below 0.05."""

MOST_OF_FAR = 0.6
"""Largest score of the best far pose, as a share of the best. Wrong poses reach 0.8 or more, right ones of cells 0.4 or less."""

N_SHUFFLES = 20
"""Number of shuffles of the squares."""

N_SPLITS = 3
"""Number of random halvings of the blocks."""

REGISTERED = "registered"
CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Certificate:
    """Evidence for a pose from windows held out of the search, shuffled cells and far poses."""

    verdict: str  # "registered" or "cannot tell"
    reason: str  # why, in words
    # Expected error of the pose in µm, 95 % of the time below it; NaN without a pose.
    error: float
    r2: float  # R² of colour on expression in the squares of the search, adjusted for the number of components
    r2_held_out: float  # R² of colour in squares held out, predicted from the others
    r2_shuffled: float  # largest R² of the same with expression shuffled among the squares
    r2_far_held_out: float  # R² in squares held out of the best pose elsewhere
    far_share: float  # score of that pose as a share of the best
    # Haematoxylin at the cells, in standard deviations of far shifts, in windows that the pose was not fitted to; NaN where
    # nodes are no single cells.
    nuclei: float
    # Median distance of nuclei in a DAPI image of the cells from those of the H&E, µm; NaN without one.
    dapi: float = float("nan")


def refusal(reason: str) -> Certificate:
    """Certificate of a pose that cannot be told, before or without evidence."""
    nan = float("nan")
    return Certificate(CANNOT_TELL, reason, nan, nan, nan, nan, nan, nan, nan)


def evidence(
    squares: Squares, held: NDArray[np.bool_], colours: ColourMap, best: Candidate, far: Candidate | None, seed: int
) -> Certificate:
    """Verdict on the best pose of a search in the squares not ``held``; ``far`` is the best pose elsewhere, if any."""
    searched = squares.take(~held)
    fit = explain(searched, colours, best.pose)
    rng = np.random.default_rng(seed)
    shuffled = []
    for _ in range(N_SHUFFLES):
        values = searched.values[rng.permutation(len(searched))]
        mixed = Squares(searched.xy, values, searched.weight, searched.side)
        shuffled.append(explain(mixed, colours, best.pose).r2)
    told = predicted_share(squares, held, colours, best.pose)
    told_far = predicted_share(squares, held, colours, far.pose) if far else 0.0
    far_share = 0.0
    if far:
        far_share = max(0.0, far.score / best.score) if best.score > 0 else 1.0
    reason = ""
    if fit.r2 <= max(shuffled):
        reason = "expression explains the colour no better than shuffled expression does"
    elif told < LEAST_R2:
        reason = (
            f"the best pose does not explain windows held out of the search (R² {told:.2f}, at least {LEAST_R2} needed)"
        )
    elif far_share > MOST_OF_FAR or told_far > MOST_OF_FAR * told:
        reason = f"a pose elsewhere explains the colour {max(far_share, told_far / told):.0%} as well as the best"
    return Certificate(
        verdict=CANNOT_TELL if reason else REGISTERED,
        reason=reason or f"expression explains the colour of windows held out of the search (R² {told:.2f})",
        error=float("nan"),
        r2=fit.r2,
        r2_held_out=told,
        r2_shuffled=max(shuffled),
        r2_far_held_out=told_far,
        far_share=far_share,
        nuclei=float("nan"),
    )


def curvature_error(squares: Squares, colours: ColourMap, pose: NDArray[np.float64], n_independent: float) -> float:
    """Expected error in µm of a pose from the curvature of its score, as of a likelihood of ``n_independent`` squares.

    Infinite where the score has no maximum at the pose.
    """
    middle, radius = spread(squares.xy)
    step = squares.side / 4

    def score(change: NDArray[np.float64]) -> float:
        return explain(squares, colours, nudged(pose, step * change, middle, radius)).score

    unit = np.eye(4)
    hessian = np.empty((4, 4))
    for i in range(4):
        for j in range(i, 4):
            corners = [a * b * score(a * unit[i] + b * unit[j]) for a in (1, -1) for b in (1, -1)]
            hessian[i, j] = hessian[j, i] = sum(corners) / (4 * step**2)
    if np.linalg.eigvalsh(hessian).max() >= 0:
        return float("inf")
    # The score is twice the logarithm of the likelihood ratio for a square.
    return float(np.sqrt(np.trace(np.linalg.inv(-hessian * n_independent / 2))))


def halves_error(
    squares: Squares,
    blocks: NDArray[np.int64],
    colours: ColourMap,
    pose: NDArray[np.float64],
    scales: tuple[float, float],
    seed: int,
) -> float:
    """Expected error in µm of a pose: half of how far apart poses refined on halves of the blocks are."""
    rng = np.random.default_rng(seed)
    apart = []
    for _ in range(N_SPLITS):
        first = rng.permutation(blocks.max() + 1) < (blocks.max() + 1) // 2
        halves = [squares.take(first[blocks]), squares.take(~first[blocks])]
        one, other = (refine(half, colours, pose, scales, squares.side / 4, 0.2).pose for half in halves)
        apart.append(displacement(one, other, squares.xy))
    return float(np.sqrt(np.mean(np.square(apart))) / 2)
