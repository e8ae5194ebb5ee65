"""Node features by default: principal components of a cell's counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.features.count_features import CountFeatures
from sigmma_sc.tissue.counts import counts_of, log_normalise, log_totals
from sigmma_sc.tissue.panel import find_genes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.features.components import Group
    from sigmma_sc.features.node_features import Training
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles

N_COMPONENTS = 50
MAX_FIT_CELLS = 100_000
"""Cells drawn to fit the PCA: more add time and memory, not directions."""


class CountsPCA(CountFeatures):
    """PCA of log-normalised counts, fitted on training cells and applied to any.

    Cells that lack genes get the scores expected from the genes they have (:meth:`~sigmma_sc.features.components.GeneComponents.axes`). Covariates are
    log1p of a cell's total counts and of its distance to its neighbours.
    """

    most_components = N_COMPONENTS

    @property
    def n_components(self) -> int:  # type: ignore[override]
        """Number of components."""
        return len(self.basis.components)

    def fit(self, training: Training) -> None:
        """Fit as scanpy's normalize_total and log1p and scikit-learn's PCA do; without any count, raise an error."""
        self._choose_genes(training)
        self._fit_groups(self._sample(training), "cell")

    def _sample(self, training: Training) -> list[Group]:
        """Genes of each slide, and their counts in at most :data:`MAX_FIT_CELLS` cells on training tiles of all slides."""
        from scipy.sparse import csr_matrix, vstack

        cells = [slide.rows[np.isin(slide.tile_of_cell, tiles)] for slide, tiles in training]
        share = min(1.0, MAX_FIT_CELLS / max(1, sum(map(len, cells))))
        rng = np.random.default_rng(self.seed)
        groups = []
        for (slide, _), rows in zip(training, cells, strict=True):
            drawn = np.sort(rng.choice(rows, int(np.ceil(share * len(rows))), replace=False))
            where = find_genes(slide.table, self.genes)
            observed = where >= 0
            parts = [csr_matrix((0, int(observed.sum())), dtype=np.float32)]
            for _, counts in counts_of(slide.table, drawn, slide.setup.layer):
                parts.append(counts[:, where[observed]])
            groups.append((observed, vstack(parts, format="csr")))
        return groups

    def transform(self, slide: Slide, tiles: Tiles) -> NDArray[np.float32]:
        """Components, and the logarithm of the total if covariates are asked for; genes are matched by name."""
        where = self._columns(slide)
        observed = where >= 0
        share = self._share(observed)
        axes = self.basis.axes(observed)
        n = self.n_components
        out = np.empty((len(slide.rows), n + self.covariates), np.float32)
        offset = self.basis.mean[observed] @ axes
        for some, counts in counts_of(slide.table, slide.rows, slide.setup.layer):
            panel = counts[:, where[observed]]
            out[some, :n] = log_normalise(panel, self.target_sum * share) @ axes - offset
            if self.covariates:
                out[some, n] = log_totals(panel, share)
        return out
