import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.sparse import csr_matrix

import sigmma_sc as sg
from sigmma_sc._checks import MissingKeyError, SetupError


def embedded(x, **obs):
    names = [f"c{k}" for k in range(len(x))]
    table = AnnData(np.zeros((len(x), 1), np.float32), obs=pd.DataFrame(obs, index=names))
    table.obsm["X_sigmma_meso"] = np.asarray(x, np.float32)
    return table


class TestTransfer:
    reference = embedded([[0, 0], [0, 1], [9, 9], [9, 8], [5, 5]], region=["a", "a", "b", "b", None])

    def test_the_nearest_cells_vote_by_inverse_distance(self):
        adata = embedded([[0, 0.25], [9, 9], [np.nan, np.nan]])
        sg.tl.transfer_labels(adata, self.reference, "region", n_neighbors=3)
        assert adata.obs["region_transferred"].tolist()[:2] == ["a", "b"]
        assert adata.obs["region_transferred"].isna().tolist() == [False, False, True]
        # Three votes: two of a at 1/4 and 3/4, one of b far away.
        a, b = 4 + 4 / 3, 1 / np.hypot(9, 7.75)
        share = adata.obs["region_transferred_share"].to_numpy()
        np.testing.assert_allclose(share[:2], [a / (a + b), 1], rtol=1e-5)
        assert np.isnan(share[2])

    def test_cells_without_a_label_do_not_vote(self):
        adata = embedded([[5, 5]])
        sg.tl.transfer_labels(adata, self.reference, "region", n_neighbors=50, key_added="here")
        assert adata.obs["here"].cat.categories.tolist() == ["a", "b"]
        assert adata.obs["here"].iloc[0] == "b"  # nearer: (9, 8) and (9, 9)

    def test_refusals(self):
        with pytest.raises(SetupError, match="has 3 columns, and 2 in the reference"):
            sg.tl.transfer_labels(embedded([[1, 2, 3]]), self.reference, "region")
        with pytest.raises(MissingKeyError, match="X_sigmma_macro"):
            sg.tl.transfer_labels(embedded([[1, 2]]), self.reference, "region", scale="macro")
        with pytest.raises(SetupError, match="both an embedding and a label 'none'"):
            sg.tl.transfer_labels(embedded([[1, 2]]), embedded([[1, 2]], none=[None]), "none")


class TestRank:
    @pytest.fixture
    def adata(self, rng):
        counts = rng.poisson(2.0, (60, 6)).astype(np.float32)
        counts[:20, 3] += 30
        adata = AnnData(csr_matrix(counts), obs=pd.DataFrame(index=[f"c{k}" for k in range(60)]))
        adata.var_names = [f"g{k}" for k in range(6)]
        niche = np.repeat(["0", "1"], [20, 38]).astype(object)
        adata.obs["sigmma_niche_meso"] = pd.Categorical([*niche, "2", None])
        return adata

    def test_genes_are_those_of_scanpy_on_the_cells_that_have_a_niche(self, adata):
        before = adata.X.copy()
        sg.tl.rank_niche_genes(adata)
        assert (before != adata.X).nnz == 0
        found = sc.get.rank_genes_groups_df(adata, group="0", key="rank_niche_genes_meso")
        assert found.names[0] == "g3"
        cells = adata[:59].copy()
        sc.pp.normalize_total(cells)
        sc.pp.log1p(cells)
        sc.tl.rank_genes_groups(cells, "sigmma_niche_meso", groups=["0", "1"], method="wilcoxon")
        expected = sc.get.rank_genes_groups_df(cells, group="0")
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
        assert list(adata.uns["rank_niche_genes_meso"]["names"].dtype.names) == ["0", "1"]  # one cell is no niche

    def test_normalised_values_are_refused(self, adata):
        sc.pp.normalize_total(adata)
        with pytest.raises(SetupError, match="normalised already"):
            sg.tl.rank_niche_genes(adata)

    @pytest.mark.parametrize("labels", [["0"] * 60, [None] * 60, [str(k) for k in range(60)]])
    def test_what_cannot_be_compared_is_named(self, adata, labels):
        adata.obs["sigmma_niche_meso"] = pd.Categorical(labels)
        with pytest.raises(SetupError, match="nothing to compare"):
            sg.tl.rank_niche_genes(adata)
