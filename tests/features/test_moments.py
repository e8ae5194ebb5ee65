"""A slide is centred and scaled by its own tissue."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from sigmma_sc import SIGMMA, Config
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError
from sigmma_sc.features.moments import Moments
from sigmma_sc.nn.image import Standardise

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def test_moments_of_features(rng):
    values = rng.normal(3, 2, (500, 4)).astype(np.float32)
    values[:, 2] = 7
    moments = Moments.of(values)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.std, [*values[:, :2].std(0), 1, values[:, 3].std()], rtol=1e-5)
    sparse = Moments.of(csr_matrix(values))
    np.testing.assert_allclose([sparse.mean, sparse.std], [moments.mean, moments.std], rtol=1e-6)
    moved = moments(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(moved.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(moved.std(0), [1, 1, 0, 1], atol=1e-5)


def test_components_are_scaled_halfway_to_the_widest(rng):
    values = (rng.normal(size=(400, 4)) * [4, 1, 0.1, 9] + 2).astype(np.float32)
    spread = values.std(0)
    expected = (values - values.mean(0)) / np.sqrt(spread * [spread[0], spread[0], spread[0], spread[3]])
    np.testing.assert_allclose(Moments.of(values, 3)(torch.from_numpy(values)), expected, rtol=1e-3, atol=1e-4)
    standardise = Standardise(4)
    standardise.fit(torch.from_numpy(values), 3)
    np.testing.assert_allclose(standardise(torch.from_numpy(values)), expected, rtol=1e-3, atol=1e-4)


def test_moments_of_patches_are_those_of_each_grids_mean(rng, monkeypatch):
    monkeypatch.setattr("sigmma_sc.features.moments.FEW", 7)
    features = torch.from_numpy(rng.normal(1, 3, (40, 5)).astype(np.float16))
    index = rng.integers(0, 40, (30, 5))
    moments = Moments.of_patches(features, index, [4, 1])
    of_tiles = features.float().numpy()[index]
    for columns, pooled in ((slice(0, 4), of_tiles[:, :4].mean(1)), (slice(4, 5), of_tiles[:, 4])):
        for found in moments.mean[columns]:
            np.testing.assert_allclose(found, pooled.mean(0), atol=1e-4)
        for found in moments.std[columns]:
            np.testing.assert_allclose(found, pooled.std(0), rtol=1e-4)
    # What the tower sees, the mean over a grid's patches, is centred and scaled.
    seen = moments(torch.from_numpy(of_tiles))[:, :4].mean(1).numpy()
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(seen.std(0), 1, rtol=1e-4)


@pytest.fixture(scope="module")
def batch():
    """The same tissue twice: as it was trained on, and with another stain and another gain of its cells' features."""
    tissue = {}
    for name, gain, shift in (("one", 1.0, 0.0), ("two", 2.0, 5.0)):
        tissue[name] = simulate_tissue(n_cells=900, seed=0)
        table = tissue[name]["table"]
        profile = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
        table.obsm["X_mine"] = np.log1p(table.X.toarray()) @ profile * gain + shift
    SIGMMA.setup_spatialdata(tissue, tile_size=64, features_key="X_mine")
    return tissue


class Stained(torch.nn.Module):
    """Mean and spread of a crop; ``stain`` dyes what comes later in another way."""

    stain = (1.0, 0.0)

    def forward(self, x):
        gain, shift = self.stain
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1) * gain + shift


@pytest.mark.parametrize("standardise", ["slide", "training"])
def test_a_stain_and_a_batch_say_nothing_where_slides_are_standardised(batch, standardise):
    from sigmma_sc import ImageEncoder

    module = Stained()
    encoder = ImageEncoder(module, name="stained", input_size=16, mean=(0.0,) * 3, std=(1.0,) * 3)
    model = SIGMMA(batch["one"], encoder, n_latent=8, standardise=standardise)
    model.train(max_epochs=2, split="none", batch_size=32, **QUIET)
    found = []
    for tissue, stain in ((batch["one"], (1.0, 0.0)), (batch["two"], (1.5, 0.7))):
        module.stain = stain
        found.append([model.get_tile_representation(tissue, modality=m).X for m in ("image", "transcriptome")])
    for modality, own, other in zip(("image", "transcriptome"), *found, strict=True):
        apart = np.abs(own - other).max() / own.std()
        assert (apart < 0.02) == (standardise == "slide"), (modality, apart)
        assert standardise == "slide" or apart > 0.5


def test_the_average_of_moments(rng):
    one, two = (Moments.of(rng.normal(m, s, (200, 3)).astype(np.float32)) for m, s in ((0, 1), (4, 3)))
    both = Moments.average([one, two])
    np.testing.assert_allclose(both.mean, (one.mean + two.mean) / 2, rtol=1e-6)
    np.testing.assert_allclose(both.std, np.sqrt((one.std**2 + two.std**2) / 2), rtol=1e-6)


def test_the_papers_settings_are_one_argument_away():
    paper = Config.of({}, (4, 2, 1), "paper")
    assert (paper.regime, paper.cell_covariates, paper.standardise) == ("full", False, "training")
    assert not paper.relational_edges
    assert Config.of({"regime": "frozen"}, (4, 2, 1), "paper").regime == "frozen"
    with pytest.raises(SetupError, match="preset='papr' is not one of 'paper'"):
        Config.of({}, (4, 2, 1), "papr")


def test_a_preset_is_stored_with_the_model(tiny, encoder, tmp_path):
    model = SIGMMA(tiny, encoder(), n_latent=8, preset="paper", regime="frozen")
    assert model.config.standardise == "training"
    model.train(max_epochs=1, split="none", batch_size=32, **QUIET)
    assert model.module.n_node_features == 50
    model.save(tmp_path / "model")
    loaded = SIGMMA.load(tmp_path / "model", tiny, encoder())
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded.get_tile_representation().X, model.get_tile_representation().X)
