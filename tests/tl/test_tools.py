import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import spatialdata as sd
from anndata import AnnData
from scipy.sparse import csr_matrix
from scipy.stats import rankdata

import sigmma_sc as sg
from sigmma_sc.errors import MissingKeyError, SetupError


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
        with pytest.raises(SetupError, match="has 3 columns, the reference 2"):
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
        sc.tl.rank_genes_groups(cells, "sigmma_niche_meso", groups=["0", "1"], method="wilcoxon", tie_correct=True)
        expected = sc.get.rank_genes_groups_df(cells, group="0")
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
        assert list(adata.uns["rank_niche_genes_meso"]["names"].dtype.names) == ["0", "1"]  # one cell is no niche

    @pytest.mark.parametrize("rate", [0.02, 0.2, 2.0])
    def test_scores_are_those_of_ranks_corrected_for_ties(self, adata, rng, rate):
        """The standard normal deviate of the rank sum, by the textbook's variance: ties among N values take Σ(t³ - t) away."""
        counts = rng.poisson(rate * np.linspace(1, 3, 6), (60, 6)).astype(np.float32)
        counts[:, 0] = 1 + rng.integers(0, 2, 60)  # no cell without a count
        adata.X = csr_matrix(counts)
        sg.tl.rank_niche_genes(adata)
        cells = adata[:59]
        # Shares rank as their logarithms. Equal ones, such as 1 of 3 and 2 of 6, tie; divided otherwise, rounding may part them.
        values = counts[:59].astype(float) / counts[:59].sum(axis=1, keepdims=True)
        found = sc.get.rank_genes_groups_df(adata, group="0", key="rank_niche_genes_meso").set_index("names").scores
        inside = (cells.obs["sigmma_niche_meso"] == "0").to_numpy()
        n, n_in = 59, int(inside.sum())
        for k, gene in enumerate(adata.var_names):
            ranks = rankdata(values[:, k])
            ties = np.unique(values[:, k], return_counts=True)[1].astype(float)
            variance = n_in * (n - n_in) / 12 * ((n + 1) - (ties**3 - ties).sum() / (n * (n - 1)))
            expected = 0.0 if variance == 0 else (ranks[inside].sum() - n_in * (n + 1) / 2) / np.sqrt(variance)
            assert found[gene] == pytest.approx(expected, rel=1e-4, abs=1e-6)

    def test_normalised_values_are_refused(self, adata):
        sc.pp.normalize_total(adata)
        with pytest.raises(SetupError, match="normalised already"):
            sg.tl.rank_niche_genes(adata)

    @pytest.mark.parametrize("labels", [["0"] * 60, [None] * 60, [str(k) for k in range(60)]])
    def test_what_cannot_be_compared_is_named(self, adata, labels):
        adata.obs["sigmma_niche_meso"] = pd.Categorical(labels)
        with pytest.raises(SetupError, match="nothing to compare"):
            sg.tl.rank_niche_genes(adata)


