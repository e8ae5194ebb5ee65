"""Node features by default: principal components of a cell's counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc.errors import SetupError
from sigmma_sc.features.node_features import NodeFeatures
from sigmma_sc.tissue.counts import counts_of, log_normalise, log_totals, positions

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.features.node_features import Training
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles

N_COMPONENTS = 50
MAX_FIT_CELLS = 100_000
"""Cells drawn to fit the PCA: more add time and memory, not directions."""

LARGEST_PANEL = 4000
"""Genes whose covariance matrix is small enough to be decomposed."""


class CountsPCA(NodeFeatures):
    """PCA of log-normalised counts, fitted on training cells and applied to any.

    Covariates are log1p of a cell's total counts and of its distance to its neighbours.
    """

    genes: list[str]
    target_sum: float  # counts per cell after normalisation: the median of the training cells
    # Mean (n_genes,) and axes (n_components, n_genes) of the PCA.
    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    @property
    def n_components(self) -> int:  # type: ignore[override]
        """Number of components."""
        return len(self.components)

    def fit(self, training: Training) -> None:
        """Fit as scanpy's normalize_total and log1p and scikit-learn's PCA do; without any count, raise an error."""
        from sklearn.decomposition import PCA

        self.genes = [str(name) for name in training[0][0].table.var_names]
        counts = self._sample(training)
        totals = np.asarray(counts.sum(axis=1)).ravel()
        if not (totals > 0).any():
            raise SetupError("No training cell has any count. Check the layer of raw counts.")
        self.target_sum = float(np.median(totals[totals > 0]))
        logs = log_normalise(counts, self.target_sum)
        n_components = min(N_COMPONENTS, min(logs.shape) - 1)
        solver = "covariance_eigh" if logs.shape[1] <= LARGEST_PANEL else "arpack"
        pca = PCA(n_components, svd_solver=solver, random_state=self.seed).fit(logs)
        self._set_axes(pca.mean_.ravel(), pca.components_)

    def _sample(self, training: Training) -> csr_matrix:
        """Counts of at most :data:`MAX_FIT_CELLS` cells on training tiles."""
        from scipy.sparse import vstack

        cells = [slide.rows[np.isin(slide.tile_of_cell, tiles)] for slide, tiles in training]
        share = min(1.0, MAX_FIT_CELLS / max(1, sum(map(len, cells))))
        rng = np.random.default_rng(self.seed)
        parts = []
        for (slide, _), rows in zip(training, cells, strict=True):
            drawn = np.sort(rng.choice(rows, int(np.ceil(share * len(rows))), replace=False))
            where = positions(slide.table, self.genes)
            for _, counts in counts_of(slide.table, drawn, slide.setup.layer):
                parts.append(counts[:, where])
        return vstack(parts, format="csr")

    def _set_axes(self, mean: NDArray, components: NDArray) -> None:
        # One memory order, so that a loaded model multiplies in the same order and gives the same bits.
        self.mean = np.ascontiguousarray(mean)
        self.components = np.ascontiguousarray(components)

    def transform(self, slide: Slide, tiles: Tiles) -> NDArray[np.float32]:
        """Components, and the logarithm of the total if covariates are asked for; genes are matched by name."""
        where = positions(slide.table, self.genes)
        n = self.n_components
        out = np.empty((len(slide.rows), n + self.covariates), np.float32)
        offset = self.mean @ self.components.T
        for some, counts in counts_of(slide.table, slide.rows, slide.setup.layer):
            panel = counts[:, where]
            out[some, :n] = log_normalise(panel, self.target_sum) @ self.components.T - offset
            if self.covariates:
                out[some, n] = log_totals(panel)
        return out

    def state(self) -> dict[str, Any]:
        """Genes, target sum and axes."""
        return {"genes": self.genes, "target_sum": self.target_sum, "mean": self.mean, "components": self.components}

    def restore(self, state: dict[str, Any]) -> None:
        """Set genes, target sum and axes."""
        self.genes = state["genes"]
        self.target_sum = state["target_sum"]
        self._set_axes(np.asarray(state["mean"]), np.asarray(state["components"]))
