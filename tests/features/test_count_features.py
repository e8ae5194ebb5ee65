"""Slides of different panels, in training and after."""

import logging
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData, concat

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import PanelWarning, SetupError
from sigmma_sc.features.count_features import gene_shares

QUIET = {"enable_progress_bar": False, "split": "none", "batch_size": 32}


def with_genes(sdata, genes=None, table=None):
    """The slide with some of its genes, or with another table."""
    table = sdata["table"][:, genes].copy() if table is None else table
    other = sd.SpatialData(
        images={"he_image": sdata["he_image"]}, shapes={"cell_circles": sdata["cell_circles"]}, tables={"table": table}
    )
    SIGMMA.setup_spatialdata(other, tile_size=64)
    return other


def trained(tissue, encoder, **options):
    model = SIGMMA(tissue, encoder(), n_latent=8, **options)
    model.train(max_epochs=1, **QUIET)
    return model


@pytest.fixture(scope="module")
def slide():
    sdata = simulate_tissue(n_cells=500, seed=0)
    SIGMMA.setup_spatialdata(sdata, tile_size=64)
    return sdata


@pytest.fixture(scope="module", params=["graph", "genes"])
def model(request, slide, encoder):
    return trained(slide, encoder, cells=request.param)


@pytest.fixture(scope="module")
def fewer(slide):
    """Every third gene."""
    return with_genes(slide, np.arange(120) % 3 == 0)


def transcriptomes(model, tissue=None):
    return model.get_tile_representation(tissue, modality="transcriptome", scale="all").X


def renamed(sdata):
    """The slide with ids for names, symbols in a column, and genes in another order."""
    table = sdata["table"][:, ::-1].copy()
    table.var["symbol"] = table.var_names.to_numpy()
    table.var_names = [f"ENSG{k:05}" for k in range(table.n_vars)]
    return with_genes(sdata, table=table)


def more(sdata, names):
    """The slide with further genes, of random counts."""
    table = sdata["table"]
    counts = np.random.default_rng(0).poisson(3, (table.n_obs, len(names))).astype(np.float32)
    beside = AnnData(counts, obs=table.obs, var=pd.DataFrame(index=names))
    joined = concat([beside, table], axis=1, merge="first", uns_merge="first")
    joined.uns = table.uns
    return with_genes(sdata, table=joined)


@pytest.mark.parametrize(
    "changed", [renamed, lambda sdata: more(sdata, ["UNSEEN1", "UNSEEN2"]), lambda sdata: more(sdata, ["BLANK_1"])]
)
def test_names_order_and_further_genes_change_nothing(model, slide, changed):
    np.testing.assert_array_equal(transcriptomes(model, changed(slide)), transcriptomes(model))


def values(model, tissue):
    """Node features before they are standardised."""
    (slide,) = model.resolve(tissue)
    found = model.data.node_features.transform(slide, slide.tiles)
    return found.toarray() if model.data.node_features.per_tile else found


def total_column(model):
    """Column of the logarithm of the total counts."""
    features = model.data.node_features
    return len(features.genes) if features.per_tile else features.n_components


