from dataclasses import replace

import numpy as np
import pytest
import spatialdata as sd
import torch

from sigmma_sc import SIGMMA
from sigmma_sc.errors import SetupError
from sigmma_sc.metrics import seam_ratio
from sigmma_sc.tissue.graph import spatial_graph


def test_rows_follow_the_table_whatever_its_order(trained):
    sdata, model = trained
    table = sdata["table"]
    order = np.random.default_rng(0).permutation(table.n_obs)
    other = sd.SpatialData(
        images={"he_image": sdata["he_image"]},
        shapes={"cell_circles": sdata["cell_circles"]},
        tables={"table": table[order].copy()},
    )
    a = model.get_latent_representation(scale="all")
    b = model.get_latent_representation(other, scale="all")
    np.testing.assert_allclose(a[order], b, atol=2e-5)


def test_a_far_cell_changes_nothing_in_other_tiles(trained, monkeypatch):
    sdata, model = trained
    # It moves the slide's mean and spread by a hair, which is another matter.
    monkeypatch.setattr(model.data, "config", replace(model.config, standardise="training"))
    table, keep = sdata["table"], np.ones(sdata["table"].n_obs, bool)
    keep[17] = False
    slide = model._slides[0]
    own = slide.tile_of_cell
    other = sd.SpatialData(
        images={"he_image": sdata["he_image"]},
        shapes={"cell_circles": sdata["cell_circles"]},
        tables={"table": table[keep].copy()},
    )
    a = model.get_latent_representation(scale="all")[keep]
    b = model.get_latent_representation(other, scale="all")
    # Nearest neighbours reach across tiles only through cells that the block cuts off anyway.
    far = np.abs(slide.xy - slide.xy[17]).max(1)[keep] > 3 * slide.side
    np.testing.assert_allclose(a[far], b[far], atol=2e-5)
    assert np.abs(a - b)[own[keep] == own[17]].max() > 1e-3


def test_overlapping_inference_is_the_mean_over_moved_grids(trained):
    _, model = trained
    slide = model._slides[0]
    side = slide.side
    far = {"width": slide.width + 4 * side, "height": slide.height + 4 * side}
    expected = 0
    for x in (0.0, 0.5):
        for y in (0.0, 0.5):
            # Cells moved one way lie in the tiles of a grid moved the other way.
            moved = replace(slide, xy=slide.xy + side * (1 - np.array([x, y])), **far)
            with torch.no_grad():
                (embedded,) = model.embedder.slides([moved], images=False)
                h = embedded.cells
            expected = expected + h["macro"] / 4
    found = model.get_latent_representation(scale="macro", stride=64)
    plain = model.get_latent_representation(scale="macro")
    inside = (slide.xy < side * np.floor(np.array([slide.width, slide.height]) / side)).all(1)  # not in shifted tiles
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)
    assert np.abs(found - plain).max() > 0.01  # a hundred times the tolerance above
    np.testing.assert_array_equal(model.get_latent_representation(scale="macro", stride=128), plain)
    with pytest.raises(SetupError, match="must divide"):
        model.get_latent_representation(stride=50)


def test_overlapping_inference_lowers_seams(trained):
    _, model = trained
    slide = model._slides[0]
    near = spatial_graph(slide.xy * slide.microns_per_pixel, 6, None)
    ratio = {
        stride: seam_ratio(model.get_latent_representation(scale="macro", stride=stride), slide.xy, slide.side, near)[
            "ratio"
        ]
        for stride in (None, 32)
    }
    assert ratio[None] > 1.1
    # What remains is the border of micro blocks, which grids a whole block apart share.
    assert ratio[32] - 1 < 0.7 * (ratio[None] - 1)


def test_images_alone_can_be_embedded(trained):
    sdata, model = trained
    alone = sd.SpatialData(images={"he_image": sdata["he_image"]})
    SIGMMA.setup_spatialdata(alone, table_key=None, microns_per_pixel=model._slides[0].microns_per_pixel)
    a = model.get_tile_representation(alone, scale="meso")
    np.testing.assert_allclose(a.X, model.get_tile_representation(scale="meso").X, atol=1e-5)
    assert (a.obs["split"] == "unseen").all()
    with pytest.raises(SetupError, match="table_key=None"):
        model.get_tile_representation(alone, modality="transcriptome")


QUIET = {"enable_progress_bar": False, "split": "none", "batch_size": 64}


def fitted(sdata, encoder, epochs=1, **options):
    model = SIGMMA(sdata, encoder, n_latent=16, **options)
    model.train(max_epochs=epochs, lr=3e-3, **QUIET)
    return model


def test_monte_carlo_evaluation_is_seeded_and_averages(tiny, encoder):
    model = fitted(tiny, encoder(), 2)
    exact = model.get_latent_representation(scale="macro")
    found = {}
    for n in (1, 1, 64):
        model.data.config = replace(model.config, mc_samples=n)
        before = torch.get_rng_state()
        got = model.get_latent_representation(scale="macro")
        assert torch.equal(before, torch.get_rng_state())
        if n in found:
            np.testing.assert_array_equal(found[n], got)
        found[n] = got
    distance = {n: np.abs(z - exact).mean() for n, z in found.items()}
    assert distance[1] > 1e-4
    assert distance[64] < 0.5 * distance[1]
    model.data.config = model.config
    np.testing.assert_array_equal(model.get_latent_representation(scale="macro"), exact)
