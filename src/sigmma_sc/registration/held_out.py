"""Evidence for a pose from squares held out of the search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.registration.explain import regression, tissue_weight
from sigmma_sc.tissue.frame import apply_affine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.registration.colour import ColourMap
    from sigmma_sc.registration.squares import Squares

BLOCK = 3.0
"""Side of the blocks that are held out together, in squares of the coarse search: colours nearer than that are alike."""

HELD_OUT = 0.25
"""Share of the blocks that is held out."""

LEAST_SQUARES = 15
"""Least number of squares held out, on tissue, that R² is measured on."""


def blocks_of(xy: NDArray[np.float64], side: float) -> NDArray[np.int64]:
    """Number of the block of ``side`` µm that each place is in, ``(n,)``, from 0 on."""
    column, row = np.floor((xy - xy.min(axis=0)) / side).astype(np.int64).T
    return np.unique(row * (column.max() + 1) + column, return_inverse=True)[1]


def held_out(blocks: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Squares of a random quarter of the blocks, ``(n,)``."""
    n_blocks = blocks.max() + 1
    n_held = max(1, round(HELD_OUT * n_blocks))
    return np.isin(blocks, np.random.default_rng(seed).permutation(n_blocks)[:n_held])


def predicted_share(squares: Squares, held: NDArray[np.bool_], colours: ColourMap, pose: NDArray[np.float64]) -> float:
    """R² of colour in squares held out, predicted by a regression on the others under the same pose; negative if worse.

    Squares off the tissue do not count; 0 if too few are left.
    """
    y, share = colours.at(apply_affine(pose, squares.xy))
    weight = tissue_weight(share).astype(float)
    fitted, unseen = weight * ~held, weight * held
    if not fitted.any() or unseen.sum() < LEAST_SQUARES:
        return 0.0
    beta, x_mean, y_mean = regression(squares.values, y, fitted)
    left = y - y_mean - (squares.values - x_mean) @ beta
    total = (unseen[:, None] * (y - (unseen @ y) / unseen.sum()) ** 2).sum()
    return 1 - float((unseen[:, None] * left**2).sum() / max(total, 1e-12))
