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

MAX_EXACT = 40_000
"""Cells up to which every pair is compared: so many take as long either way."""
LIST_SIZE = 350
"""Cells, on average, that share a list beyond that."""
RECALL = 0.97
"""Share of the neighbours that are to be found. Two thousand cells estimate it to 0.002 or so."""
MOST = 0.8
"""Share of its neighbours that are to be found for nearly every cell,"""
CELLS = 0.995
"""and what nearly every cell means."""
N_TESTED = 2_000
"""Cells whose neighbours are found exactly, to see how many lists this takes."""
N_DRAWN = 20
"""Cells drawn for each list, to find its centre. k-means takes a time that is quadratic in the number of cells."""
N_STEPS = 3
"""Steps of k-means."""
SPARE = 2
"""Neighbours found beyond those asked for, which tell whether the last of these ties with others."""
ENOUGH = 1_000
"""Rounding errors that the last of a cell's neighbours is away at least, if float32 is to do."""
BLOCK = 2**22
"""Numbers that a block of distances may hold."""


class NeighbourGraph(NamedTuple):
    """Neighbours of each cell, as :func:`scanpy.pp.neighbors` stores them."""

    # (n, n) float32, Euclidean distances of each row's cell to its n_neighbors - 1 nearest others. Those of a cell at
    # the same place are stored zeros.
    distances: sparse.csr_matrix
    connectivities: sparse.csr_matrix  # (n, n) float32, symmetric weights in (0, 1] of UMAP
    n_neighbors: int  # neighbours of a cell, itself included
    seed: int  # of the search

    def write(self, adata: AnnData, key: str | None = None, use_rep: str | None = None) -> None:
        """Write matrices into ``obsp`` and ``uns["neighbors"]``, or under a key, where scanpy looks for them.

        ``use_rep`` is the key of ``obsm`` of the embedding.
        """
        names = ["distances", "connectivities"] if key is None else [f"{key}_distances", f"{key}_connectivities"]
        adata.obsp[names[0]] = self.distances
        adata.obsp[names[1]] = self.connectivities
        params = {"n_neighbors": self.n_neighbors, "method": "umap", "random_state": self.seed, "metric": "euclidean"}
        if use_rep is not None:
            params["use_rep"] = use_rep
        adata.uns["neighbors" if key is None else key] = {
            "connectivities_key": names[1],
            "distances_key": names[0],
            "params": params,
        }

    def among(self, cells: NDArray[np.bool_]) -> NeighbourGraph:
        """The same graph among all cells of a table, of which it has those that ``cells`` ``(n_obs,)`` marks."""
        return self._replace(
            distances=_spread(self.distances, cells), connectivities=_spread(self.connectivities, cells)
        )


def neighbour_graph(embedding: ArrayLike, n_neighbors: int = 15, seed: int = 0) -> NeighbourGraph:
    """Nearest neighbours of each cell of an embedding ``(n, d)``, and the weights that UMAP gives them.

    Up to 40,000 cells every pair is compared. Beyond that k-means parts the cells into lists of 350 on average, and
    each cell is compared with the lists whose centres are nearest: an inverted file without quantisation [Jégou et
    al. 2011]. Their number is such that at most 3 % of the neighbours of 2,000 cells are missed, and more than a fifth
    of them in at most 0.5 % of the cells. Distances are exact in both cases. Of cells at the same distance the first
    ones are taken, so that the result does not depend on the number of threads. ``n_neighbors``
    counts the cell itself, as scanpy does; of fewer cells than that, half of the cells are taken.
    """
    cells = np.asarray(embedding)
    require_whole(n_neighbors, "n_neighbors", 2)
    if cells.ndim != 2 or not len(cells):
        raise SetupError(f"An embedding of shape {cells.shape} has no neighbours. Give one with a row for each cell.")
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


def _spread(matrix: sparse.csr_matrix, cells: NDArray[np.bool_]) -> sparse.csr_matrix:
    """A matrix of some cells as one of all; the others have empty rows and columns. Stored zeros stay."""
    rows = np.flatnonzero(cells)
    per_row = np.zeros(len(cells), np.int64)
    per_row[rows] = np.diff(matrix.indptr)
    starts = np.concatenate([[0], np.cumsum(per_row)])
    return sparse.csr_matrix((matrix.data, rows[matrix.indices], starts), shape=(len(cells), len(cells)))


