"""Genes that stand out in each cell, and in each niche."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from sigmma_sc.tissue.counts import counts_of, log_normalise, row_totals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

N_TOP = 5
"""Genes shown of each cell."""

N_MARKERS = 8
"""Genes shown of each niche."""

MOST_COUNTS = 255
"""Counts of a gene in a cell are shown up to this number."""


class TopGenes(NamedTuple):
    """Genes of each cell of a table, the one that stands out most first."""

    gene: NDArray[np.int64]  # (n_cells, N_TOP) columns of the table, -1 where a cell has fewer genes
    counts: NDArray[np.uint8]  # (n_cells, N_TOP), at most MOST_COUNTS


def top_genes(adata: AnnData, layer: str | None) -> TopGenes:
    """Genes of each cell whose log-normalised counts exceed the mean over all cells most, among those it expresses."""
    n, rows = adata.n_obs, np.arange(adata.n_obs)
    totals = np.concatenate([row_totals(part) for _, part in counts_of(adata, rows, layer)])
    positive = totals[totals > 0]
    target = float(np.median(positive)) if len(positive) else 1.0
    mean = np.zeros(adata.n_vars)
    for _, part in counts_of(adata, rows, layer):
        mean += np.asarray(log_normalise(part, target).sum(axis=0)).ravel() / n
    gene = np.full((n, N_TOP), -1, np.int64)
    counts = np.zeros((n, N_TOP), np.uint8)
    for some, part in counts_of(adata, rows, layer):
        gene[some], counts[some] = _top(part, log_normalise(part, target), mean)
    return TopGenes(gene, counts)


def _top(
    counts: csr_matrix, logs: csr_matrix, mean: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    cell = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    score = logs.data - mean[logs.indices]
    # By cell, then by score; of genes with the same score the first one comes first.
    order = np.lexsort((counts.indices, -score, cell))
    order = order[counts.data[order] > 0]
    first = np.searchsorted(cell[order], cell[order])
    rank = np.arange(len(order)) - first
    order, rank = order[rank < N_TOP], rank[rank < N_TOP]
    gene = np.full((counts.shape[0], N_TOP), -1, np.int64)
    n = np.zeros((counts.shape[0], N_TOP), np.uint8)
    gene[cell[order], rank] = counts.indices[order]
    n[cell[order], rank] = np.minimum(counts.data[order], MOST_COUNTS)
    return gene, n


def markers(adata: AnnData, scales: Sequence[str], key: str, layer: str | None) -> dict[str, dict[str, list[str]]]:
    """Genes of each niche by scale, by :func:`sigmma_sc.tl.rank_niche_genes` with a t-test; the table is not changed.

    A niche of a single cell has none, nor has any niche of a scale with one niche.
    """
    from scanpy.get import rank_genes_groups_df

    from sigmma_sc.tl.rank_niche_genes import rank_niche_genes

    found: dict[str, dict[str, list[str]]] = {}
    columns = [f"{key}_{scale}" for scale in scales]
    own = with_columns(adata, columns, layer)
    for scale, column in zip(scales, columns, strict=True):
        found[scale] = {}
        sizes = own.obs[column].value_counts()
        if (sizes > 0).sum() < 2 or sizes.max() < 2:
            continue
        # Wilcoxon's test took more than six minutes on three scales of 116,580 cells × 377 genes.
        rank_niche_genes(own, scale, key, method="t-test", key_added="markers")
        ranked = rank_genes_groups_df(own, group=None, key="markers")
        # A single group is not named in the frame of scanpy.
        groups = ranked.get("group", pd.Series(own.uns["markers"]["names"].dtype.names[0], index=ranked.index))
        higher = ranked[ranked["scores"] > 0]
        for niche, rows in higher.groupby(groups[higher.index].astype(str), sort=False):
            found[scale][str(niche)] = rows["names"].astype(str).head(N_MARKERS).tolist()
    return found


def with_columns(adata: AnnData, columns: list[str], layer: str | None) -> AnnData:
    """The counts of a table with some columns of its ``obs`` alone."""
    from anndata import AnnData

    matrix = adata.X if layer is None else adata.layers[layer]
    return AnnData(matrix, obs=adata.obs[columns].astype("category"), var=adata.var[[]])