def test_a_slide_that_lacks_genes_has_nearly_the_features_of_the_whole_panel(model, slide, fewer):
    zeros = slide["table"].copy()
    zeros.X = zeros.X.multiply(np.arange(120) % 3 == 0).tocsr()
    whole = values(model, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = values(model, fewer)
    told = [str(warning.message) for warning in caught if warning.category is PanelWarning]
    if model.config.cells == "graph":
        words = (
            r"Slide 'cell_circles': 80 of 120 genes are missing, e\.g\. .*; the others explain 7\d % of the variance of"
        )
        assert re.match(words, told[0])
    else:
        assert told == []  # the profiles of tiles are known from a third of the genes
    filled = values(model, with_genes(slide, table=zeros))
    # Rows with few counts are mostly noise, of a gene that is there or not.
    busy = whole[:, total_column(model)] > np.log(50)
    assert busy.sum() > 20
    off = np.linalg.norm((found - whole)[busy])
    assert off < 0.7 * np.linalg.norm((whole - whole[busy].mean(0))[busy])
    assert off < 0.7 * np.linalg.norm((filled - whole)[busy])


def test_depths_of_panels_are_comparable(model, fewer):
    """Totals, which covariates show, do not fall with the number of genes."""
    totals = [values(model, tissue)[:, total_column(model)] for tissue in (None, fewer)]
    busy = totals[0] > np.log(50)
    assert busy.sum() > 20
    assert abs(np.mean(totals[1][busy] - totals[0][busy])) < 0.05


def test_too_few_genes_are_refused_with_what_they_explain(model, slide, tmp_path, encoder):
    few = with_genes(slide, slice(119, 120))
    words = (
        r"does not fit the model: 119 of 120 genes are missing, e\.g\. .* explain \d+ % of .*at least 25 % is needed"
    )
    with pytest.raises(SetupError, match=words):
        transcriptomes(model, few)
    with pytest.raises(SetupError, match="does not fit"):
        model.evaluate_retrieval(few)
    model.save(tmp_path / "model")
    with pytest.raises(SetupError, match=words):
        SIGMMA.load(tmp_path / "model", few, encoder())


@pytest.mark.parametrize("cells", ["graph", "genes"])
def test_slides_of_different_panels_train_one_model(slide, encoder, tmp_path, cells, caplog):
    names = slide["table"].var_names
    tissue = {
        "a": with_genes(slide, slice(0, 90)),
        "b": more(with_genes(slide, slice(40, 120)), ["NegPrb1", "Blank-2"]),
    }
    with caplog.at_level(logging.INFO, "sigmma_sc"):
        model = trained(tissue, encoder, cells=cells)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Slide ")]
    assert told == [
        "Slide 'a/cell_circles': 90 of 120 genes, 0 control probes left out.",
        "Slide 'b/cell_circles': 80 of 120 genes, 2 control probes left out.",
    ]
    assert model.data.node_features.genes == names.tolist()
    model.save(tmp_path / "model")
    loaded = SIGMMA.load(tmp_path / "model", slide, encoder())
    np.testing.assert_array_equal(transcriptomes(loaded), transcriptomes(model, slide))
    # Expression is predicted for the genes of both.
    assert model.predict_expression().var_names.tolist() == names[40:90].tolist()
    shared = SIGMMA(tissue, encoder(), n_latent=8, cells=cells, genes="shared")
    shared.data.assign_roles(shared._slides, "none")
    shared.data.fit_node_features(shared._slides)
    assert shared.data.node_features.genes == names[40:90].tolist()
    listed = SIGMMA(tissue, encoder(), n_latent=8, cells=cells, genes=[*names[100:30:-1], "NOSUCH"])
    listed.data.assign_roles(listed._slides, "none")
    with pytest.raises(SetupError, match=r"1 of 71 genes=… are in no table, e\.g\. NOSUCH"):
        listed.data.fit_node_features(listed._slides)


def test_slides_without_a_gene_in_common_do_not_train_one_model(slide, encoder):
    tissue = {"a": with_genes(slide, slice(0, 100)), "b": with_genes(slide, slice(110, 120))}
    model = SIGMMA(tissue, encoder(), n_latent=8)
    with pytest.raises(SetupError, match="Slide 'b/cell_circles' does not fit CountsPCA: 100 of 110 genes are missing"):
        model.train(1, **QUIET)


def test_genes_and_control_probes_are_counted_with_the_embeddings(model, slide):
    other = more(slide, ["BLANK_1", "NegControlProbe_7", "UNSEEN"])
    model.write_embeddings(other, n_offsets=1)
    told = other["sigmma_tiles"].uns["sigmma"]
    assert (told["n_genes"], told["n_control_probes"], told["shared_variance"]) == (120, 2, 1.0)


def test_shares_of_panels_that_overlap_are_those_of_all_genes(rng):
    shares = rng.dirichlet(np.ones(8))
    first, second, third = (np.isin(np.arange(8), kept) for kept in ([0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [0, 7]))
    sums = [depth * shares[panel] for depth, panel in ((100, first), (7000, second), (30, third))]
    np.testing.assert_allclose(gene_shares([first, second, third], sums), shares, rtol=1e-6)
    np.testing.assert_allclose(gene_shares([np.ones(8, bool)], [5 * shares]), shares)