def nearest(cells: NDArray, k: int, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Nearest ``k`` cells of each cell ``(n, k)`` int32, itself first, then by distance and row; distances float32."""
    rows = np.arange(len(cells), dtype=np.int32)
    width = min(k + SPARE, len(cells))
    found = _search(cells, cells, width) if len(cells) <= MAX_EXACT else _search_lists(cells, width, seed)
    found, distances = _ranked(cells, rows, found)
    # More cells at the last distance than were found, or too few cells found: compare with all.
    if width < len(cells) and len(tied := np.flatnonzero(distances[:, k - 1] == distances[:, -1])):
        found[tied], distances[tied] = _ranked(cells, tied, _search_tied(cells, tied, width))
    return found[:, :k], distances[:, :k].astype(np.float32)


def _search(cells: NDArray, queries: NDArray, width: int) -> NDArray:
    """The nearest of all cells, each pair compared. scikit-learn adds up in float64: cells far from 0 lose nothing."""
    return NearestNeighbors(algorithm="brute").fit(cells).kneighbors(queries, width, return_distance=False)


def _search_lists(cells: NDArray, width: int, seed: int) -> NDArray:
    """The nearest of the cells in the lists with the nearest centres; -1 where they hold fewer."""
    centres = _centres(cells, seed)
    n_probes = _n_probes(cells, centres, width, seed)
    probes = _search(centres, cells, n_probes).astype(np.int32)
    lists = _grouped(probes[:, 0], len(centres))
    found = np.full((len(cells), width), -1, np.int32)
    gaps = np.full((len(cells), width), np.inf)
    # Nearest lists first, twice as many each time: what they hold bounds how near a cell of another list has to be.
    done = 0
    while done < n_probes:
        visits = probes[:, done : 2 * done + 1]
        done += visits.shape[1]
        for members, places in zip(lists, _grouped(visits.ravel(), len(centres)), strict=True):
            step = max(1, BLOCK // max(1, len(members)))
            for start in range(0, len(places) if len(members) else 0, step):
                _compare(cells, places[start : start + step] // visits.shape[1], members, found, gaps)
    return found


def _n_probes(cells: NDArray, centres: NDArray, width: int, seed: int) -> int:
    """Lists to compare each cell with, so that :data:`RECALL` of its neighbours are in them."""
    tested = np.random.default_rng([seed, 1]).permutation(len(cells))[:N_TESTED]
    neighbours = _search(cells, cells[tested], width)
    home = _search(centres, cells[neighbours.ravel()], 1).reshape(neighbours.shape)
    nearest_first = _search(centres, cells[tested], len(centres))
    place = np.argsort(nearest_first, axis=1)  # of each list, counted from the nearest
    needed = np.sort(np.take_along_axis(place, home, axis=1), axis=1)
    # Most of its neighbours also for a cell far from all others, of which there may be few.
    of_cells = needed[:, _last(MOST, width)]
    return 1 + int(
        max(np.sort(needed, axis=None)[_last(RECALL, needed.size)], np.sort(of_cells)[_last(CELLS, len(tested))])
    )


def _last(share: float, n: int) -> int:
    """Place of the last of ``n`` sorted values within a share of them."""
    return int(np.ceil(share * n)) - 1


def _centres(cells: NDArray, seed: int) -> NDArray:
    """Centres of lists by k-means. That of scikit-learn adds up in the order in which threads finish, so its last bits vary."""
    n_lists = len(cells) // LIST_SIZE
    drawn = cells[np.random.default_rng(seed).permutation(len(cells))[: N_DRAWN * n_lists]]
    centres = np.unique(drawn[:n_lists], axis=0)
    for _ in range(N_STEPS):
        home = _search(centres, drawn, 1)[:, 0]
        sizes = np.bincount(home, minlength=len(centres))[:, None]
        in_list = sparse.csr_matrix((np.ones(len(home)), home, np.arange(len(home) + 1)), (len(home), len(centres)))
        centres = np.where(sizes > 0, in_list.T @ drawn / np.maximum(sizes, 1), centres).astype(cells.dtype)
    return centres


def _compare(cells: NDArray, rows: NDArray, members: NDArray, found: NDArray, gaps: NDArray) -> None:
    """Compare cells with the members of a list, and keep the nearest in ``found``, their squared distances in ``gaps``.

    Products of float32 cells are in float32. Cells for which this is not exact enough are compared in float64.
    """
    width = found.shape[1]
    farthest = gaps[rows].max(axis=1)
    gap, error = _squared(cells[rows], cells[members])
    # Most cells have nearer ones already than this list can offer.
    some = np.flatnonzero(gap.min(axis=1) < farthest + error)
    gap, error, farthest, rows = gap[some], error[some], farthest[some], rows[some]
    place = np.argpartition(gap, min(width, len(members)) - 1, axis=1)[:, :width]
    near = np.take_along_axis(gap, place, axis=1)
    if len(coarse := np.flatnonzero(np.minimum(near.max(axis=1), farthest) < ENOUGH * error)):
        gap, _ = _squared(cells[rows[coarse]].astype(np.float64), cells[members].astype(np.float64))
        place[coarse] = np.argpartition(gap, place.shape[1] - 1, axis=1)[:, :width]
        near = near.astype(np.float64)
        near[coarse] = np.take_along_axis(gap, place[coarse], axis=1)
    near = np.concatenate([gaps[rows], near], axis=1)
    cell = np.concatenate([found[rows], members[place]], axis=1)
    best = np.argpartition(near, width - 1, axis=1)[:, :width]
    gaps[rows] = np.take_along_axis(near, best, axis=1)
    found[rows] = np.take_along_axis(cell, best, axis=1)


def _squared(one: NDArray, other: NDArray) -> tuple[NDArray, NDArray]:
    """Squared distances of each pair of rows, and the rounding error of each row of them.

    Seen from the centre of the others, so that rows far from 0 lose nothing.
    """
    centre = other.mean(axis=0)
    one, other = one - centre, other - centre
    squares, others = np.einsum("ij,ij->i", one, one), np.einsum("ij,ij->i", other, other)
    gap = one @ (-2 * other.T)
    gap += others
    gap += squares[:, None]
    return gap, 8 * np.finfo(gap.dtype).eps * (squares + others.max())


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
