"""A slide is centred and scaled by its own tissue."""

import warnings

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

from sigmma_sc import SIGMMA, Config
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError, TissueWarning
from sigmma_sc.features.moments import Moments
from sigmma_sc.nn.image import Standardise
from sigmma_sc.tissue.frame import image_levels
from sigmma_sc.tissue.setup import resolve_slides, stored_setup

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


LOW = 512
"""First row and column in px of a part of the slide, a multiple of a tile of 64 µm."""


def with_image(sdata, pixels, table=None):
    """A slide with another image, without a pyramid, and fewer cells."""
    image = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), transformations=get_transformation(sdata["he_image"], get_all=True)
    )
    part = SpatialData(
        images={"he_image": image},
        shapes={"cell_circles": sdata["cell_circles"]},
        tables={} if table is None else {"table": table},
    )
    if table is None:
        SIGMMA.setup_spatialdata(part, table_key=None, microns_per_pixel=0.5, tile_size=64)
    else:
        SIGMMA.setup_spatialdata(part, tile_size=64)
    return part


@pytest.fixture(scope="module")
def flat(tiny):
    """The slide without its pyramid: every part of it is read from the same pixels."""
    return with_image(tiny, image_levels(tiny, "he_image")[0].to_numpy(), tiny["table"].copy())


def image_part(flat, side):
    """A square of the slide's image as an object of its own."""
    return with_image(flat, flat["he_image"].to_numpy()[:, LOW : LOW + side, LOW : LOW + side])


def cells_part(flat, side):
    """The slide with the cells of a square alone, and a white corner that makes it another one."""
    xy = resolve_slides(flat, stored_setup(flat))[0].xy
    table = flat["table"][((xy >= LOW) & (xy < LOW + side)).all(1)].copy()
    pixels = flat["he_image"].to_numpy().copy()
    pixels[:, :200, :200] = 0
    return with_image(flat, pixels, table)


def rows_of(whole, part, shift):
    """Rows of the tiles of the whole that a part's tiles are."""
    where = {tuple(centre): k for k, centre in enumerate(whole.obsm["spatial"])}
    return [where[tuple(centre + shift)] for centre in part.obsm["spatial"]]


def moments_of(model, slide):
    """What a slide's patches are centred and scaled by."""
    return model.data.tensors(slide, slide.tiles, torch.device("cpu"), cells=False).image.moments


@pytest.mark.parametrize("cells", ["graph", "genes"])
def test_a_slide_of_a_few_tiles_is_not_centred_on_itself(flat, encoder, tmp_path, cells):
    """One tile alone would be its own mean, and so look like any other. What is typical of one slide are its own moments."""
    model = SIGMMA(flat, encoder(), n_latent=8, cells=cells)
    model.train(max_epochs=2, split="none", batch_size=32, **QUIET)
    model.save(tmp_path / "model")
    model = SIGMMA.load(tmp_path / "model", flat, encoder())
    whole, own = model.get_tile_representation(), moments_of(model, model._slides[0])
    for side, n in ((128, 1), (256, 4)):
        part = image_part(flat, side)
        with pytest.warns(TissueWarning, match=f"has {n} tiles? of tissue, too few"):
            found = model.get_tile_representation(part)
        # At the edge of the image crops have no surroundings to be resampled with.
        np.testing.assert_allclose(found.X, whole.X[rows_of(whole, found, LOW)], atol=0.2)
        assert whole.X.std(0).max() > 0.4
    moments = moments_of(model, model.resolve(part)[0])
    np.testing.assert_array_equal(moments.mean, own.mean)
    np.testing.assert_allclose(moments.std, own.std, rtol=1e-6)
    with pytest.warns(TissueWarning, match="has 4 tiles of tissue, too few"):
        found = model.get_tile_representation(cells_part(flat, 256), modality="transcriptome")
    whole = model.get_tile_representation(modality="transcriptome")
    kept = (found.obs["n_cells"] >= 5).to_numpy()
    assert kept.sum() == 4
    # Cells at the edge of the part have lost neighbours beyond it: how far the nearest are is another number then.
    atol = 1e-4 if cells == "genes" else 0.3 * whole.X.std()
    np.testing.assert_allclose(found.X[kept], whole.X[kept], atol=atol)


def test_a_slide_of_enough_tiles_is_centred_on_itself(flat, encoder):
    model = SIGMMA(flat, encoder(), n_latent=8)
    model.train(max_epochs=1, split="none", batch_size=32, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TissueWarning)
        model.get_tile_representation(image_part(flat, 384))


def test_the_average_of_moments(rng):
    one, two = (Moments.of(rng.normal(m, s, (200, 3)).astype(np.float32)) for m, s in ((0, 1), (4, 3)))
    both = Moments.average([one, two])
    np.testing.assert_allclose(both.mean, (one.mean + two.mean) / 2, rtol=1e-6)
    np.testing.assert_allclose(both.std, np.sqrt((one.std**2 + two.std**2) / 2), rtol=1e-6)


def test_the_papers_settings_are_one_argument_away():
    paper = Config.of({}, (4, 2, 1), "paper")
    assert (paper.regime, paper.cell_covariates, paper.standardise) == ("full", False, "training")
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


def test_dense_and_sparse_tissue_differ_by_the_distance_alone(tiny, encoder):
    found = {}
    for covariates in (True, False):
        model = SIGMMA(tiny, encoder(), n_latent=8, cell_covariates=covariates, standardise="training")
        model.data.assign_roles(model._slides, "none")
        model.data.fit_node_features(model._slides)
        slide = model._slides[0]
        found[covariates] = model.data.tensors(slide, slide.tiles, "cpu", images=False).transcriptome.nodes.numpy()
    np.testing.assert_array_equal(found[True][:, :50], found[False])
    totals = np.asarray(tiny["table"].X[slide.rows].sum(axis=1)).ravel()
    np.testing.assert_allclose(found[True][:, 50], np.log1p(totals), rtol=1e-5)
    xy = slide.xy * slide.microns_per_pixel
    k = 11
    nearest = np.sort(np.linalg.norm(xy - xy[k], axis=1))[1:9]
    assert found[True][k, 51] == pytest.approx(np.log1p(nearest.mean()), rel=1e-4)
