"""Principal components of genes, and the projection of cells that lack some of the genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    Group = tuple[NDArray[np.bool_], csr_matrix]

LARGEST_PANEL = 4000
"""Genes whose covariance matrix is small enough to be decomposed."""

LEAST_NOISE = 0.01
"""Least share of a gene's variance that is taken for noise: none at all would let one gene decide."""

MOST_ROUNDS = 200
TOLERANCE = 1e-5
"""Largest relative change of the components' variances at which an incomplete fit ends."""


@dataclass(frozen=True)
class GeneComponents:
    """Components of log-normalised counts, as of a factor model ``x = mean + components.T @ t + noise``.

    Scores ``t`` have the variances of the components, and each gene its own variance of noise.
    """

    mean: NDArray[np.floating]  # (n_genes,)
    components: NDArray[np.floating]  # orthonormal rows, (n_components, n_genes)
    variance: NDArray[np.float64]  # of the scores, (n_components,)
    noise: NDArray[np.float64]  # of each gene, (n_genes,)

    def fill(self, observed: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Matrix ``(n_observed, n_missing)`` from the centred observed genes to what is expected of the missing ones.

        With loadings W of observed (o) and missing (m) genes, noise Ψ and variances of the scores Λ, the expected scores are
        ``(W_o Ψ_o⁻¹ W_oᵀ + Λ⁻¹)⁻¹ W_o Ψ_o⁻¹ x_o``, and the missing genes are W_mᵀ times these.
        """
        weighted, posterior = self.posterior(observed)
        return weighted.T @ posterior @ self.components[:, ~observed].astype(np.float64)

    def axes(self, observed: NDArray[np.bool_]) -> NDArray[np.floating]:
        """Matrix ``(n_observed, n_components)`` from the centred observed genes to the components of all genes.

        The missing genes have their expected values (:meth:`fill`). With all genes observed the matrix is the transpose
        of the components.
        """
        if observed.all():
            return self.components.T
        axes = self.components[:, observed].T + self.fill(observed) @ self.components[:, ~observed].T
        return np.ascontiguousarray(axes, dtype=self.components.dtype)

    def shared_variance(self, observed: NDArray[np.bool_]) -> float:
        """Share of the variance of the components that the observed genes explain, in [0, 1]."""
        if observed.all():
            return 1.0
        _, posterior = self.posterior(observed)
        square = self.components.astype(np.float64) ** 2
        missing = self.components[:, ~observed].astype(np.float64)
        across = missing @ missing.T
        unknown = np.trace(across @ posterior @ across) + (square[:, ~observed] @ self.noise[~observed]).sum()
        return float(1 - unknown / (self.variance.sum() + (square @ self.noise).sum()))

    def posterior(self, observed: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``W_o Ψ_o⁻¹``, and the posterior covariance of the scores."""
        loadings = self.components[:, observed].astype(np.float64)
        weighted = loadings / self.noise[observed]
        precision: NDArray[np.float64] = weighted @ loadings.T + np.diag(1 / self.variance)
        return weighted, np.linalg.inv(precision).astype(np.float64)


def fit_components(groups: Sequence[Group], n_components: int, seed: int) -> GeneComponents:
    """Components of cells in groups, each with the genes it has ``(n_genes,)`` and its log counts ``(n, n_observed)``.

    Groups that have all genes are fitted as one by scikit-learn's PCA, others by expectation-maximisation.
    """
    if all(observed.all() for observed, _ in groups):
        from scipy.sparse import vstack

        return _fit_complete(vstack([logs for _, logs in groups], format="csr"), n_components, seed)
    return _fit_incomplete(groups, n_components)


def _fit_complete(logs: csr_matrix, n_components: int, seed: int) -> GeneComponents:
    from sklearn.decomposition import PCA

    solver = "covariance_eigh" if logs.shape[1] <= LARGEST_PANEL else "arpack"
    pca = PCA(min(n_components, min(logs.shape) - 1), svd_solver=solver, random_state=seed).fit(logs)
    mean = pca.mean_.ravel()
    n = logs.shape[0]
    square = np.asarray(logs.multiply(logs).sum(axis=0), dtype=np.float64).ravel()
    spread = np.maximum(square / n - mean.astype(np.float64) ** 2, 0) * n / max(1, n - 1)
    return _components(mean, pca.components_, pca.explained_variance_, spread)


def _components(mean: NDArray, components: NDArray, variance: NDArray, spread: NDArray) -> GeneComponents:
    """Components with the noise of genes of variances ``spread``: what the components leave of it."""
    left = spread - variance.astype(np.float64) @ components.astype(np.float64) ** 2
    noise = np.maximum(left, LEAST_NOISE * spread)
    # A gene that never varies has no loading either: any noise does.
    noise[noise <= 0] = 1.0
    positive = np.maximum(variance.astype(np.float64), np.finfo(np.float64).tiny)
    # One memory order, so that a loaded model multiplies in the same order and gives the same bits.
    return GeneComponents(np.ascontiguousarray(mean), np.ascontiguousarray(components), positive, noise)


def _fit_incomplete(groups: Sequence[Group], n_components: int) -> GeneComponents:
    """Expectation-maximisation over the moments of the groups: missing genes have their conditional distribution."""
    patterns = _moments(groups)
    n_genes = len(groups[0][0])
    if n_genes > LARGEST_PANEL:
        raise SetupError(
            f"The panels differ and have {n_genes:,} genes together; components of genes that slides lack are fitted on at most "
            f"{LARGEST_PANEL:,}. Pass genes='shared', or genes=[…] with a list."
        )
    n_cells = sum(n for _, n, _, _ in patterns)
    k = min(n_components, n_cells - 1, n_genes - 1)
    mean, covariance = _pairwise(patterns, n_genes)
    found = _leading(mean, covariance, k)
    for _ in range(MOST_ROUNDS):
        mean, covariance = _expected(patterns, found)
        before = found
        found = _leading(mean, covariance, k)
        if np.abs(found.variance - before.variance).max() <= TOLERANCE * found.variance.max():
            break
    mean = np.ascontiguousarray(found.mean, dtype=np.float32)
    components = np.ascontiguousarray(found.components, dtype=np.float32)
    return GeneComponents(mean, components, found.variance, found.noise)


Pattern = tuple["NDArray[np.int64]", int, "NDArray[np.float64]", "NDArray[np.float64]"]


def _moments(groups: Sequence[Group]) -> list[Pattern]:
    """Genes, number of cells, mean and covariance of the cells of each panel."""
    from scipy.sparse import vstack

    by_panel: dict[bytes, list[csr_matrix]] = {}
    for observed, logs in groups:
        by_panel.setdefault(observed.tobytes(), []).append(logs)
    patterns = []
    for panel, parts in by_panel.items():
        logs = vstack(parts, format="csr").astype(np.float64)
        n = logs.shape[0]
        mean = np.asarray(logs.mean(axis=0)).ravel()
        covariance = (logs.T @ logs).toarray() / n - np.outer(mean, mean)
        patterns.append((np.flatnonzero(np.frombuffer(panel, bool)), n, mean, covariance))
    return patterns


def _pairwise(patterns: list[Pattern], n_genes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of the cells that have a gene, and covariance of those that have both genes, 0 where none has."""
    weight = np.zeros(n_genes)
    mean = np.zeros(n_genes)
    for genes, n, here, _ in patterns:
        weight[genes] += n
        mean[genes] += n * here
    mean /= weight
    pairs = np.zeros((n_genes, n_genes))
    covariance = np.zeros((n_genes, n_genes))
    for genes, n, here, within in patterns:
        block = np.ix_(genes, genes)
        off = here - mean[genes]
        pairs[block] += n
        covariance[block] += n * (within + np.outer(off, off))
    return mean, covariance / np.maximum(pairs, 1)


def _expected(patterns: list[Pattern], now: GeneComponents) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance of all genes as expected from the observed ones and the present components."""
    n_genes = len(now.mean)
    n_cells = sum(n for _, n, _, _ in patterns)
    means = []
    covariance = np.zeros((n_genes, n_genes))
    for genes, n, here, within in patterns:
        observed = np.isin(np.arange(n_genes), genes)
        _, posterior = now.posterior(observed)
        loadings = now.components[:, ~observed]
        # Completed cells are fill @ observed genes; observed genes fill themselves.
        fill = np.zeros((n_genes, len(genes)))
        fill[genes, np.arange(len(genes))] = 1
        fill[~observed] = now.fill(observed).T
        spread = fill @ within @ fill.T
        block = np.ix_(~observed, ~observed)
        spread[block] += loadings.T @ posterior @ loadings + np.diag(now.noise[~observed])
        means.append(now.mean + fill @ (here - now.mean[genes]))
        covariance += n / n_cells * spread
    weights = np.array([n for _, n, _, _ in patterns]) / n_cells
    mean = weights @ np.array(means)
    for weight, own in zip(weights, means, strict=True):
        covariance += weight * np.outer(own - mean, own - mean)
    return mean, covariance


def _leading(mean: NDArray, covariance: NDArray, k: int) -> GeneComponents:
    """The ``k`` leading components of a covariance, largest first, each with its largest loading positive."""
    from scipy.linalg import eigh

    n_genes = len(covariance)
    variance, vectors = eigh(covariance, subset_by_index=[n_genes - k, n_genes - 1])
    components = vectors.T[::-1]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(k), largest])[:, None]
    return _components(mean, components, np.maximum(variance[::-1], 0), np.diag(covariance))
