"""Weights of UMAP's neighbour graph, without the seconds that umap-learn takes to compile in each process."""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

N_STEPS = 64
"""Steps of bisection at most."""
TOLERANCE = 1e-5
"""Of the sum of a row's weights."""
MIN_BANDWIDTH = 1e-3
"""Of a row's mean distance; a narrower one would cut a cell off from all but its nearest."""


def umap_connectivities(indices: NDArray, distances: NDArray) -> sparse.csr_matrix:
    """Fuzzy union of the cells' neighbourhoods [McInnes et al. 2018, algorithms 2 and 3].

    Neighbours ``(n, k)``, each cell itself first, and ascending distances give ``(n, n)`` symmetric float32 weights in
    (0, 1], those of ``umap.umap_.fuzzy_simplicial_set``.
    """
    n, k = indices.shape
    distances = distances.astype(np.float64)
    # Smallest distance above 0, so that copies of a cell do not count as its nearest.
    nearest = np.where(distances > 0, distances, np.inf).min(axis=1, initial=np.inf)
    nearest[np.isinf(nearest)] = 0
    excess = np.maximum(distances[:, 1:] - nearest[:, None], 0)
    typical = np.where(nearest > 0, distances.mean(axis=1), distances.mean())
    bandwidth = np.maximum(_bandwidths(excess, np.log2(k)), MIN_BANDWIDTH * typical)
    weights = np.exp(-excess / bandwidth[:, None]).astype(np.float32)
    one_way = sparse.csr_matrix((weights.ravel(), indices[:, 1:].ravel(), np.arange(n + 1) * (k - 1)), shape=(n, n))
    other_way = one_way.T.tocsr()
    both = one_way + other_way - one_way.multiply(other_way)
    both.eliminate_zeros()
    both.sort_indices()
    return both


def _bandwidths(excess: NDArray, target: float) -> NDArray:
    """Width of each row at which the sum of exp(−excess / width) is the target, by bisection."""
    low = np.zeros(len(excess))
    high = np.full(len(excess), np.inf)
    width = np.ones(len(excess))
    active = np.arange(len(excess))
    for _ in range(N_STEPS):
        miss = np.exp(-excess[active] / width[active, None]).sum(axis=1) - target
        active, miss = active[np.abs(miss) >= TOLERANCE], miss[np.abs(miss) >= TOLERANCE]
        if not len(active):
            break
        too_wide = miss > 0
        high[active[too_wide]] = width[active[too_wide]]
        low[active[~too_wide]] = width[active[~too_wide]]
        middle = (low[active] + high[active]) / 2
        width[active] = np.where(np.isinf(middle), width[active] * 2, middle)
    return width
