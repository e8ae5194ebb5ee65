"""Spatial edges between neighbouring cells. squidpy builds them; blocks cut them (paper, section 5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix


def spatial_graph(xy: NDArray[np.float64], n_neighs: int = 6, radius: float | None = None) -> csr_matrix:
    """Graph of spatial proximity over the cells ``(n_cells, 2)`` of one slide, in µm.

    Cells closer than ``radius`` µm are linked, or else the nearest ``n_neighs``; a radius is preferable for bins on a
    lattice, where nearest neighbours tie. Row v of the adjacency ``(n_cells, n_cells)`` holds the neighbours that send
    messages to cell v.
    """
    from scipy.sparse import csr_matrix

    n = len(xy)
    if n < 2:
        return csr_matrix((n, n), dtype=np.float32)
    import squidpy as sq

    if radius is not None:
        builder = sq.gr.neighbors.RadiusBuilder(radius=radius)
    else:
        builder = sq.gr.neighbors.KNNBuilder(n_neighs=min(n_neighs, n - 1))
    # The builder is called directly, because spatial_neighbors_* logs every graph.
    adjacency = csr_matrix(builder.build_graph(np.asarray(xy, dtype=float))[0])
    adjacency.eliminate_zeros()
    return adjacency


def edges_within(
    adjacency: csr_matrix, cells: NDArray[np.int64], group: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Edges of a slide's graph among some of its cells ``(n,)``, kept only inside a group.

    A cell may be in ``cells`` more than once (overlapping tiles), each time in another group, that is, micro block of a
    tile. Messages pass from source to target, which are positions in ``cells``, ``(n_edges,)`` each.
    """
    starts = adjacency.indptr[cells]
    ends = adjacency.indptr[cells + 1]
    degree = (ends - starts).astype(np.int64)
    target = np.repeat(np.arange(len(cells)), degree)
    within = np.arange(degree.sum()) - np.repeat(np.cumsum(degree) - degree, degree)
    neighbour = adjacency.indices[np.repeat(starts, degree) + within].astype(np.int64)
    # Find the neighbour among the entries of the same group: a search over (group, cell) pairs.
    span = np.int64(adjacency.shape[0])
    key = group.astype(np.int64) * span + cells
    order = np.argsort(key)
    wanted = group[target].astype(np.int64) * span + neighbour
    spot = np.minimum(np.searchsorted(key, wanted, sorter=order), len(cells) - 1) if len(cells) else wanted
    found = key[order[spot]] == wanted if len(cells) else np.zeros(0, bool)
    return order[spot][found], target[found]
