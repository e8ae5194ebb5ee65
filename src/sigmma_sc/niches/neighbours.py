"""The nearest neighbours of each cell in an embedding, exactly for many cells and nearly so for more.

scanpy's own neighbours are right too, but a process that asks for those of 8,192 cells or more first compiles pynndescent for
more than a minute, and umap-learn besides. Here scikit-learn's compiled search does the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from sigmma_sc._checks import require_whole
from sigmma_sc.errors import SetupError
from sigmma_sc.niches.connectivities import umap_connectivities

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

MAX_EXACT = 30_000
"""Cells up to which every pair is compared."""
LIST_SIZE = 500
"""Cells, on average, that share a list beyond that."""
N_PROBES = 16
"""Lists that each cell is compared with, those with the nearest centres."""
SPARE = 2
"""Neighbours found beyond those asked for, which tell whether the last of these ties with others."""
BLOCK = 2**22
"""Numbers that a block of distances may hold."""


class NeighbourGraph(NamedTuple):
    """Neighbours of each cell, as :func:`scanpy.pp.neighbors` stores them.

    Attributes
    ----------
    distances
        ``(n, n)`` float32, Euclidean distances of each row's cell to its ``n_neighbors - 1`` nearest others. Those of a cell at
        the same place are stored zeros.
    connectivities
        ``(n, n)`` float32, symmetric weights in (0, 1] of UMAP.
    n_neighbors
        Neighbours of a cell, itself included.
    seed
        Of the search.
    """

    distances: sparse.csr_matrix
    connectivities: sparse.csr_matrix
    n_neighbors: int
    seed: int

    def write(self, adata: AnnData) -> None:
        """Write ``obsp["distances"]``, ``obsp["connectivities"]`` and ``uns["neighbors"]``, where scanpy looks for them."""
        adata.obsp["distances"] = self.distances
        adata.obsp["connectivities"] = self.connectivities
        params = {"n_neighbors": self.n_neighbors, "method": "umap", "random_state": self.seed, "metric": "euclidean"}
        adata.uns["neighbors"] = {
            "connectivities_key": "connectivities",
            "distances_key": "distances",
            "params": params,
        }


def neighbour_graph(embedding: ArrayLike, n_neighbors: int = 15, seed: int = 0) -> NeighbourGraph:
    """Nearest neighbours of each cell and the weights that UMAP gives them.

    Up to 30,000 cells every pair is compared. Beyond that, cells are listed under the nearest of ``n / 500`` cells drawn by
    ``seed``, and each is compared with the cells of the 16 lists that are nearest to it [Jégou et al. 2011, without
    quantisation]. Distances are exact in both cases. Of cells at the same distance the first ones are taken, so that the
    result does not depend on the number of threads.

    Parameters
    ----------
    embedding
        ``(n, d)`` finite numbers, a row a cell.
    n_neighbors
        Neighbours of a cell, itself included, as scanpy counts them. Of fewer cells than that, half of the cells.
    seed
        Of the cells that lists are made of.

    Raises
    ------
    SetupError
        If the embedding is no matrix, has no row, or holds a value that is not finite.
    """
    cells = np.asarray(embedding)
    require_whole(n_neighbors, "n_neighbors", 2)
    if cells.ndim != 2 or not len(cells):
        raise SetupError(
            f"An embedding of shape {cells.shape} has no neighbours. Give a matrix with a row for each cell."
        )
    cells = np.ascontiguousarray(cells, cells.dtype if cells.dtype == np.float32 else np.float64)
    if wrong := np.flatnonzero(~np.isfinite(cells).all(axis=1)).tolist():
        raise SetupError(
            f"The embedding is not finite in {len(wrong)} of {len(cells)} rows, first {wrong[0]}. Leave them out."
        )
    n = len(cells)
    if n < n_neighbors:
        n_neighbors = 1 + n // 2
    indices, distances = nearest(cells, n_neighbors, seed)
    starts = np.arange(n + 1) * (n_neighbors - 1)
    matrix = sparse.csr_matrix((distances[:, 1:].ravel(), indices[:, 1:].ravel(), starts), shape=(n, n))
    return NeighbourGraph(matrix, umap_connectivities(indices, distances), n_neighbors, seed)


def nearest(cells: NDArray, k: int, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Nearest ``k`` cells of each cell, itself first, then by distance and row.

    Parameters
    ----------
    cells
        ``(n, d)`` finite float32 or float64, n at least ``k``.
    k
        Neighbours, the cell itself included.
    seed
        Of the search beyond ``MAX_EXACT`` cells.

    Returns
    -------
    Rows ``(n, k)`` int32 and Euclidean distances ``(n, k)`` float32.
    """
    rows = np.arange(len(cells), dtype=np.int32)
    width = min(k + SPARE, len(cells))
    found = _search_all(cells, width) if len(cells) <= MAX_EXACT else _search_lists(cells, width, seed)
    found, distances = _ranked(cells, rows, found)
    # More cells at the last distance than were found, or too few cells found: compare with all.
    if width < len(cells) and len(tied := np.flatnonzero(distances[:, k - 1] == distances[:, -1])):
        found[tied], distances[tied] = _ranked(cells, tied, _search_tied(cells, tied, width))
    return found[:, :k], distances[:, :k].astype(np.float32)


