"""A resolution of Leiden at which its niches are stable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc.niches.consensus import Consensus, consensus, core_groups, join, quick_runs, stability

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.niches.leiden import WeightedGraph

GRID = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
"""Resolutions compared. Our choice."""
TOLERANCE = 0.05
"""Adjusted Rand index below the most stable resolution that a finer one may have. Chosen on simulated tissue."""

MAX_WHOLE = 40_000
"""Nodes up to which runs cluster the nodes themselves, beyond that groups of them."""
NODES_PER_RESOLUTION = 100
"""Nodes over the resolution of these groups, which then have about ten nodes, whatever their number."""


def compare_in_groups(
    graph: WeightedGraph, sizes: NDArray, resolutions: tuple[float, ...], n_runs: int, seed: int
) -> tuple[Consensus, pd.DataFrame]:
    """As :func:`compare`; the runs of a large graph cluster groups of about ten nodes.

    One more iteration of Leiden starts from the consensus and moves single nodes where modularity rises.
    """
    n = len(graph.strength)
    if n <= MAX_WHOLE:
        return compare(graph, sizes, resolutions, n_runs, seed)
    groups = graph.leiden(n / NODES_PER_RESOLUTION, seed, 1)
    cells = np.bincount(groups, sizes).astype(np.int64)
    best, table = compare(graph.contract(groups), cells, resolutions, n_runs, seed)
    chosen = float(table.loc[table["chosen"], "resolution"].iloc[0])
    labels = graph.leiden(chosen, seed, 1, initial=best.labels[groups]).astype(np.int64)
    table.loc[table["chosen"], "n_niches"] = labels.max() + 1
    return Consensus(labels, best.runs[:, groups], best.stability), table


def compare(
    graph: WeightedGraph, sizes: NDArray, resolutions: tuple[float, ...], n_runs: int, seed: int
) -> tuple[Consensus, pd.DataFrame]:
    """Consensus at the resolution of :func:`most_stable`, and resolution, n_niches, stability and chosen of each.

    Resolutions are compared by quick runs. Those at the chosen one are as if it had been given.
    """
    n_niches = np.zeros(len(resolutions), np.int64)
    agreement = np.zeros(len(resolutions))
    chosen = 0
    compared = len(resolutions) > 1
    if compared:
        for place, runs in enumerate(quick_runs(graph, resolutions, n_runs, seed)):
            n_niches[place] = join(graph, core_groups(runs), resolutions[place], seed).max() + 1
            agreement[place] = stability(runs, sizes)
        chosen = most_stable(n_niches, agreement)
    best = consensus(graph, sizes, resolutions[chosen], n_runs, seed)
    n_niches[chosen] = best.labels.max() + 1
    if not compared:
        agreement[chosen] = best.stability
    table = pd.DataFrame({"resolution": resolutions, "n_niches": n_niches, "stability": agreement})
    table["chosen"] = np.arange(len(resolutions)) == chosen
    table.index = table.index.astype(str)
    return best, table


def most_stable(n_niches: NDArray, stability: NDArray) -> int:
    """Place of the finest resolution that is nearly as stable as the most stable, as in chooseR [Patterson-Cross 2021].

    A single niche is always stable and counts for nothing. Where there is no other, the first place.
    """
    score = np.where(n_niches > 1, stability, -np.inf)
    return int(np.flatnonzero(score >= score.max() - TOLERANCE)[-1]) if (n_niches > 1).any() else 0
