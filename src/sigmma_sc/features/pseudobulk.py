"""The tile without its cell graph: pooled counts of its cells (paper, section 6.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc.errors import SetupError
from sigmma_sc.features.node_features import NodeFeatures
from sigmma_sc.tissue.counts import log_normalise, log_totals, pooled_counts

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from sigmma_sc.features.node_features import Training
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles


class Pseudobulk(NodeFeatures):
    """Pooled counts of a tile, log-normalised.

    Covariates are log1p of the tile's total counts and of its number of cells.
    """

    per_tile = True
    genes: list[str]
    target_sum: float  # counts per tile after normalisation: the median of the training tiles

    def fit(self, training: Training) -> None:
        """Find genes and target sum, or raise :class:`SetupError` without any count."""
        self.genes = [str(name) for name in training[0][0].table.var_names]
        totals = []
        for slide, tiles in training:
            counts = pooled_counts(slide, slide.tiles.take(tiles), self.genes)
            totals.append(np.asarray(counts.sum(axis=1)).ravel())
        pooled = np.concatenate(totals)
        if not (pooled > 0).any():
            raise SetupError("No training tile has any count. Check the layer of raw counts.")
        self.target_sum = float(np.median(pooled[pooled > 0]))

    def transform(self, slide: Slide, tiles: Tiles) -> csr_matrix:
        """Pseudobulk profiles ``(n_tiles, n_genes)``, or two more columns with covariates."""
        from scipy.sparse import csr_matrix, hstack

        counts = pooled_counts(slide, tiles, self.genes)
        logs = log_normalise(counts, self.target_sum)
        if not self.covariates:
            return logs
        beside = np.column_stack([log_totals(counts), np.log1p(tiles.n_cells)]).astype(np.float32)
        return hstack([logs, csr_matrix(beside)], format="csr")

    def state(self) -> dict[str, Any]:
        """Genes and target sum."""
        return {"genes": self.genes, "target_sum": self.target_sum}

    def restore(self, state: dict[str, Any]) -> None:
        """Set genes and target sum."""
        self.genes = state["genes"]
        self.target_sum = state["target_sum"]
