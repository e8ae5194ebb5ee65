"""Niches: Leiden clusters of the cell embeddings of each scale (paper, section 6.5)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_positive, require_whole
from sigmma_sc.errors import SetupError


def niches(
    adata: AnnData,
    scales: Sequence[str] = _keys.SCALES,
    resolution: float = 0.5,
    n_neighbors: int = 15,
    key_added: str = "sigmma_niche",
    seed: int = 0,
) -> None:
    """Cluster the cells at each scale: a graph of nearest neighbours with UMAP's weights, and Leiden, as in scanpy.

    Up to 40,000 cells neighbours are exact, beyond that at least 99 % of them are the nearest ones.

    Parameters
    ----------
    adata
        Table with the embeddings of :meth:`sigmma_sc.SIGMMA.write_embeddings`.
    scales
        Names of the scales to cluster.
    resolution
        Resolution of Leiden; higher values give more niches.
    n_neighbors
        Number of neighbours of each cell in the graph that Leiden clusters, itself included.
    key_added
        Prefix of the columns written, ``obs[f"{key_added}_{scale}"]``; missing for cells without an embedding.
    seed
        Seed of the neighbour search and of Leiden.

    Raises
    ------
    MissingKeyError
        The table has no embeddings of a scale.
    SetupError
        ``resolution`` is not positive, or fewer than two cells have an embedding.

    See Also
    --------
    sigmma_sc.tl.rank_niche_genes : Genes of each niche.
    sigmma_sc.pl.niches : Map of the niches.
    sigmma_sc.metrics.niche_agreement : Agreement with known niches.

    Examples
    --------
    >>> sg.tl.niches(adata, scales=["meso"])
    >>> adata.obs["sigmma_niche_meso"].cat.categories[:2].tolist()
    ['0', '1']
    """
    import scanpy as sc

    from sigmma_sc.niches.neighbours import neighbour_graph

    require_positive(resolution, "resolution")
    require_whole(n_neighbors, "n_neighbors", 2)
    for scale in scales:
        require_key(_keys.obsm_cells(scale), adata.obsm, "embedding", "Call model.write_embeddings() first.")
        if (n := _covered(adata, scale).sum()) < 2:
            raise SetupError(
                f"Niches need 2 cells with an embedding; obsm[{_keys.obsm_cells(scale)!r}] has {n}. Check whether "
                "the cells are under the image: sg.pp.check_registration(sdata)."
            )
    for scale in scales:
        covered = _covered(adata, scale)
        matrix = np.asarray(adata.obsm[_keys.obsm_cells(scale)])[covered]
        # In a new table, so that the user's neighbour graph is not overwritten.
        cells = AnnData(obs=pd.DataFrame(index=adata.obs_names[covered]))
        neighbour_graph(matrix, n_neighbors, seed).write(cells)
        sc.tl.leiden(cells, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        labels = pd.Series(index=adata.obs_names, dtype=object)
        labels[covered] = cells.obs["leiden"].astype(str).to_numpy()
        order = [str(k) for k in range(cells.obs["leiden"].nunique())]
        adata.obs[f"{key_added}_{scale}"] = pd.Categorical(labels, categories=order)


def _covered(adata: AnnData, scale: str) -> NDArray:
    """Which cells have an embedding."""
    return np.isfinite(np.asarray(adata.obsm[_keys.obsm_cells(scale)])).all(axis=1)
