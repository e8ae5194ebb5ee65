"""Fig. 4 in numbers: do clusters of cells agree with known niches, and do they form regions of tissue."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from sigmma_sc.errors import SetupError


def niche_agreement(labels: ArrayLike, reference: ArrayLike) -> dict[str, float]:
    """Agreement of two partitions of the same cells, whatever their names.

    Parameters
    ----------
    labels
        ``(n,)`` clusters, e.g. Leiden on one scale's embeddings.
    reference
        ``(n,)`` known niches. Cells without a value in either (NaN, None, NA) are dropped.

    Returns
    -------
    ``ari``, the adjusted Rand index (1 the same, 0 expected by chance) [Hubert and Arabie 1985]; ``nmi``, the mutual
    information over the mean of the entropies (not adjusted: it grows with the number of clusters); ``n`` cells
    compared and ``n_dropped``.

    Examples
    --------
    >>> found = sg.metrics.niche_agreement(["0", "0", "1", "1", "1"], ["tumor", "tumor", "stroma", "stroma", None])
    >>> round(found["ari"], 2), found["n"], found["n_dropped"]  # the same two groups, whatever their names
    (1.0, 4, 1)
    >>> round(sg.metrics.niche_agreement(["0", "1", "0", "1"], ["tumor", "tumor", "stroma", "stroma"])["ari"], 2)
    -0.5
    """
    if isinstance(labels, pd.Series) and isinstance(reference, pd.Series) and not labels.index.equals(reference.index):
        raise SetupError("labels and reference have different indices; align them: reference.reindex(labels.index).")
    a, b = _codes(labels), _codes(reference)
    if len(a) != len(b):
        raise SetupError(f"labels has {len(a)} rows and reference {len(b)}; both must name the same cells.")
    known = (a >= 0) & (b >= 0)
    if known.sum() < 2:
        raise SetupError(f"{known.sum()} of {len(a)} cells have both a label and a reference; at least 2 are needed.")
    a, b = a[known], b[known]
    return {
        "ari": float(adjusted_rand_score(b, a)),
        "nmi": float(normalized_mutual_info_score(b, a)),
        "n": int(known.sum()),
        "n_dropped": int((~known).sum()),
    }


def spatial_contiguity(labels: ArrayLike, adjacency: sparse.sparray | sparse.spmatrix) -> dict[str, float]:
    """Share of neighbouring cells with the same label, and the share that shuffled labels would have.

    Parameters
    ----------
    labels
        ``(n,)`` cluster of each cell; pairs with a cell of no label are dropped.
    adjacency
        ``(n, n)`` neighbours, e.g. ``obsp["spatial_connectivities"]``. A pair counts once, whether stored in one
        direction or both; weights and self loops are ignored.

    Returns
    -------
    ``contiguity``; ``expected``, its exact mean over all permutations of the labels, Σ nₖ(nₖ-1) / n(n-1) on any graph;
    ``n_pairs`` compared and ``n_dropped``. Few large clusters are contiguous by chance: show contiguity over expected.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> chain = csr_array(np.eye(5, k=1))  # five cells in a row
    >>> sg.metrics.spatial_contiguity(["a", "a", "b", "b", "b"], chain)  # three of four pairs agree
    {'contiguity': 0.75, 'expected': 0.4, 'n_pairs': 4, 'n_dropped': 0}
    """
    codes = _codes(labels)
    n = len(codes)
    if not sparse.issparse(adjacency) or adjacency.shape != (n, n):
        shape = getattr(adjacency, "shape", None)
        raise SetupError(f"adjacency ({type(adjacency).__name__}, shape {shape}) must be a sparse ({n}, {n}) matrix.")
    neighbours = sparse.csr_array(adjacency) != 0  # not the stored entries: some may be explicit zeros
    u, v = sparse.triu(neighbours + neighbours.T, k=1).nonzero()
    known = (codes[u] >= 0) & (codes[v] >= 0)
    if not known.any():
        raise SetupError(f"None of the {len(u)} neighbour pairs has two labels. Pass other labels or a denser graph.")
    sizes = np.bincount(codes[codes >= 0])
    total = sizes.sum()
    return {
        "contiguity": float(np.mean(codes[u[known]] == codes[v[known]])),
        "expected": float((sizes * (sizes - 1)).sum() / (total * (total - 1))),
        "n_pairs": int(known.sum()),
        "n_dropped": int((~known).sum()),
    }


def seam_ratio(
    embedding: ArrayLike,
    xy: ArrayLike,
    side: float,
    adjacency: sparse.sparray | sparse.spmatrix,
    control: float = 0.125,
) -> dict[str, float]:
    """How much farther apart neighbours are in embedding when the border of a tile runs between them.

    The control are neighbours with a line of the same grid, moved by a part of a tile, between them: such pairs are as far
    apart in space. Cells embedded tile by tile show a ratio above 1, a seam; without seams it is 1.

    Parameters
    ----------
    embedding
        ``(n, d)``.
    xy
        ``(n, 2)`` positions, in the frame of the tiles and with the first tile's corner at 0.
    side
        Side of a tile, in the units of ``xy``.
    adjacency
        ``(n, n)`` neighbours; a pair counts once.
    control
        Offset of the control grid in tile sides; an eighth runs through the middle of the smallest blocks by default.

    Returns
    -------
    ``ratio`` of mean distances, ``at_borders``, ``at_control``, and the number of pairs of each.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> xy = [[0.9, 0.5], [1.05, 0.5], [1.2, 0.5]]  # a border of tiles at 1, a line of the control grid at 1.125
    >>> found = sg.metrics.seam_ratio([[0.0], [2.0], [3.0]], xy, side=1, adjacency=csr_array(np.eye(3, k=1)))
    >>> found["at_borders"], found["at_control"], found["ratio"]
    (2.0, 1.0, 2.0)
    """
    z, xy = np.asarray(embedding, dtype=np.float64), np.asarray(xy, dtype=np.float64)
    n = len(z)
    if xy.shape != (n, 2) or adjacency.shape != (n, n):
        raise SetupError(
            f"embedding {z.shape}, xy {xy.shape} and adjacency {adjacency.shape} must name the same cells."
        )
    neighbours = sparse.csr_array(adjacency) != 0
    u, v = sparse.triu(neighbours + neighbours.T, k=1).nonzero()
    distance = np.linalg.norm(z[u] - z[v], axis=1)
    known = np.isfinite(distance)
    borders, lines = (
        known & (np.floor(xy[u] / side - offset) != np.floor(xy[v] / side - offset)).any(axis=1)
        for offset in (0.0, control)
    )
    borders, lines = borders & ~lines, lines & ~borders
    if not borders.any() or not lines.any():
        raise SetupError(f"No neighbours stand across a border of tiles of side {side!r}. Check its units.")
    at_borders, at_control = float(distance[borders].mean()), float(distance[lines].mean())
    return {
        "ratio": at_borders / at_control,
        "at_borders": at_borders,
        "at_control": at_control,
        "n_borders": int(borders.sum()),
        "n_control": int(lines.sum()),
    }


def _codes(labels: ArrayLike) -> NDArray[np.intp]:
    """Labels as integers from 0, missing ones as -1."""
    return pd.factorize(pd.Series(labels))[0]
