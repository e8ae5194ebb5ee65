"""Projection of cells that lack genes, against the conditional distribution written out."""

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from scipy.sparse import csr_matrix

from sigmma_sc.errors import SetupError
from sigmma_sc.features import components
from sigmma_sc.features.components import GeneComponents, fit_components

P, K = 30, 4


@pytest.fixture
def basis(rng):
    loadings, _ = np.linalg.qr(rng.normal(size=(P, K)))
    variance, noise = np.array([12.0, 8, 5, 3]), rng.uniform(0.1, 0.5, P)
    return GeneComponents(rng.normal(size=P), loadings.T, variance, noise)


@pytest.fixture
def observed(rng):
    return np.isin(np.arange(P), rng.choice(P, 18, replace=False))


def covariance(basis):
    return basis.components.T @ np.diag(basis.variance) @ basis.components + np.diag(basis.noise)


def test_missing_genes_have_their_conditional_mean(basis, observed, rng):
    x = rng.normal(size=(7, P))  # centred cells
    full = covariance(basis)
    filled = x.copy()
    regression = np.linalg.solve(full[np.ix_(observed, observed)], full[np.ix_(observed, ~observed)])
    filled[:, ~observed] = x[:, observed] @ regression
    np.testing.assert_allclose(x[:, observed] @ basis.axes(observed), filled @ basis.components.T, atol=1e-10)


def test_all_genes_are_projected_on_the_components_as_they_are(basis):
    everything = np.ones(P, bool)
    np.testing.assert_array_equal(basis.axes(everything), basis.components.T)
    assert basis.shared_variance(everything) == 1


def test_shared_variance_is_that_of_the_expected_scores(basis, observed):
    full = covariance(basis)
    axes = basis.axes(observed)
    expected = np.trace(axes.T @ full[np.ix_(observed, observed)] @ axes)
    total = np.trace(basis.components @ full @ basis.components.T)
    assert basis.shared_variance(observed) == pytest.approx(expected / total)
    fewer = observed.copy()
    fewer[np.flatnonzero(observed)[:6]] = False
    assert 0 < basis.shared_variance(fewer) < basis.shared_variance(observed) < 1
    assert basis.shared_variance(np.zeros(P, bool)) == pytest.approx(0, abs=1e-12)


def drawn(basis, n, rng):
    scores = rng.normal(size=(n, K)) * np.sqrt(basis.variance)
    return basis.mean + scores @ basis.components + rng.normal(size=(n, P)) * np.sqrt(basis.noise)


def test_panels_that_overlap_give_the_components_of_all_genes(basis, rng):
    cells = drawn(basis, 6000, rng)
    first, second = np.arange(P) < 22, np.arange(P) >= 10
    groups = [(first, csr_matrix(cells[:3000][:, first])), (second, csr_matrix(cells[3000:][:, second]))]
    found = fit_components(groups, K, 0)
    complete = fit_components([(np.ones(P, bool), csr_matrix(cells))], K, 0)
    for fit in (found, complete):
        assert np.rad2deg(subspace_angles(fit.components.T, basis.components.T)).max() < 8
        np.testing.assert_allclose(fit.variance, basis.variance, rtol=0.15)
        np.testing.assert_allclose(fit.mean, basis.mean, atol=0.15)
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(K), atol=1e-5)
    # Pairs of genes that no cell shows together are not taken for independent.
    apart = found.components.T[:10] @ np.diag(found.variance) @ found.components[:, 22:]
    true = covariance(basis)[:10, 22:]
    assert np.corrcoef(apart.ravel(), true.ravel())[0, 1] > 0.9


def test_cells_of_one_panel_are_fitted_as_one_whatever_their_slides(basis, rng):
    cells = csr_matrix(drawn(basis, 300, rng).astype(np.float32))
    everything = np.ones(P, bool)
    apart = fit_components([(everything, cells[:100]), (everything, cells[100:])], K, 0)
    together = fit_components([(everything, cells)], K, 0)
    np.testing.assert_array_equal(apart.components, together.components)


def test_a_gene_that_never_varies_is_ignored(rng):
    cells = rng.normal(size=(50, 6))
    cells[:, 2] = 0
    found = fit_components([(np.ones(6, bool), csr_matrix(cells))], 3, 0)
    without = np.arange(6) != 2
    np.testing.assert_allclose(found.axes(without), found.components.T[without], atol=1e-12)
    assert found.shared_variance(without) == pytest.approx(1)


def test_panels_too_large_to_be_completed_are_refused(monkeypatch, rng):
    monkeypatch.setattr(components, "LARGEST_PANEL", 5)
    groups = [(np.arange(6) < 4, csr_matrix(rng.normal(size=(9, 4)))), (np.arange(6) > 1, csr_matrix(np.ones((9, 4))))]
    with pytest.raises(SetupError, match="have 6 genes together; .* at most 5. Pass genes='shared'"):
        fit_components(groups, 3, 0)