class TestMap:
    """Niches given to another slide's tiles from its image alone."""

    @pytest.fixture(scope="class")
    def mapped(self, trained):
        _, model = trained
        other = sg.datasets.simulate_tissue(n_cells=3000, seed=3)
        with_cells = sd.SpatialData(images=dict(other.images), shapes=dict(other.shapes), tables=dict(other.tables))
        sg.SIGMMA.setup_spatialdata(with_cells)
        del other.tables["table"]
        sg.SIGMMA.setup_spatialdata(other, table_key=None, microns_per_pixel=0.5)
        model.write_embeddings(other)
        sg.tl.map_to_image(model, other, "niche", scale="meso", n_neighbors=7, withhold=None)
        return model, other, with_cells

    def test_shares_are_those_of_the_training_tiles_that_are_found(self, mapped):
        model, other, _ = mapped
        (slide,) = model.resolve()
        known = model.get_tile_representation(modality="transcriptome", scale="meso")
        side = slide.side
        niche = model.sdata["table"].obs["niche"]
        made_of = []
        for x, y in known.obs[["x", "y"]].to_numpy():
            inside = ((slide.xy >= (x, y)) & (slide.xy < (x + side, y + side))).all(axis=1)
            made_of.append(niche.iloc[slide.rows[inside]].value_counts(normalize=True).loc[niche.cat.categories])
        keep = (known.obs["split"] == "train").to_numpy()
        keys, made_of = known.X[keep], np.array(made_of)[keep]
        tiles = other.tables["sigmma_tiles"]
        temperature = float(model.module.temperatures["meso"])
        for query, found in zip(
            tiles.obsm["image_meso"], tiles.obsm["niche_share"][niche.cat.categories].to_numpy(), strict=True
        ):
            cosine = keys @ query / np.linalg.norm(keys, axis=1) / np.linalg.norm(query)
            best = np.argsort(-cosine)[:7]
            weight = np.exp(cosine[best] / temperature)
            np.testing.assert_allclose(found, weight @ made_of[best] / weight.sum(), atol=1e-4)

    def test_tiles_take_the_label_of_the_largest_share(self, mapped):
        _, other, _ = mapped
        tiles = other.tables["sigmma_tiles"]
        share = tiles.obsm["niche_share"]
        np.testing.assert_allclose(share.sum(axis=1), 1, rtol=1e-5)
        assert (tiles.obs["niche"].astype(str) == share.idxmax(axis=1)).all()

    def test_unseen_tissue_gets_its_compartments(self, mapped):
        """Against the truth of the slide's own cells, which the mapping never saw. The model knows some 40 tiles alone."""
        model, other, with_cells = mapped
        sg.tl.map_to_image(model, other, "compartment", key_added="area", withhold=None)
        tiles = other.tables["sigmma_tiles"]
        (slide,) = model.resolve(with_cells)
        own = slide.tile_of_cell
        found = tiles.obs["area"].astype(str).to_numpy()[own]
        expected = with_cells["table"].obs["compartment"].astype(str).to_numpy()[slide.rows]
        commonest = pd.Series(expected).value_counts(normalize=True).max()
        assert (found == expected).mean() > commonest + 0.05
        trust = tiles.uns["area"]
        assert trust["accuracy"] > trust["accuracy_of_commonest"]
        assert trust["n_val"] == (model.get_tile_representation().obs["split"] == "val").sum()

    def test_it_is_written_and_read(self, mapped, tmp_path):
        import spatialdata

        _, other, _ = mapped
        other.write(tmp_path / "other.zarr")
        again = spatialdata.read_zarr(tmp_path / "other.zarr").tables["sigmma_tiles"]
        tiles = other.tables["sigmma_tiles"]
        assert (again.obs["niche"].astype(str) == tiles.obs["niche"].astype(str)).all()
        np.testing.assert_allclose(again.obsm["niche_share"], tiles.obsm["niche_share"])

    def test_refusals(self, mapped):
        model, other, _ = mapped
        with pytest.raises(MissingKeyError, match="column='nothing'"):
            sg.tl.map_to_image(model, other, "nothing")
        with pytest.raises(MissingKeyError, match="write_embeddings"):
            sg.tl.map_to_image(model, sg.datasets.simulate_tissue(n_cells=200), "niche")
        with pytest.raises(SetupError, match="key_added, such as 'region_mapped'"):
            sg.tl.map_to_image(model, other, "niche", key_added="region")
        narrow = sg.datasets.simulate_tissue(n_cells=200)
        narrow["sigmma_tiles"] = other["sigmma_tiles"].copy()
        narrow["sigmma_tiles"].obsm["image_micro"] = np.ones((narrow["sigmma_tiles"].n_obs, 3), np.float32)
        with pytest.raises(SetupError, match="has 3 columns, the model embeds in 64"):
            sg.tl.map_to_image(model, narrow, "niche")
        with pytest.raises(SetupError, match="scale='nano'"):
            sg.tl.map_to_image(model, other, "niche", scale="nano")
