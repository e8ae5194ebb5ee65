import numpy as np
import pytest
import spatialdata as sd

import sigmma_sc as sg
from sigmma_sc.errors import SetupError, UnlikeWarning


@pytest.fixture(scope="module")
def mapped(encoder):
    """A model, and the image that it was trained on as one that it does not know."""
    tissue = sg.datasets.simulate_tissue(n_cells=1200, seed=0, microns_per_pixel=1.0)
    sg.SIGMMA.setup_spatialdata(tissue, tile_size=32)
    model = sg.SIGMMA(tissue, encoder(input_size=16), n_latent=8)
    model.train(max_epochs=1, split="blocks", batch_size=32, enable_progress_bar=False)
    alone = sd.SpatialData(images={"he_image": tissue["he_image"]})
    sg.SIGMMA.setup_spatialdata(alone, table_key=None, microns_per_pixel=1.0, tile_size=32)
    model.write_embeddings(alone, n_offsets=1)
    return model, alone


def test_unlike_tiles_have_no_label_and_the_others_an_interval(mapped):
    model, alone = mapped
    sg.tl.map_to_image(model, alone, "niche", key_added="all", withhold=None)
    with pytest.warns(UnlikeWarning, match="of the tiles with tissue are unlike the training tissue"):
        sg.tl.map_to_image(model, alone, "niche", interval=0.5, withhold=0.2)
    tiles = alone["sigmma_tiles"]
    withheld = (tiles.obs["sigmma_alike"] <= 0.2).to_numpy()
    assert 0 < withheld.sum() < len(withheld)
    np.testing.assert_array_equal(tiles.obs["niche"].isna(), withheld)
    assert (tiles.obs["niche"][~withheld].astype(str) == tiles.obs["all"][~withheld].astype(str)).all()
    share, lower, upper = (tiles.obsm[f"niche_{kind}"].to_numpy() for kind in ("share", "lower", "upper"))
    for values in (share, lower, upper):
        np.testing.assert_array_equal(np.isnan(values).all(axis=1), withheld)
    assert ((lower <= share) & (share <= upper) & (lower >= 0) & (upper <= 1))[~withheld].all()
    told = tiles.uns["niche"]
    assert told["interval"] == 0.5
    assert told["n_interval_blocks"] >= 1
    assert "unlike the training tissue" in told["unlike"]
    assert tiles.uns["all"]["unlike"] == ""


def test_intervals_hold_the_shares_of_the_validation_tiles(mapped):
    """By block, and so that each block weighs the same: at least the share that was asked for."""
    model, alone = mapped
    sg.tl.map_to_image(model, alone, "niche", interval=0.4, withhold=None)
    tiles = alone["sigmma_tiles"]
    (slide,) = model.resolve()
    role = model.data.roles.of(slide)
    niche = model.sdata["table"].obs["niche"]
    inside = []
    for t in np.flatnonzero(role == "val"):
        mine = slide.tiles.take(np.array([t])).cells
        truth = niche.iloc[slide.rows[mine]].value_counts(normalize=True)[list(tiles.obsm["niche_lower"])].to_numpy()
        inside.append(
            (tiles.obsm["niche_lower"].iloc[t] - 1e-5 <= truth) & (truth <= tiles.obsm["niche_upper"].iloc[t] + 1e-5)
        )
    assert np.mean(inside) >= 0.4


def test_a_later_call_without_intervals_leaves_none(mapped):
    model, alone = mapped
    for interval in (0.3, None):
        sg.tl.map_to_image(model, alone, "niche", key_added="twice", interval=interval, withhold=None)
        assert ("twice_lower" in alone["sigmma_tiles"].obsm) == (interval is not None)


def test_too_few_blocks_and_tiles_that_were_not_judged(mapped):
    model, alone = mapped
    with pytest.raises(SetupError, match=r"interval=0.99 needs 99 spatial blocks of validation tiles"):
        sg.tl.map_to_image(model, alone, "niche", interval=0.99)
    tiles = alone["sigmma_tiles"]
    column = tiles.obs.pop("sigmma_alike")
    with pytest.warns(UnlikeWarning, match="No tile is withheld: the tiles have no column 'sigmma_alike'"):
        sg.tl.map_to_image(model, alone, "niche", key_added="unjudged")
    assert tiles.obs["unjudged"].notna().all()
    tiles.obs["sigmma_alike"] = column
