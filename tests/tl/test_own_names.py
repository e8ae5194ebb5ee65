"""What tools write has names that a store can hold, and never replaces what is not theirs."""

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData

import sigmma_sc as sg
from sigmma_sc import SIGMMA
from sigmma_sc.errors import ExistsError, SetupError
from sigmma_sc.tl.map_to_image import _columns


@pytest.fixture(scope="module")
def mapped(encoder):
    sdata = sg.datasets.simulate_tissue(n_cells=300, seed=0, microns_per_pixel=1.0)
    SIGMMA.setup_spatialdata(sdata, tile_size=64)
    model = SIGMMA(sdata, encoder(), n_latent=8)
    model.train(max_epochs=1, split="none", enable_progress_bar=False)
    model.write_embeddings(n_offsets=1)
    return sdata, model


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        (["T/NK cell", "B cell"], ["T_NK cell", "B cell"]),
        (["a/b", "a_b"], ["a_b_2", "a_b"]),
        (["a/b", "a_b", "a_b_2"], ["a_b_3", "a_b", "a_b_2"]),
        (["CD4/CD8/NKT", "."], ["CD4_CD8_NKT", "label."]),
        (["..", "B"], ["label..", "B"]),
    ],
)
def test_labels_that_no_store_can_name_are_mapped_and_read_back(mapped, tmp_path, labels, columns):
    sdata, model = mapped
    assert _columns(labels) == columns
    table = sdata["table"]
    table.obs["annotation"] = pd.Categorical([labels[k % len(labels)] for k in range(table.n_obs)], categories=labels)
    sg.tl.map_to_image(model, sdata, "annotation")
    alone = sd.SpatialData(shapes=dict(sdata.shapes), tables={"sigmma_tiles": sdata["sigmma_tiles"]})
    alone.write(tmp_path / "tiles.zarr")
    tiles = sd.read_zarr(tmp_path / "tiles.zarr")["sigmma_tiles"]
    assert list(tiles.obs["annotation"].cat.categories) == labels
    assert list(tiles.obsm["annotation_share"].columns) == columns
    np.testing.assert_allclose(tiles.obsm["annotation_share"].sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["obs", "obsm", "uns"])
def test_a_map_replaces_its_own_and_nothing_else(mapped, kind):
    sdata, model = mapped
    tiles = sdata["sigmma_tiles"]
    sg.tl.map_to_image(model, sdata, "niche", key_added="ours")
    sg.tl.map_to_image(model, sdata, "cell_type", key_added="ours")
    assert tiles.uns["ours"]["labels"] == "cell_type"
    if kind == "obs":
        tiles.obs["theirs_obs"] = 1
    elif kind == "obsm":
        tiles.obsm["theirs_obsm_share"] = np.ones((tiles.n_obs, 1))
    else:
        tiles.uns["theirs_uns"] = "notes"
    with pytest.raises(SetupError, match=f"'theirs_{kind}' already"):
        sg.tl.map_to_image(model, sdata, "niche", key_added=f"theirs_{kind}")


@pytest.fixture
def adata(rng):
    names = [f"c{k}" for k in range(60)]
    table = AnnData(rng.poisson(2.0, (60, 4)).astype(np.float32), obs=pd.DataFrame(index=names))
    table.obsm["X_sigmma_meso"] = np.repeat([[0.0, 0], [5, 5], [9, 0]], 20, axis=0) + rng.normal(0, 0.1, (60, 2))
    table.obs["label"] = pd.Categorical(["a", "b"] * 30)
    return table


@pytest.mark.parametrize("ending", ["", "_confidence"])
def test_niches_replace_their_own_columns_alone(adata, ending):
    run = {"scales": ["meso"], "resolution": 0.5}
    sg.tl.niches(adata, **run)
    sg.tl.niches(adata, **run, seed=1)
    adata.obs[f"mine_meso{ending}"] = "hand-drawn"
    before = adata.obs.copy()
    with pytest.raises(ExistsError, match=rf"obs\['mine_meso{ending}'\] exists"):
        sg.tl.niches(adata, **run, key_added="mine")
    pd.testing.assert_frame_equal(adata.obs, before)


@pytest.mark.parametrize("column", ["region", "region_share"])
def test_transferred_labels_replace_their_own_columns_alone(adata, column):
    sg.tl.transfer_labels(adata, adata, "label", key_added="moved")
    sg.tl.transfer_labels(adata, adata, "label", key_added="moved", n_neighbors=3)
    assert adata.uns["sigmma"]["transferred"]["moved"] == {"labels": "label", "scale": "meso"}
    adata.obs[column] = "hand-drawn"
    with pytest.raises(ExistsError, match=f"'{column}'"):
        sg.tl.transfer_labels(adata, adata, "label", key_added="region")
    assert (adata.obs[column] == "hand-drawn").all()


@pytest.mark.parametrize("held", [3, "notes", {"mine": 1}])
def test_a_ranking_replaces_rankings_alone(adata, held):
    adata.obs["sigmma_niche_meso"] = adata.obs["label"]
    sg.tl.rank_niche_genes(adata, key_added="ranked")
    sg.tl.rank_niche_genes(adata, key_added="ranked", method="t-test")
    assert adata.uns["ranked"]["params"]["method"] == "t-test"
    adata.uns["mine"] = held
    with pytest.raises(ExistsError, match=r"uns\['mine'\] exists and is no ranking"):
        sg.tl.rank_niche_genes(adata, key_added="mine")
    assert adata.uns["mine"] == held


def test_a_record_of_something_else_is_left(adata):
    adata.uns["sigmma"] = "version 1"
    for call in (
        lambda: sg.tl.niches(adata, scales=["meso"], resolution=0.5),
        lambda: sg.tl.transfer_labels(adata, adata, "label"),
    ):
        with pytest.raises(ExistsError, match=r"uns\['sigmma'\] was not written by sigmma-sc"):
            call()
    assert adata.uns["sigmma"] == "version 1"
