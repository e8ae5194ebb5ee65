"""Agreement of clusters of cells with known niches, and their spatial contiguity (paper, Fig. 4)."""

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
        Cluster of each cell, ``(n,)``, e.g. from Leiden on the embeddings of one scale.
    reference
        Known niche of each cell, ``(n,)``. Cells without a value in either (NaN, None, NA) are dropped.

    Returns
    -------
    ``ari`` is the adjusted Rand index: 1 for equal partitions, 0 expected by chance [Hubert and Arabie 1985]. ``nmi`` is
    the mutual information over the mean of the entropies; it is not adjusted and grows with the number of clusters. ``n``
    and ``n_dropped`` count the cells compared and dropped.

    Raises
    ------
    SetupError
        The inputs have different lengths or indices, or fewer than two cells have both labels.

    See Also
    --------
    sigmma_sc.metrics.spatial_contiguity : Whether clusters form regions of tissue.

    Examples
    --------
    >>> found = sg.metrics.niche_agreement(["0", "0", "1", "1", "1"], ["tumor", "tumor", "stroma", "stroma", None])
    >>> round(found["ari"], 2), found["n"], found["n_dropped"]  # the same two groups, whatever their names
    (1.0, 4, 1)
    >>> round(sg.metrics.niche_agreement(["0", "1", "0", "1"], ["tumor", "tumor", "stroma", "stroma"])["ari"], 2)
    -0.5
    """
    require_same_index(labels, reference, "reference")
    a = _codes(labels)
    b = _codes(reference)
    if len(a) != len(b):
        raise SetupError(f"labels has {len(a)} rows and reference {len(b)}; both must name the same cells.")
    known = (a >= 0) & (b >= 0)
    if known.sum() < 2:
        raise SetupError(f"{known.sum()} of {len(a)} cells have both a label and a reference; at least 2 are needed.")
    return {
        "ari": float(adjusted_rand_score(b[known], a[known])),
        "nmi": float(normalized_mutual_info_score(b[known], a[known])),
        "n": int(known.sum()),
        "n_dropped": int((~known).sum()),
    }


def require_same_index(labels: object, other: object, name: str) -> None:
    """Raise :class:`SetupError` for two series whose rows are of other cells: arrays are compared by place."""
    if isinstance(labels, pd.Series) and isinstance(other, pd.Series) and not labels.index.equals(other.index):
        raise SetupError(f"labels and {name} have different indices; align them: {name}.reindex(labels.index).")


def spatial_contiguity(labels: ArrayLike, adjacency: sparse.sparray | sparse.spmatrix) -> dict[str, float]:
    """Share of neighbouring cells with the same label, and the share that shuffled labels would have.

    Parameters
    ----------
    labels
        Cluster of each cell, ``(n,)``; pairs with an unlabelled cell are dropped.
    adjacency
        Neighbours of each cell, sparse ``(n, n)``, e.g. ``obsp["spatial_connectivities"]``. A pair counts once, whether
        stored in one direction or both; weights and self loops are ignored.

    Returns
    -------
    ``contiguity`` is the share of pairs with equal labels. ``expected`` is its exact mean over all permutations of the
    labels, Σ nₖ(nₖ-1) / n(n-1). ``n_pairs`` and ``n_dropped`` count the pairs compared and dropped. Few large clusters
    are contiguous by chance, so compare contiguity with expected.

    Raises
    ------
    SetupError
        The adjacency is not sparse or has another shape, or no pair has two labels.

    See Also
    --------
    sigmma_sc.metrics.niche_agreement : Agreement of clusters with known niches.

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
    """Embedding distance of neighbours across tile borders, relative to neighbours within tiles.

    Control pairs are neighbours across a line of the same grid moved by a part of a tile, so they are as far apart in
    space. A ratio above 1 is a seam between tiles; without seams it is 1.

    Parameters
    ----------
    embedding
        Embedding of each cell, ``(n, d)``.
    xy
        Positions of the cells, ``(n, 2)``, along the axes of the tiles and with the corner of the first tile at 0.
    side
        Side of a tile, in the units of ``xy``.
    adjacency
        Neighbours of each cell, sparse ``(n, n)``; a pair counts once.
    control
        Offset of the control grid in tile sides; the default passes through the middle of the smallest blocks.

    Returns
    -------
    ``at_borders`` and ``at_control`` are the mean distances, ``ratio`` is the first over the second. ``n_borders`` and
    ``n_control`` count the pairs.

    Raises
    ------
    SetupError
        The shapes do not match, or no neighbours are on two sides of a border or of a control line.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> xy = [[0.9, 0.5], [1.05, 0.5], [1.2, 0.5]]  # a border of tiles at 1, a line of the control grid at 1.125
    >>> found = sg.metrics.seam_ratio([[0.0], [2.0], [3.0]], xy, side=1, adjacency=csr_array(np.eye(3, k=1)))
    >>> found["at_borders"], found["at_control"], found["ratio"]
    (2.0, 1.0, 2.0)
    """
    z = np.asarray(embedding, dtype=np.float64)
    places = np.asarray(xy, dtype=np.float64)
    n = len(z)
    if places.shape != (n, 2) or adjacency.shape != (n, n):
        raise SetupError(
            f"embedding {z.shape}, xy {places.shape} and adjacency {adjacency.shape} must name the same cells."
        )
    neighbours = sparse.csr_array(adjacency) != 0
    u, v = sparse.triu(neighbours + neighbours.T, k=1).nonzero()
    distance = np.linalg.norm(z[u] - z[v], axis=1)
    known = np.isfinite(distance)

    def crossed(offset: float) -> NDArray[np.bool_]:
        return known & (np.floor(places[u] / side - offset) != np.floor(places[v] / side - offset)).any(axis=1)

    tile = crossed(0.0)
    line = crossed(control)
    borders = tile & ~line
    lines = line & ~tile
    if not borders.any() or not lines.any():
        raise SetupError(f"No neighbours are across a border of tiles of side {side!r}. Check its units.")
    at_borders = float(distance[borders].mean())
    at_control = float(distance[lines].mean())
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
