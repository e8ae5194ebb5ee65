"""The tile without its cell graph: pooled counts of its cells (paper, section 6.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

N_COMPONENTS = 20
"""Components by which missing genes are expected: there are fewer tiles than cells to fit them on."""


class Pseudobulk(CountFeatures):
    """Pooled counts of a tile, log-normalised.

    A gene that a slide lacks has the value expected from the others. Covariates are log1p of the tile's total counts and
    of its number of cells.
    """

    per_tile = True
    most_components = N_COMPONENTS

    def fit(self, training: Training) -> None:
        """Find genes, depth and components, or raise :class:`SetupError` without any count."""
        self._choose_genes(training)
        groups = []
        for slide, tiles in training:
            observed = find_genes(slide.table, self.genes) >= 0
            groups.append((observed, self._pooled(slide, slide.tiles.take(tiles), observed)))
        self._fit_groups(groups, "tile")

    def _pooled(self, slide: Slide, tiles: Tiles, observed: NDArray[np.bool_]) -> csr_matrix:
        return pooled_counts(slide, tiles, [gene for gene, here in zip(self.genes, observed, strict=True) if here])

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
        """Profiles ``(n, n_observed)`` as ``(n, n_genes)``, missing genes as expected."""
        from scipy.sparse import csr_matrix

        whole = np.empty((logs.shape[0], len(observed)), np.float32)
        whole[:, observed] = logs.toarray()
        expected = self.basis.mean[~observed] + (logs - self.basis.mean[observed]) @ self.basis.fill(observed)
        # Log counts are not negative, and a tile without counts has none of any gene.
        whole[:, ~observed] = np.where(np.asarray(logs.sum(axis=1)) > 0, np.maximum(expected, 0), 0)
        return csr_matrix(whole)