def _search_all(cells: NDArray, width: int) -> NDArray:
    """The nearest of all cells, each pair compared. scikit-learn adds up in float64: cells far from 0 lose nothing."""
    return NearestNeighbors(algorithm="brute").fit(cells).kneighbors(cells, width, return_distance=False)


def _search_lists(cells: NDArray, width: int, seed: int) -> NDArray:
    """The nearest of the cells in the lists that are nearest to each cell; -1 where they hold fewer."""
    n = len(cells)
    # Cells drawn, and not means of cells: the sums of k-means hang on the number of threads.
    drawn = np.random.default_rng(seed).choice(n, n // LIST_SIZE, replace=False)
    centres = np.unique(cells[drawn], axis=0)
    n_probes = min(N_PROBES, len(centres))
    probes = NearestNeighbors(algorithm="brute").fit(centres).kneighbors(cells, n_probes, return_distance=False)
    members = _grouped(probes[:, 0], len(centres))
    found = np.full((n, width), -1, np.int32)
    gaps = np.full((n, width), np.inf, cells.dtype)
    for inside, asking in zip(members, _grouped(probes.ravel(), len(centres)), strict=True):
        if not len(inside):
            continue
        asking //= n_probes
        search = NearestNeighbors(algorithm="brute").fit(cells[inside])
        gap, place = search.kneighbors(cells[asking], min(width, len(inside)))
        gap = np.concatenate([gaps[asking], gap], axis=1)
        cell = np.concatenate([found[asking], inside[place]], axis=1)
        best = np.argpartition(gap, width - 1, axis=1)[:, :width]
        gaps[asking] = np.take_along_axis(gap, best, axis=1)
        found[asking] = np.take_along_axis(cell, best, axis=1)
    return found


def _grouped(labels: NDArray, n: int) -> list[NDArray]:
    """Places of each label 0 … n - 1."""
    ends = np.cumsum(np.bincount(labels, minlength=n))
    return np.split(np.argsort(labels, kind="stable"), ends[:-1])


def _search_tied(cells: NDArray, rows: NDArray, width: int) -> NDArray:
    """The nearest of all cells by distance and row, for cells that many others are equally near to."""
    places, which = np.unique(cells[rows], axis=0, return_inverse=True)
    out = np.empty((len(places), width), np.int32)
    step = max(1, BLOCK // len(cells))
    for start in range(0, len(places), step):
        gaps = cdist(places[start : start + step], cells)
        out[start : start + step] = np.argsort(gaps, axis=1, kind="stable")[:, :width]
    return out[which.ravel()]


def _ranked(cells: NDArray, rows: NDArray, found: NDArray) -> tuple[NDArray, NDArray]:
    """Cells found for each row by distance and row, the cell itself first, and their distances.

    Distances are those of differences: x² + y² − 2xy, which the search uses, leaves copies of a cell a little apart.
    """
    found = found.astype(np.int32)
    without_itself = ~(found == rows[:, None]).any(axis=1)
    found[without_itself, -1] = rows[without_itself]
    distances = np.empty(found.shape)
    step = max(1, BLOCK // (found.shape[1] * cells.shape[1]))
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        differences = np.subtract(cells[found[some]], cells[rows[some], None], dtype=np.float64)
        distances[some] = np.sqrt(np.einsum("ijk,ijk->ij", differences, differences))
    distances[found < 0] = np.inf
    distances[found == rows[:, None]] = -1
    order = np.lexsort((found, distances), axis=1)
    found, distances = np.take_along_axis(found, order, axis=1), np.take_along_axis(distances, order, axis=1)
    distances[:, 0] = 0
    return found, distances
