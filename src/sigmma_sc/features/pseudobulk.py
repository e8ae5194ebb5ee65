"""The tile without its cell graph: pooled counts of its cells (paper, section 6.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc.features.count_features import CountFeatures
from sigmma_sc.tissue.counts import log_normalise, log_totals, pooled_counts
from sigmma_sc.tissue.panel import find_genes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.features.node_features import Training
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles


class Pseudobulk(CountFeatures):
    """Pooled counts of a tile, log-normalised.

    A gene that a slide lacks has its mean over the training tiles. Covariates are log1p of the tile's total counts and of
    its number of cells.
    """

    per_tile = True
    # Mean and variance of each gene over the training tiles, (n_genes,).
    mean: NDArray[np.float32]
    variance: NDArray[np.float32]

    def fit(self, training: Training) -> None:
        """Find genes, depth and moments, or raise :class:`SetupError` without any count."""
        self._choose_genes(training)
        groups = []
        for slide, tiles in training:
            observed = find_genes(slide.table, self.genes) >= 0
            groups.append((observed, self._pooled(slide, slide.tiles.take(tiles), observed)))
        self._fit_depth(groups, "tile")
        n = np.zeros(len(self.genes))
        total = np.zeros(len(self.genes))
        square = np.zeros(len(self.genes))
        for observed, counts in groups:
            logs = log_normalise(counts, self.target_sum * self._share(observed)).astype(np.float64)
            n[observed] += logs.shape[0]
            total[observed] += np.asarray(logs.sum(axis=0)).ravel()
            square[observed] += np.asarray(logs.multiply(logs).sum(axis=0)).ravel()
        mean = total / np.maximum(n, 1)
        self.mean = mean.astype(np.float32)
        self.variance = np.maximum(square / np.maximum(n, 1) - mean**2, 0).astype(np.float32)

    def _pooled(self, slide: Slide, tiles: Tiles, observed: NDArray[np.bool_]) -> csr_matrix:
        return pooled_counts(slide, tiles, [gene for gene, here in zip(self.genes, observed, strict=True) if here])

    def shared_variance(self, observed: NDArray[np.bool_]) -> float:
        """Share of the genes' variance over tiles that is of observed genes."""
        total = self.variance.sum(dtype=np.float64)
        return float(self.variance[observed].sum(dtype=np.float64) / total) if total > 0 else float(observed.any())

    def transform(self, slide: Slide, tiles: Tiles) -> csr_matrix:
        """Pseudobulk profiles ``(n_tiles, n_genes)``, or two more columns with covariates."""
        from scipy.sparse import csr_matrix, hstack

        observed = self._columns(slide) >= 0
        share = self._share(observed)
        counts = self._pooled(slide, tiles, observed)
        logs = log_normalise(counts, self.target_sum * share)
        if not observed.all():
            logs = self._completed(logs, observed)
        if not self.covariates:
            return logs
        beside = np.column_stack([log_totals(counts, share), np.log1p(tiles.n_cells)]).astype(np.float32)
        return hstack([logs, csr_matrix(beside)], format="csr")

    def _completed(self, logs: csr_matrix, observed: NDArray[np.bool_]) -> csr_matrix:
        """Profiles ``(n, n_observed)`` as ``(n, n_genes)``, with the mean of each missing gene."""
        from scipy.sparse import csr_matrix

        n_observed = int(observed.sum())
        ones = np.ones(n_observed, np.float32)
        place = csr_matrix((ones, (np.arange(n_observed), np.flatnonzero(observed))), (n_observed, len(observed)))
        missing = csr_matrix(np.where(observed, 0, self.mean).astype(np.float32))
        return logs @ place + csr_matrix(np.ones((logs.shape[0], 1), np.float32)) @ missing

    def state(self) -> dict[str, Any]:
        """Genes, their shares and moments, and target sum."""
        moments = {"mean": self.mean, "variance": self.variance}
        return {"genes": self.genes, "target_sum": self.target_sum, "shares": self.shares, **moments}

    def restore(self, state: dict[str, Any]) -> None:
        """Set what :meth:`state` gave."""
        self.genes = state["genes"]
        self.target_sum = state["target_sum"]
        self.shares = np.asarray(state["shares"])
        self.mean = np.asarray(state["mean"])
        self.variance = np.asarray(state["variance"])
