import anndata as ad
import numpy as np
import pytest
import spatialdata as sd
import torch

import sigmma_sc as sg
from sigmma_sc.errors import SetupError
from sigmma_sc.infer import cell_images as module
from sigmma_sc.tissue.pixels import read_crops


@pytest.fixture(scope="module")
def model(encoder):
    tissue = sg.datasets.simulate_tissue(n_cells=600, seed=0, microns_per_pixel=1.0)
    sg.SIGMMA.setup_spatialdata(tissue, tile_size=64)
    model = sg.SIGMMA(tissue, encoder(), n_latent=8)
    model.train(max_epochs=1, split="none", batch_size=16, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def own(model):
    return {scale: model.get_cell_image_representation(scale=scale, step=None) for scale in ("micro", "macro")}


@pytest.mark.parametrize(("scale", "number", "side"), [("micro", 0, 16.0), ("macro", 2, 64.0)])
def test_a_crop_of_its_own_passes_encoder_standardisation_and_head(model, own, scale, number, side):
    (slide,) = model.resolve()
    some = np.array([5, 77, 300])
    crops = np.column_stack([slide.xy[some] - side / 2, np.full(3, side)])
    towers = model.module
    for index, pixels in read_crops(slide, crops, 16):
        features = model.image_encoder.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2)).half().float()
        moments = model.data._patch_moments(slide, model.device)
        first = [0, 16, 20][number]
        scaled = (features - torch.from_numpy(moments.mean[first])) / torch.from_numpy(moments.std[first])
        with torch.no_grad():
            expected = towers.image_heads[number](towers.image_tower.standardise[number](scaled))
        # Crops of features are within one grey level of these.
        np.testing.assert_allclose(own[scale][slide.rows[some[index]]], expected, atol=1e-2)


def test_close_cells_share_a_crop_that_is_encoded_once(model, monkeypatch):
    encoded = []
    once = type(model.data.features).once

    def counted(self, slide, crops, *others):
        encoded.append(crops)
        return once(self, slide, crops, *others)

    monkeypatch.setattr(type(model.data.features), "once", counted)
    found = model.get_cell_image_representation(scale="macro")
    (slide,) = model.resolve()
    nodes, node = np.unique(np.round(slide.xy / 32), axis=0, return_inverse=True)
    assert len(np.concatenate(encoded)) == len(nodes) < 0.5 * len(slide.xy)
    middle = np.concatenate(encoded)[:, :2] + 32
    assert np.abs(slide.xy - nodes[node.ravel()] * 32).max() <= 16  # in the middle half of the crop
    assert set(map(tuple, middle)) == set(map(tuple, nodes * 32))
    for k in range(len(nodes)):
        rows = found[slide.rows[node.ravel() == k]]
        np.testing.assert_array_equal(rows, rows[:1].repeat(len(rows), axis=0))
    monkeypatch.setattr(module, "CROPS", 7)
    encoded.clear()
    np.testing.assert_allclose(model.get_cell_image_representation(scale="macro"), found, atol=1e-5)
    assert max(map(len, encoded)) == 7


def test_cells_without_counts_and_their_labels(model, own):
    """The same cells, known by their places alone: each finds itself among those with expression."""
    table = model.sdata["table"]
    obs = table.obs[["region", "cell_id"]].copy()
    bare = ad.AnnData(obs=obs, obsm={"spatial": np.asarray(table.obsm["spatial"])})
    bare = sd.models.TableModel.parse(bare, region="cell_circles", region_key="region", instance_key="cell_id")
    alone = sd.SpatialData(
        images={"he_image": model.sdata["he_image"]},
        shapes={"cell_circles": model.sdata["cell_circles"]},
        tables={"table": bare},
    )
    sg.SIGMMA.setup_spatialdata(alone, features_key="spatial", tile_size=64)
    found = model.get_cell_image_representation(alone, step=None)
    np.testing.assert_allclose(found, own["micro"], atol=1e-5)
    reference = table.copy()
    reference.obsm["X_image"], bare.obsm["X_image"] = own["micro"], found
    sg.tl.transfer_labels(bare, reference, "niche", n_neighbors=1, use_rep="X_image")
    assert (bare.obs["niche_transferred"].astype(str) == table.obs["niche"].astype(str)).all()
    assert (bare.obs["niche_transferred_share"] == 1).all()
    assert bare.uns["sigmma"]["transferred"]["niche_transferred"] == {"labels": "niche", "use_rep": "X_image"}


def test_an_image_without_cells_is_refused(model):
    alone = sd.SpatialData(images={"he_image": model.sdata["he_image"]})
    sg.SIGMMA.setup_spatialdata(alone, table_key=None, microns_per_pixel=1.0, tile_size=64)
    with pytest.raises(SetupError, match="no cells to embed"):
        model.get_cell_image_representation(alone)
