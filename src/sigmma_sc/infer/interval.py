"""Prediction intervals by conformal prediction whose unit is a spatial block: neighbouring tiles are no independent witnesses."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc import _keys
from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from sigmma_sc.infer.reference import Reference

SIDES = (np.inf, 8.0, 6.0, 4.0, 3.0, 2.0)
"""Sides of blocks in tiles, largest first; the first makes each slide a block. A block of one tile would be no block."""

ENOUGH_BLOCKS = 20
"""Blocks by which a quantile of 90 % is not the largest residual of all."""

ROUNDING = 1e-9


def interval_blocks(reference: Reference, level: float) -> NDArray[np.int64]:
    """Block of each validation tile of a model, or :class:`SetupError` if there are too few blocks for a level."""
    held = ~reference.train
    blocks = calibration_blocks(reference.position[held], reference.slide[held])
    require_level(level, len(np.unique(blocks)))
    return blocks


def require_level(level: float, n_blocks: int) -> None:
    """Raise :class:`SetupError` if so few blocks cannot bound a share ``level`` of new tiles."""
    fewest = ceil(level / (1 - level) - ROUNDING)
    if n_blocks < fewest:
        raise SetupError(
            f"interval={level:g} needs {fewest} spatial blocks of validation tiles, the model has {n_blocks}. Ask for a smaller "
            "interval, or train with a split that holds more out."
        )


def calibration_blocks(position: NDArray[np.float32], slide: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the block of each tile, ``(n,)``: the largest squares of which there are enough.

    ``position`` ``(n, 2)`` is that of the tiles' corners in tile sides, ``slide`` ``(n,)`` the number of their slide.
    """
    blocks = np.zeros(len(slide), np.int64)
    for side in SIDES:
        squares = np.column_stack([slide, np.floor(position / side + 1e-6)])
        blocks = np.unique(squares, axis=0, return_inverse=True)[1].reshape(-1)
        if len(np.unique(blocks)) >= ENOUGH_BLOCKS:
            break
    return blocks


def half_widths(residuals: NDArray[np.float64], blocks: NDArray[np.int64], level: float) -> NDArray[np.float64]:
    """Half the width of the interval of each gene, ``(n_genes,)``; infinite where there are too few blocks.

    ``residuals`` ``(n, n_genes)`` are those of tiles in ``blocks`` ``(n,)``. Every block has the same weight, and so has the
    new one, whose residual may be anything. A tile of a new block is then within the interval with a probability of at
    least ``level``, if blocks are exchangeable (hierarchical conformal prediction, Lee, Barber & Willett,
    arXiv 2306.06342).
    """
    sizes = np.bincount(blocks)
    weights = np.append(1 / sizes[blocks], 1.0)
    scores = np.concatenate([np.abs(residuals), np.full((1, residuals.shape[1]), np.inf)])
    return np.quantile(scores, level - ROUNDING, axis=0, weights=weights, method="inverted_cdf")


def add_intervals(out: AnnData, reference: Reference, held_out: NDArray[np.float64], level: float) -> None:
    """Add the layers ``lower`` and ``upper``; ``held_out`` ``(n, n_genes)`` are predictions of the validation tiles."""
    blocks = interval_blocks(reference, level)
    measured = reference.expression[~reference.train].astype(np.float64)
    half = half_widths(measured - held_out, blocks, level)
    # No expression is below 0.
    out.layers["lower"] = np.maximum(out.X - half, 0).astype(np.float32)
    out.layers["upper"] = np.maximum(out.X + half, 0).astype(np.float32)
    out.uns[_keys.UNS] |= {"interval": level, "n_interval_blocks": len(np.unique(blocks))}
