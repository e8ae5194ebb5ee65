"""Leiden on a weighted graph, many times and on parts of it, without building the graph anew."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray


class WeightedGraph:
    """Undirected edges between cells, or between groups of cells, with what modularity needs of them.

    ``heads``, ``tails`` and ``weights`` are ``(m,)``, each edge once. ``strength`` ``(n,)`` is the weight of all edges of
    a node; one inside a group counts twice, although it is no edge of the graph any more.
    """

    def __init__(self, heads: NDArray, tails: NDArray, weights: NDArray, strength: NDArray) -> None:
        import igraph

        self.heads = heads
        self.tails = tails
        self.weights = weights
        self.strength = strength
        self._graph = igraph.Graph(n=len(strength), edges=np.column_stack([heads, tails]))

    @classmethod
    def from_connectivities(cls, connectivities: sparse.csr_matrix) -> WeightedGraph:
        """Edges of a symmetric matrix ``(n, n)`` of weights."""
        upper = sparse.triu(connectivities, k=1).tocoo()
        weights = upper.data.astype(np.float64)
        return cls(upper.row, upper.col, weights, _strength(upper.row, upper.col, weights, connectivities.shape[0]))

    def contract(self, groups: NDArray, kept: NDArray[np.bool_] | None = None) -> WeightedGraph:
        """Graph of the groups 0 … k - 1 ``(n,)`` of nodes, with the sums of their weights, of all edges or the ``kept``."""
        n_groups = int(groups.max()) + 1
        weights, strength = self._parts(kept)
        first, second = groups[self.heads], groups[self.tails]
        apart = np.flatnonzero((first != second) & (weights > 0))
        ends = np.minimum(first[apart], second[apart]), np.maximum(first[apart], second[apart])
        between = sparse.coo_matrix((weights[apart], ends), (n_groups, n_groups))
        between.sum_duplicates()
        return WeightedGraph(between.row, between.col, between.data, np.bincount(groups, strength, n_groups))

    def modularity(self, labels: NDArray, resolution: float) -> float:
        """Modularity [Newman and Girvan 2004, with the resolution of Reichardt and Bornholdt 2006], up to a constant.

        The constant is the weight inside the groups, the same for all labels of one graph.
        """
        total = self.strength.sum()
        inside = 2 * self.weights[labels[self.heads] == labels[self.tails]].sum()
        return float(inside / total - resolution * (np.bincount(labels, self.strength) ** 2).sum() / total**2)

    def leiden(
        self,
        resolution: float,
        seed: int,
        n_iterations: int = 2,
        kept: NDArray[np.bool_] | None = None,
        initial: NDArray | None = None,
    ) -> NDArray[np.int32]:
        """Labels ``(n,)`` of Leiden [Traag et al. 2019] for modularity, if need be on the ``kept`` ``(m,)`` edges alone.

        Edges that are left out weigh nothing, which is faster than another graph. ``initial`` labels ``(n,)`` to start
        from instead of nodes apart.
        """
        import igraph

        weights, strength = self._parts(kept)
        # igraph draws from a generator of the process: Python's own, which is given back to it.
        igraph.set_random_number_generator(random.Random(seed))
        try:
            found = self._graph.community_leiden(
                # Modularity is the constant Potts model whose nodes weigh as much as their edges.
                objective_function="CPM",
                weights=weights.tolist(),
                node_weights=strength.tolist(),
                resolution=resolution / max(strength.sum(), np.finfo(float).tiny),
                n_iterations=n_iterations,
                initial_membership=None if initial is None else initial.tolist(),
            )
        finally:
            igraph.set_random_number_generator(random)
        return np.asarray(found.membership, np.int32)

    def _parts(self, kept: NDArray[np.bool_] | None) -> tuple[NDArray, NDArray]:
        """Weights of edges and strength of nodes, of all edges or the ``kept`` ones."""
        if kept is None:
            return self.weights, self.strength
        weights = np.where(kept, self.weights, 0.0)
        lost = _strength(self.heads, self.tails, self.weights - weights, len(self.strength))
        return weights, self.strength - lost


def _strength(heads: NDArray, tails: NDArray, weights: NDArray, n: int) -> NDArray[np.float64]:
    ends = np.concatenate([heads, tails])
    return np.bincount(ends, np.concatenate([weights, weights]), n).astype(np.float64)
