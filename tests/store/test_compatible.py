import numpy as np
import pytest
import spatialdata as sd

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError


def part_of(tiny, table, **setup):
    other = sd.SpatialData(
        images={"he_image": tiny["he_image"]}, shapes={"cell_circles": tiny["cell_circles"]}, tables={"table": table}
    )
    SIGMMA.setup_spatialdata(other, **{"tile_size": 64, **setup})
    return other


def test_everything_that_differs_is_named(saved, tiny):
    path, model = saved
    fewer = tiny["table"][:, :1].copy()
    other = part_of(tiny, fewer, tile_size=128, grids=(2, 1))
    words = (
        r"tile_size is 128\S* here and 64\S* in the model; grids is \(2, 1\) .*; 119 of 120 genes are missing, e.g. "
    )
    with pytest.raises(SetupError, match=words):
        SIGMMA.load(path, other)
    with pytest.raises(SetupError, match=words):
        model.get_latent_representation(other)


def test_features_of_another_kind_or_width_are_named(saved, tiny, encoder, tmp_path):
    path, model = saved
    table = tiny["table"].copy()
    rng = np.random.default_rng(0)
    for key, width in (("five", 5), ("six", 6)):
        table.obsm[key] = rng.normal(size=(table.n_obs, width)).astype("f4")
    five, six = (part_of(tiny, table.copy(), features_key=key) for key in ("five", "six"))
    table.obsm["five"] = table.obsm["six"]
    wide = part_of(tiny, table, features_key="five")
    with pytest.raises(SetupError, match="features_key is 'five' here and None in the model"):
        SIGMMA.load(path, five)
    mine = SIGMMA(five, encoder(), n_latent=8)
    mine.train(max_epochs=1, split="none", batch_size=32, enable_progress_bar=False)
    mine.save(tmp_path / "mine")
    with pytest.raises(SetupError, match=r"obsm\['five'\] has 6 columns here and 5 in the model"):
        SIGMMA.load(tmp_path / "mine", wide, encoder())
    with pytest.raises(SetupError, match="features_key is 'six' here and 'five' in the model"):
        SIGMMA.load(tmp_path / "mine", six, encoder())
    with pytest.raises(SetupError, match="features_key is None here and 'five' in the model"):
        mine.get_latent_representation(tiny)
    # Images need no cells to fit, and are embedded all the same.
    np.testing.assert_array_equal(mine.get_tile_representation(six).X, mine.get_tile_representation().X)
    assert SIGMMA.load(tmp_path / "mine", five, encoder()).module.cell_tower.standardise.mean.shape == (
        6,
    )  # and how far the nearest cells are


def test_an_object_never_set_up_takes_the_setup_of_the_model(saved):
    sdata = simulate_tissue(n_cells=1200, seed=3)
    assert SIGMMA.load(saved[0], sdata).setup.tile_size == 64


def test_a_panel_that_lacks_a_few_genes_gives_nearly_the_same_embedding(trained):
    sdata, model = trained
    other = sd.SpatialData(
        images={"he_image": sdata["he_image"]},
        shapes={"cell_circles": sdata["cell_circles"]},
        tables={"table": sdata["table"][:, np.arange(120) % 24 > 0].copy()},
    )
    whole = model.get_latent_representation(scale="meso", n_offsets=1)
    found = model.get_latent_representation(other, scale="meso", n_offsets=1)
    assert ((found - whole) ** 2).sum() < 0.1 * ((whole - whole.mean(0)) ** 2).sum()
