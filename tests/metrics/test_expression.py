import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import pearsonr

from sigmma_sc.errors import SetupError
from sigmma_sc.metrics.expression import expression_probe, summarise_expression


def tissue(n=90, m=40, d=12, g=30, seed=0, depth=True):
    """Train and test tiles whose expression is partly a function of their embedding."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + m, 4)) @ rng.normal(size=(4, d)) + 0.3 * rng.normal(size=(n + m, d))
    rate = np.exp(1.5 + 0.15 * x @ rng.normal(size=(d, g)))
    if depth:
        rate *= rng.uniform(0.3, 3, size=(n + m, 1))
    counts = rng.poisson(rate)
    return x[:n], counts[:n], x[n:], counts[n:], [f"g{i}" for i in range(g)]


def manual_features(train_x, test_x, components):
    """StandardScaler and PCA from their definitions."""
    mean, sd = train_x.mean(0), train_x.std(0)
    train_x, test_x = (train_x - mean) / sd, (test_x - mean) / sd
    axes = np.linalg.svd(train_x, full_matrices=False)[2][:components]
    return train_x @ axes.T, test_x @ axes.T


def ridge(z, y, alpha):
    """Ridge as plain least squares on rows augmented by the penalty."""
    k = z.shape[1]
    return np.linalg.lstsq(np.vstack([z, np.sqrt(alpha) * np.eye(k)]), np.vstack([y, np.zeros((k, y.shape[1]))]))[0]


def manual_scores(target, predicted):
    pcc = [pearsonr(target[:, j], predicted[:, j])[0] for j in range(target.shape[1])]
    return np.array(pcc), np.array([np.mean((target[:, j] - predicted[:, j]) ** 2) for j in range(target.shape[1])])


def test_hest_head_equals_independent_least_squares():
    train_x, train_counts, test_x, test_counts, genes = tissue()
    table = expression_probe(
        train_x, train_counts, test_x, test_counts, genes, protocol="hest", n_genes=30, n_components=8
    )
    assert table.index.tolist() == genes
    assert table.columns.tolist() == ["slide", "pcc", "mse", "mse_gene_mean", "n_train", "n_test"]

    z, z_test = manual_features(train_x, test_x, 8)
    y, y_test = np.log1p(train_counts), np.log1p(test_counts)
    pcc, mse = manual_scores(y_test, z_test @ ridge(z, y, 100 / (8 * 30)))
    # lsqr stops at a relative residual of 1e-4, scikit-learn's default, which HEST keeps.
    np.testing.assert_allclose(table["pcc"], pcc, atol=2e-3)
    np.testing.assert_allclose(table["mse"], mse, rtol=2e-3)
    np.testing.assert_allclose(table["mse_gene_mean"], ((y.mean(0) - y_test) ** 2).mean(0))
    # Without an intercept the squared mean of the gene stays in the error.
    assert (table["mse"] > 0.8 * y_test.mean(0) ** 2).all()
    assert set(table["n_train"]) == {90}
    assert set(table["n_test"]) == {40}
    assert set(table["slide"]) == {"all"}


def test_hest_penalty_is_100_over_components_times_genes():
    # One standardised feature: ridge has the closed form <x, y> / (n + alpha), so that alpha can be read off the error.
    counts = np.array([[3, 9, 4], [8, 2, 4], [5, 5, 9], [1, 7, 2]])
    x = np.array([[1.0], [-1.0], [0.5], [-0.5]])
    table = expression_probe(x, counts, x, counts, list("abc"), protocol="hest", n_genes=2)
    z = ((x - x.mean()) / x.std()).ravel()
    y = np.log1p(counts)[:, [list("abc").index(g) for g in table.index]]
    assert y.shape == (4, 2)
    for alpha, equal in ((100 / (1 * 2), True), (100 / (1 * 50), False), (100 / (1 * 3), False)):
        predicted = np.outer(z, z @ y / (4 + alpha))
        assert np.allclose(table["mse"], ((y - predicted) ** 2).mean(0), rtol=1e-6) == equal


def test_default_head_equals_independent_leave_one_out():
    train_x, train_counts, test_x, test_counts, genes = tissue(n=40, m=25, g=5)
    table = expression_probe(train_x, train_counts, test_x, test_counts, genes, n_genes=5, n_components=6)

    library = np.median(train_counts.sum(1))
    y, y_test = (np.log1p(c / c.sum(1, keepdims=True) * library) for c in (train_counts, test_counts))
    z, z_test = manual_features(train_x, test_x, 6)
    alphas = 10.0 ** np.arange(-2, 6.5, 0.5)
    for j, gene in enumerate(genes):
        error = []
        for alpha in alphas:
            left_out = []
            for i in range(len(z)):
                rest = np.arange(len(z)) != i
                centre, level = z[rest].mean(0), y[rest, j].mean()
                w = ridge(z[rest] - centre, y[rest, j : j + 1] - level, alpha)
                left_out.append((z[i] - centre) @ w[:, 0] + level - y[i, j])
            error.append(np.mean(np.square(left_out)))
        w = ridge(z, y[:, j : j + 1] - y[:, j].mean(), alphas[np.argmin(error)])
        pcc, mse = manual_scores(y_test[:, j : j + 1], z_test @ w + y[:, j].mean())
        np.testing.assert_allclose(table.loc[gene, ["pcc", "mse"]].astype(float), [pcc[0], mse[0]], rtol=1e-8)


def test_a_planted_linear_signal_is_recovered():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 5))
    log_expression = 6 + 0.3 * x @ rng.normal(size=(5, 20))
    counts = np.expm1(log_expression)
    hest = expression_probe(x[:200], counts[:200], x[200:], counts[200:], range(20), protocol="hest", n_genes=20)
    assert hest["pcc"].min() > 0.9999
    # A gene that fills up each tile to one total makes the library size known, and log1p linear again.
    counts = np.hstack([counts, counts.sum(1).max() + 1 - counts.sum(1, keepdims=True)])
    table = expression_probe(x[:200], counts[:200], x[200:], counts[200:], range(21), n_genes=21)
    assert table["pcc"][:20].min() > 0.9999
    assert (table["mse"][:20] < 1e-4 * table["mse_gene_mean"][:20]).all()


def test_noise_is_not_predicted():
    rng = np.random.default_rng(4)
    counts = rng.poisson(20, size=(400, 10))
    x = rng.normal(size=(400, 60))
    table = expression_probe(x[:250], counts[:250], x[250:], counts[250:], range(10))
    assert abs(np.nanmean(table["pcc"])) < 0.1
    np.testing.assert_allclose(table["mse"], table["mse_gene_mean"], rtol=0.1)  # the penalty grows until it is the mean


def test_gene_mean_baseline_by_hand():
    x = np.arange(4.0)[:, None]
    train, test = np.array([[1, 3], [2, 2], [3, 1], [2, 6]]), np.array([[2, 2], [0, 0], [6, 2]])
    table = expression_probe(x, train, x[:3], test, ["a", "b"])
    # Totals 4, 4, 4, 8: the median is 4. The last training tile counts as (1, 3); test tiles as (2, 2), (0, 0), (3, 1).
    mean = (2 * np.log(2) + np.log(3) + np.log(4)) / 4
    assert table.loc["a", "mse_gene_mean"] == pytest.approx(
        ((mean - np.log(3)) ** 2 + mean**2 + (mean - np.log(4)) ** 2) / 3
    )
    assert table["n_test"].tolist() == [3, 3]


def test_genes_are_chosen_on_the_training_tiles_only():
    train_x, _, test_x, _, genes = tissue(g=200)
    rng = np.random.default_rng(5)
    # Dispersion is judged among genes of similar mean, so every kind of gene comes at every mean.
    rate = rng.permutation(np.geomspace(2, 60, 200))
    train_rate, test_rate = np.tile(rate, (len(train_x), 1)), np.tile(rate, (len(test_x), 1))
    train_rate[:, :8] *= rng.choice([0.05, 1.95], size=(len(train_x), 8))  # vary in training only
    test_rate[:, 8:16] *= rng.choice([0.01, 9], size=(len(test_x), 8))  # vary in test only
    train_counts, test_counts = rng.poisson(train_rate), rng.poisson(test_rate)
    train_counts[:, 16] = 0
    test_counts[:, 16] = rng.poisson(50, len(test_x))  # absent from training
    for protocol in ("default", "hest"):
        table = expression_probe(
            train_x, train_counts, test_x, test_counts, genes, protocol=protocol, n_genes=8, n_components=5
        )
        assert table.index.tolist() == genes[:8]
        everything = expression_probe(
            train_x, train_counts, test_x, test_counts, genes, protocol=protocol, n_genes=500, n_components=5
        )
        assert everything.index.tolist() == [g for g in genes if g != "g16"]


def test_tied_genes_do_not_exceed_the_number_asked_for():
    train_x, train_counts, test_x, test_counts, _ = tissue(g=40)
    train_counts, test_counts = np.tile(train_counts, 3), np.tile(test_counts, 3)
    assert len(expression_probe(train_x, train_counts, test_x, test_counts, range(120), n_genes=7)) == 7


def test_undefined_correlations_are_nan_and_counted():
    train_x, train_counts, test_x, test_counts, genes = tissue(g=6)
    test_counts[:, 2] = 0  # a gene that no test tile shows
    table = expression_probe(train_x, train_counts, test_x, test_counts, genes)
    assert table["pcc"].isna().tolist() == [False, False, True, False, False, False]
    assert np.isfinite(table["mse"]).all()
    summary = summarise_expression(table)
    assert (summary["n_undefined"], summary["n_genes"], summary["n_slides"]) == (1, 6, 1)
    defined = table["pcc"].drop("g2")
    assert summary["pcc"] == pytest.approx(defined.sum() / 5)
    assert summary["pcc_sd"] == pytest.approx(np.sqrt(((defined - defined.mean()) ** 2).sum() / 5))
    assert summary["mse"] == pytest.approx(table["mse"].sum() / 6)
    assert summary["mse_gene_mean"] == pytest.approx(table["mse_gene_mean"].mean())

    # Features that say nothing: the prediction is the gene's mean, and its correlation undefined.
    flat = expression_probe(np.ones_like(train_x), train_counts, test_x, test_counts, genes)
    assert flat["pcc"].isna().all()
    np.testing.assert_allclose(flat["mse"], flat["mse_gene_mean"])
    assert np.isnan(summarise_expression(flat)["pcc"])


def test_slides_are_scored_apart():
    train_x, train_counts, test_x, test_counts, genes = tissue(g=6)
    slides = np.array(["b"] * 25 + ["a"] * 14 + ["one"])
    order = np.random.default_rng(6).permutation(40)
    table = expression_probe(
        train_x, train_counts, test_x[order], test_counts[order], genes, groups=slides[order], n_components=4
    )
    for name in ("a", "b", "one"):
        rows, tiles = table[table["slide"] == name], slides == name
        alone = expression_probe(train_x, train_counts, test_x[tiles], test_counts[tiles], genes, n_components=4)
        assert (rows["n_test"] == tiles.sum()).all()
        pd.testing.assert_frame_equal(rows.drop(columns="slide"), alone.drop(columns="slide"))
    assert table[table["slide"] == "one"]["pcc"].isna().all()
    # The mean is over genes of their mean over slides; the lone tile has an error but no correlation.
    summary = summarise_expression(table)
    assert (summary["n_genes"], summary["n_slides"], summary["n_undefined"]) == (6, 3, 6)
    per_gene = table[table["slide"] != "one"].groupby("gene")["pcc"].mean()
    assert summary["pcc"] == pytest.approx(per_gene.mean())
    assert summary["pcc_sd"] == pytest.approx(np.std(per_gene))


@pytest.mark.parametrize("protocol", ["default", "hest"])
def test_sparse_counts_give_the_same_scores(protocol):
    train_x, train_counts, test_x, test_counts, genes = tissue(g=60)
    train_counts[5] = 0  # a tile without counts stays at zero
    dense = expression_probe(train_x, train_counts, test_x, test_counts, genes, protocol=protocol, n_genes=10)
    # Each count stored in two halves, as a matrix built by summing cells may be.
    once = sparse.csr_array(train_counts / 2)
    pieces = sparse.csr_array(
        (np.repeat(once.data, 2), np.repeat(once.indices, 2), 2 * once.indptr), shape=train_counts.shape
    )
    assert pieces.nnz == 2 * once.nnz
    before = pieces.data.copy()
    table = expression_probe(
        train_x, pieces, test_x, sparse.csc_matrix(test_counts), genes, protocol=protocol, n_genes=10
    )
    pd.testing.assert_frame_equal(table, dense)
    np.testing.assert_array_equal(pieces.data, before)


def test_depth_matters_to_hest_only():
    train_x, train_counts, test_x, test_counts, genes = tissue(depth=False)
    deeper = test_counts * np.random.default_rng(7).integers(1, 5, size=(len(test_counts), 1))
    for protocol, same in (("default", True), ("hest", False)):
        a, b = (
            expression_probe(train_x, train_counts, test_x, c, genes, protocol=protocol) for c in (test_counts, deeper)
        )
        assert np.allclose(a["pcc"], b["pcc"]) == same


def test_one_gene_and_few_tiles_work():
    train_x, train_counts, test_x, test_counts, genes = tissue()
    for protocol in ("default", "hest"):
        one = expression_probe(train_x, train_counts, test_x, test_counts, genes, protocol=protocol, n_genes=1)
        assert len(one) == 1
        assert np.isfinite(one["pcc"]).all()
        few = expression_probe(train_x[:3], train_counts[:3], test_x, test_counts, genes, protocol=protocol, n_genes=4)
        assert set(few["n_train"]) == {3}
        assert np.isfinite(few["mse"]).all()


def test_wrong_input_is_named():
    train_x, train_counts, test_x, test_counts, genes = tissue(g=6)

    def probe(match, **change):
        given = {
            "train_x": train_x,
            "train_counts": train_counts,
            "test_x": test_x,
            "test_counts": test_counts,
            "genes": genes,
        }
        with pytest.raises(SetupError, match=match):
            expression_probe(**{**given, **change})

    probe("protocol='HEST'", protocol="HEST")
    probe("n_genes=0", n_genes=0)
    probe(r"test_counts has shape \(40, 5\) for 6 genes", test_counts=test_counts[:, :5])
    probe("12 features and test_x 11", test_x=test_x[:, :11])
    probe("train_x has shape", train_x=train_x[:, 0])
    probe("2 training", train_x=train_x[:2], train_counts=train_counts[:2])
    probe("and 0 test tiles", test_x=test_x[:0], test_counts=test_counts[:0])
    probe("1 of 90 rows of train_x .*row 7", train_x=np.where(np.arange(90)[:, None] == 7, np.nan, train_x))
    probe("train_counts contains -1.0", train_counts=-np.ones_like(train_counts))
    probe("test_counts contains nan", test_counts=np.full(test_counts.shape, np.nan))
    probe("All 90 training tiles", train_counts=np.zeros_like(train_counts))
    probe("None of the 6 genes varies", train_counts=np.ones_like(train_counts))
    probe("names 'g0' twice", genes=["g0", *genes[:5]])
    probe("39 labels", groups=["s"] * 39)
    probe("1 of them missing", groups=[None] + ["s"] * 39)
