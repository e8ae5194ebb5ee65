"""A resolution of Leiden at which its niches are stable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc.niches.consensus import Consensus, consensus

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.niches.leiden import WeightedGraph

GRID = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
"""Resolutions compared. Our choice."""
TOLERANCE = 0.02
"""Adjusted Rand index below the most stable resolution that a finer one may have. Our choice."""


def compare(
    graph: WeightedGraph, sizes: NDArray, resolutions: tuple[float, ...], n_runs: int, seed: int
) -> tuple[Consensus, pd.DataFrame]:
    """Consensus at the resolution of :func:`most_stable`, and resolution, n_niches, stability and chosen of each."""
    every = [consensus(graph, sizes, resolution, n_runs, seed) for resolution in resolutions]
    n_niches = np.array([one.labels.max() + 1 for one in every])
    stability = np.array([one.stability for one in every])
    chosen = most_stable(n_niches, stability)
    table = pd.DataFrame({"resolution": resolutions, "n_niches": n_niches, "stability": stability})
    table["chosen"] = np.arange(len(every)) == chosen
    table.index = table.index.astype(str)
    return every[chosen], table


def most_stable(n_niches: NDArray, stability: NDArray) -> int:
    """Place of the finest resolution that is nearly as stable as the most stable, as in chooseR [Patterson-Cross 2021].

    A single niche is always stable and counts for nothing. Where there is no other, the first place.
    """
    score = np.where(n_niches > 1, stability, -np.inf)
    return int(np.flatnonzero(score >= score.max() - TOLERANCE)[-1]) if (n_niches > 1).any() else 0
