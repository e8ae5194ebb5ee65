import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from sigmma_sc.errors import SetupError
from sigmma_sc.reporting.genes import N_TOP, markers, top_genes


def test_top_genes_as_by_hand(rng):
    counts = rng.poisson(0.4, (60, 12)).astype(np.float32)
    counts[3], counts[4, :] = 0, 300
    found = top_genes(ad.AnnData(csr_matrix(counts)), None)
    totals = counts.sum(axis=1)
    logs = np.log1p(counts * np.median(totals[totals > 0]) / np.maximum(totals, 1e-12)[:, None])
    score = logs - logs.mean(axis=0)
    for cell in range(60):
        expressed = np.flatnonzero(counts[cell])
        best = expressed[np.argsort(-score[cell, expressed], kind="stable")][:N_TOP]
        shown = found.gene[cell][found.gene[cell] >= 0]
        np.testing.assert_allclose(score[cell, shown], score[cell, best], atol=1e-5)
        np.testing.assert_array_equal(found.counts[cell, : len(shown)], np.minimum(counts[cell, shown], 255))
    assert (found.gene[3] == -1).all()


def test_markers_are_the_planted_genes(rng):
    niche = np.repeat([0, 1, 2], 40)
    counts = rng.poisson(1.0, (120, 9)).astype(np.float32)
    for k in range(3):
        counts[niche == k, 3 * k : 3 * k + 3] += 8
    obs = pd.DataFrame({"n_meso": pd.Categorical(niche.astype(str)), "n_macro": pd.Categorical(["0"] * 120)})
    adata = ad.AnnData(csr_matrix(counts), obs=obs.set_index(pd.Index([f"c{k}" for k in range(120)])))
    adata.layers["scaled"] = adata.X - 0.5 * (adata.X > 0)
    found = markers(adata, ["meso", "macro"], "n", None)
    for k in range(3):
        assert set(found["meso"][str(k)][:3]) == {str(3 * k + j) for j in range(3)}
    assert found["macro"] == {}
    assert not adata.uns
    with pytest.raises(SetupError, match="raw counts"):
        markers(adata, ["meso"], "n", "scaled")


def test_a_niche_of_one_cell_has_no_markers(rng):
    niche = ["a"] * 20 + ["b"]
    adata = ad.AnnData(csr_matrix(rng.poisson(2.0, (21, 4)).astype(np.float32)))
    adata.obs["n_meso"] = pd.Categorical(niche)
    assert set(markers(adata, ["meso"], "n", None)["meso"]) <= {"a"}
