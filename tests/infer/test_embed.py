from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import spatialdata as sd
import torch

from sigmma_sc import SIGMMA
from sigmma_sc.errors import SetupError
from sigmma_sc.metrics import seam_ratio
from sigmma_sc.tissue.graph import spatial_graph
from sigmma_sc.tissue.tiling import quasi_random_shifts


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


def test_a_cell_is_the_mean_over_moved_grids(trained):
    _, model = trained
    slide = model._slides[0]
    side = slide.side
    far = {"width": slide.width + 4 * side, "height": slide.height + 4 * side}
    expected = 0
    for shift in quasi_random_shifts(4):
        # Cells moved one way lie in the tiles of a grid moved the other way.
        moved = replace(slide, xy=slide.xy + side * (1 - shift), **far)
        (embedded,) = model.embedder.slides([moved], images=False)
        expected = expected + embedded.cells["macro"] / 4
    found = model.get_latent_representation(scale="macro", n_offsets=4)
    plain = model.get_latent_representation(scale="macro", n_offsets=1)
    inside = (slide.xy < side * np.floor(np.array([slide.width, slide.height]) / side)).all(1)  # not in shifted tiles
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)
    assert np.abs(found - plain).max() > 0.01  # a hundred times the tolerance above
    (one,) = model.embedder.slides([slide], images=False)
    np.testing.assert_array_equal(plain, one.cells["macro"])
    np.testing.assert_array_equal(model.get_latent_representation(scale="macro", n_offsets=4), found)


@pytest.mark.parametrize("n_offsets", [0, 2.5, None])
def test_offsets_are_counted(trained, n_offsets):
    _, model = trained
    with pytest.raises(SetupError, match=f"n_offsets={n_offsets} must be"):
        model.get_latent_representation(n_offsets=n_offsets)
    with pytest.raises(SetupError, match=f"n_offsets={n_offsets} must be"):
        model.write_embeddings(n_offsets=n_offsets)


def test_no_seam_is_left_at_the_borders_of_tiles(trained):
    _, model = trained
    slide = model._slides[0]
    near = spatial_graph(slide.xy * slide.microns_per_pixel, 6, None)
    ratio = {}
    for n_offsets in (1, 16):
        matrix = model.get_latent_representation(scale="macro", n_offsets=n_offsets)
        ratio[n_offsets] = seam_ratio(matrix, slide.xy, slide.side, near)["ratio"]
    assert ratio[1] > 1.1
    assert abs(ratio[16] - 1) < 0.3 * (ratio[1] - 1)


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
    embed = partial(model.get_latent_representation, scale="macro", n_offsets=1)
    exact = embed()
    found = {}
    for n in (1, 1, 64):
        model.data.config = replace(model.config, mc_samples=n)
        before = torch.get_rng_state()
        got = embed()
        assert torch.equal(before, torch.get_rng_state())
        if n in found:
            np.testing.assert_array_equal(found[n], got)
        found[n] = got
    distance = {n: np.abs(z - exact).mean() for n, z in found.items()}
    assert distance[1] > 1e-4
    assert distance[64] < 0.5 * distance[1]
    model.data.config = model.config
    np.testing.assert_array_equal(embed(), exact)
