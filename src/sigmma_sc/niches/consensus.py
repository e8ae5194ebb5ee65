"""One partition of cells out of many runs of Leiden, and how often each cell keeps its niche over the runs.

Runs differ in their seed and in a fifth of the edges, which is left out at random. Cells that are together in all runs
are a core group. Leiden on the graph of the core groups joins them to niches: the ensemble of Ovelgönne and Geyer-Schulz
[2012]. It maximises the modularity of the whole graph, so a resolution means what it means in one run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from sigmma_sc.niches.leiden import WeightedGraph

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARE = 0.8
"""Of the edges, kept in each run."""
N_ITERATIONS = 1
"""Of Leiden in each run. A second takes two thirds longer, and the graph of the core groups is clustered until the end."""
FINE = 20.0
"""Resolution of the small groups of quick runs, over the highest that is compared. On simulated tissue stability did not
change between 7 and 200."""
N_STARTS = 10
"""Runs on the graph of the core groups; the one of highest modularity counts."""
N_COMPARED = 2
"""Runs that each is compared with: all pairs of five runs, and a time that grows with their number and not its square."""


class Consensus(NamedTuple):
    """Niche of each node of a graph."""

    labels: NDArray[np.int64]  # (n,) from 0
    runs: NDArray[np.int32]  # (n_runs, n) clusters of each run
    stability: float  # mean adjusted Rand index of two runs


def consensus(graph: WeightedGraph, sizes: NDArray, resolution: float, n_runs: int, seed: int) -> Consensus:
    """Consensus of ``n_runs`` runs of Leiden; ``sizes`` ``(n,)`` are the numbers of cells of the nodes."""
    runs = leiden_runs(graph, resolution, n_runs, seed)
    labels = join(graph, core_groups(runs), resolution, seed)
    return Consensus(labels, runs, stability(runs, sizes))


def leiden_runs(graph: WeightedGraph, resolution: float, n_runs: int, seed: int) -> NDArray[np.int32]:
    """Labels ``(n_runs, n)`` of runs with other seeds, on :data:`SHARE` of the edges each."""
    runs = np.empty((n_runs, len(graph.strength)), np.int32)
    for run in range(n_runs):
        rng = np.random.default_rng([seed, run])
        kept = rng.random(len(graph.weights), np.float32) < SHARE
        runs[run] = graph.leiden(resolution, int(rng.integers(2**31)), N_ITERATIONS, kept)
    return runs


def quick_runs(graph: WeightedGraph, resolutions: tuple[float, ...], n_runs: int, seed: int) -> NDArray[np.int32]:
    """Labels ``(n_resolutions, n_runs, n)`` of such runs, for little more than those of one resolution.

    Each run first finds small groups, at :data:`FINE`, and clusters the graph of these at every resolution.
    """
    runs = np.empty((len(resolutions), n_runs, len(graph.strength)), np.int32)
    for run in range(n_runs):
        rng = np.random.default_rng([seed, run])
        kept = rng.random(len(graph.weights), np.float32) < SHARE
        groups = graph.leiden(FINE * max(resolutions), int(rng.integers(2**31)), N_ITERATIONS, kept)
        contracted = graph.contract(groups, kept)
        for place, resolution in enumerate(resolutions):
            runs[place, run] = contracted.leiden(resolution, int(rng.integers(2**31)), -1)[groups]
    return runs


def core_groups(runs: NDArray[np.int32]) -> NDArray[np.int64]:
    """Groups ``(n,)`` of nodes that have the same label in each of the runs ``(r, n)``."""
    groups = np.zeros(runs.shape[1], np.int64)
    for labels in runs:
        _, groups = np.unique(groups * (labels.max() + 1) + labels, return_inverse=True)
    return groups


def join(graph: WeightedGraph, groups: NDArray[np.int64], resolution: float, seed: int) -> NDArray[np.int64]:
    """Niches ``(n,)`` that hold whole groups, of the highest modularity found."""
    contracted = graph.contract(groups)
    best = np.zeros(len(contracted.strength), np.int32)
    highest = -np.inf
    for start in range(N_STARTS):
        labels = contracted.leiden(resolution, int(np.random.default_rng([seed, 1, start]).integers(2**31)), -1)
        reached = contracted.modularity(labels, resolution)
        if reached > highest:
            best, highest = labels, reached
    return best[groups].astype(np.int64)


def confidence(labels: NDArray, runs: NDArray, sizes: NDArray) -> NDArray[np.float32]:
    """Share of the runs ``(r, n)`` in which each node has its niche ``(n,)``.

    Clusters of a run and niches are matched one to one, so that most cells agree: the cluster votes of Dudoit and
    Fridlyand [2003]. Cells of a cluster without a niche do not keep theirs.
    """
    n_niches = int(labels.max()) + 1
    n_kept = np.zeros(len(labels), np.int64)
    for run in runs:
        n_clusters = int(run.max()) + 1
        shared = np.bincount(labels * n_clusters + run, sizes, n_niches * n_clusters).reshape(n_niches, n_clusters)
        niche, cluster = linear_sum_assignment(shared, maximize=True)
        cluster_of = np.full(n_niches, -1)
        cluster_of[niche] = cluster
        n_kept += cluster_of[labels] == run
    return (n_kept / len(runs)).astype(np.float32)


def stability(runs: NDArray, sizes: NDArray) -> float:
    """Mean adjusted Rand index of each run ``(r, n)`` with the :data:`N_COMPARED` that follow, the first after the last."""
    cells = np.repeat(np.arange(len(sizes)), sizes)
    found = []
    for shift in range(1, min(N_COMPARED, len(runs) - 1) + 1):
        for one, other in zip(runs, np.roll(runs, -shift, axis=0), strict=True):
            found.append(adjusted_rand_score(one[cells], other[cells]))
    return float(np.mean(found))


def merge_small(labels: NDArray, sizes: NDArray, graph: WeightedGraph, min_size: int) -> NDArray[np.int64]:
    """Niches ``(n,)`` of at least ``min_size`` cells, the smallest joined first.

    A niche that is too small joins the one with which it shares most edge weight. Without an edge to any other, it stays.
    """
    n_niches = int(labels.max()) + 1
    cells = np.bincount(labels, sizes, n_niches)
    ends = labels[graph.heads], labels[graph.tails]
    shared = np.bincount(ends[0] * n_niches + ends[1], graph.weights, n_niches**2).reshape(n_niches, n_niches)
    shared = shared + shared.T
    np.fill_diagonal(shared, 0)
    joined = np.arange(n_niches)
    while (small := np.flatnonzero((cells < min_size) & (shared.sum(axis=1) > 0))).size:
        niche = small[np.argmin(cells[small])]
        home = np.argmax(shared[niche])
        joined[joined == niche] = home
        cells[home] += cells[niche]
        cells[niche] = min_size  # settled
        shared[home] += shared[niche]
        shared[:, home] += shared[:, niche]
        shared[niche] = shared[:, niche] = 0
        shared[home, home] = 0
    return joined[labels]


def by_size(labels: NDArray, sizes: NDArray) -> NDArray[np.int64]:
    """The same niches ``(n,)`` numbered from 0, the one with most cells; of equal ones the first in the table comes first."""
    names, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    order = np.lexsort((first, -np.bincount(codes, sizes)))
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return rank[codes]
