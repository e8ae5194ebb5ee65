import numpy as np
import pytest

from sigmma_sc import SIGMMA
from sigmma_sc.errors import MissingKeyError, SetupError
from sigmma_sc.infer.tiles import scored_tiles, tile_by_name, tile_obs


@pytest.fixture(scope="module")
def split(tiny, encoder):
    """Tissue with roles, and its slide."""
    model = SIGMMA(tiny, encoder(), n_latent=8)
    slides = model.resolve()
    model.data.assign_roles(slides, "blocks")
    return model.data, slides


def test_a_tile_has_the_name_of_its_slide_and_number(split):
    data, slides = split
    obs = tile_obs(data, slides[0])
    slide, tile = tile_by_name(slides, obs.index[17])
    assert slide is slides[0]
    np.testing.assert_array_equal(tile.origins[0], obs.iloc[17][["x", "y"]].to_numpy(float))
    assert tile.n_cells[0] == obs.iloc[17]["n_cells"]
    for name in (f"{slides[0].name}_{len(obs)}", f"{slides[0].name}_x", "other_0"):
        with pytest.raises(MissingKeyError, match=f"Tile '{name}' does not exist"):
            tile_by_name(slides, name)


def test_tiles_of_a_split_that_hold_tissue_and_cells(split):
    data, slides = split
    obs = tile_obs(data, slides[0])
    usable = (obs["n_cells"] >= data.config.min_cells) & (obs["tissue"] >= 0.05)
    for name in ("train", "val", "test"):
        (chosen,) = scored_tiles(data, slides, name, other=False)
        np.testing.assert_array_equal(chosen, np.flatnonzero(usable & (obs["split"] == name)))
    (chosen,) = scored_tiles(data, slides, "all", other=False)
    np.testing.assert_array_equal(chosen, np.flatnonzero(usable))
    with pytest.raises(SetupError, match="split='tets' is not one of"):
        scored_tiles(data, slides, "tets", other=False)
