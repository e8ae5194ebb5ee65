"""Genes that distinguish niches."""

from collections.abc import Mapping

import numpy as np
from anndata import AnnData

from sigmma_sc._checks import require_choice, require_key, require_stored_name
from sigmma_sc.errors import ExistsError, SetupError
from sigmma_sc.tissue.counts import counts_of
from sigmma_sc.tissue.table import require_table

METHODS = ("wilcoxon", "t-test", "t-test_overestim_var", "logreg")
"""Tests of scanpy."""


def rank_niche_genes(
    adata: AnnData,
    scale: str = "meso",
    key: str = "sigmma_niche",
    layer: str | None = None,
    method: str = "wilcoxon",
    key_added: str | None = None,
) -> None:
    """Rank the genes of each niche against all others by :func:`scanpy.tl.rank_genes_groups`, on log-normalised counts.

    Wilcoxon's rank-sum test is corrected for ties: most counts of a gene are zero, and share one rank. Without the correction
    the scores of a gene are too low by a factor that grows with its share of zeros, which reorders the genes.

    Cells are not independent, and the niches were found on the same cells. The p-values only rank genes and are no tests.

    Parameters
    ----------
    adata
        Table with the labels of :func:`sigmma_sc.tl.niches`. Its values are not changed.
    scale
        Scale of the niches.
    key
        Prefix of the columns of niches, ``key_added`` of :func:`sigmma_sc.tl.niches`.
    layer
        Layer of raw counts; ``None`` for ``X``.
    method
        Statistical test, ``method`` of :func:`scanpy.tl.rank_genes_groups`: ``"wilcoxon"``, ``"t-test"``,
        ``"t-test_overestim_var"`` or ``"logreg"``.
    key_added
        Key of the result in ``uns``, by default ``f"rank_niche_genes_{scale}"``. Pass it as ``key=…`` to
        :func:`scanpy.get.rank_genes_groups_df` and to scanpy's plots.

    Raises
    ------
    ExistsError
        ``uns`` holds something else under this name.
    MissingKeyError
        There are no niches of this scale.
    SetupError
        The values are not counts (negative, or not whole), or there are fewer than two niches.

    See Also
    --------
    sigmma_sc.tl.niches : Compute the niches.
    sigmma_sc.pl.signature : Plot genes over niches and on the tissue.

    Examples
    --------
    >>> import scanpy as sc
    >>> sg.tl.rank_niche_genes(adata, scale="meso")
    >>> ranked = sc.get.rank_genes_groups_df(adata, group="0", key="rank_niche_genes_meso")
    >>> len(ranked), ranked.columns[:2].tolist()
    (120, ['names', 'scores'])
    """
    import scanpy as sc
    from scipy.sparse import vstack
    from sklearn.preprocessing import normalize

    require_table(adata)
    require_choice(method, METHODS, "method")
    name = f"rank_niche_genes_{scale}" if key_added is None else key_added
    require_stored_name(name, "scale" if key_added is None else "key_added")
    if not (isinstance(adata.uns.get(name, {}), Mapping) and "params" in adata.uns.get(name, {"params": None})):
        raise ExistsError(f"uns[{name!r}] exists and is no ranking of genes. Pass another key_added=…")
    column = f"{key}_{scale}"
    require_key(column, adata.obs, "column", "Call sg.tl.niches(adata) first.")
    rows = np.flatnonzero(adata.obs[column].notna())
    niches = adata.obs[column].iloc[rows].astype("category").cat.remove_unused_categories()
    # A niche of one cell has no variance.
    sizes = niches.value_counts()
    groups = [str(name) for name in niches.cat.categories if sizes[name] > 1]
    if len(niches.cat.categories) < 2 or not groups:
        raise SetupError(
            f"obs[{column!r}] names {len(niches.cat.categories)} niches, {len(groups)} of two cells or more: nothing to compare. "
            "Raise the resolution of sg.tl.niches."
        )
    counts = vstack([part for _, part in counts_of(adata, rows, layer)], format="csr")
    totals = np.asarray(counts.sum(axis=1)).ravel()
    # As sc.pp.normalize_total, which compiles for this, warns of cells without counts, and fails where numba may not compile.
    scaled = normalize(counts.astype(np.float32), norm="l1", copy=False) * np.float32(np.median(totals[totals > 0]))
    cells = AnnData(scaled, obs=niches.to_frame(), var=adata.var[[]])
    sc.pp.log1p(cells)
    ties = {"tie_correct": True} if method == "wilcoxon" else {}
    sc.tl.rank_genes_groups(cells, column, groups=groups, method=method, key_added=name, **ties)
    adata.uns[name] = cells.uns[name]
