import warnings

import numpy as np
import pytest

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError, SplitWarning
from sigmma_sc.tissue.split import Split

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "batch_size": 32}


@pytest.fixture(scope="module")
def twins(encoder):
    """A trained model, and other tissue of the same name and size."""
    tissue, other = (simulate_tissue(n_cells=1500, seed=seed) for seed in (0, 7))
    for one in (tissue, other):
        SIGMMA.setup_spatialdata(one, tile_size=64)
    model = SIGMMA(tissue, encoder(), n_latent=8)
    model.train(max_epochs=1, split="blocks", **QUIET)
    assert model._slides[0].name == SIGMMA(other, encoder())._slides[0].name
    return model, other


def test_roles_are_a_slides_own_not_its_names(twins):
    model, other = twins
    assert set(model.get_tile_representation(other).obs["split"]) == {"unseen"}
    slide = model.resolve(other)[0]
    tiles = slide.tiles
    assert model.evaluate_retrieval(other)["pool"].unique() == model.data.usable(slide, tiles).sum()
    assert {"train", "test"} < set(model.get_tile_representation().obs["split"])


def test_a_slide_keeps_its_roles_in_an_object_of_another_name(twins):
    """As an index and a cohort name their objects; a test tile that counted as unseen would be one of training next time."""
    model, other = twins
    own = model.get_tile_representation().obs["split"].to_numpy()
    named = model.get_tile_representation({"first": model.sdata, "second": other}).obs
    np.testing.assert_array_equal(named.loc[named["slide"] == "first/cell_circles", "split"], own)
    assert set(named.loc[named["slide"] == "second/cell_circles", "split"]) == {"unseen"}
    (slide,) = model.resolve({"first": model.sdata})
    assert model.data.roles.name_of(slide) == "cell_circles"


def test_a_loaded_model_trains_on_tissue_it_has_not_seen(twins, encoder, tmp_path):
    model, other = twins
    model.save(tmp_path / "model")
    loaded = SIGMMA.load(tmp_path / "model", other, encoder())
    with pytest.raises(SetupError, match="new to the model, so without split='test'"):
        loaded.evaluate_retrieval()
    loaded.train(max_epochs=2, split="end", **QUIET)
    slide, fresh = loaded._slides[0], SIGMMA(other, encoder(), n_latent=8)
    fresh.data.assign_roles(fresh._slides, "end")
    np.testing.assert_array_equal(loaded.data.roles.by_slide[slide.name], fresh.data.roles.by_slide[slide.name])
    assert loaded.epochs_trained == 3
    assert loaded.data.node_features.genes == model.data.node_features.genes
    assert 0 < loaded.evaluate_retrieval()["pool"].iloc[0] < 60
    with pytest.raises(SetupError, match="leak"):
        loaded.train(max_epochs=1, split="blocks", **QUIET)


def small(seed=0, n_cells=2500, **options):
    sdata = simulate_tissue(n_cells=n_cells, seed=seed)
    SIGMMA.setup_spatialdata(sdata, **options)
    return sdata


def test_no_validation_tile_is_told_once_for_all_slides():
    model = SIGMMA(small(n_cells=250, tile_size=64), n_latent=8)
    with pytest.warns(SplitWarning, match=r"split='end' leaves no validation tile"):
        model.data.assign_roles(model._slides, "end")
    assert not (model.data.roles.by_slide["cell_circles"] == "val").any()
    # One slide with validation tiles is enough.
    both = {name: small(n_cells=n, tile_size=64) for name, n in (("small", 250), ("large", 2000))}
    model = SIGMMA(both, n_latent=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SplitWarning)
        model.data.assign_roles(model._slides, "end")
    assert (model.data.roles.by_slide["large/cell_circles"] == "val").any()


class Own(Split):
    """Roles that the test gives, over and over."""

    name = "own"

    def __init__(self, given):
        object.__setattr__(self, "given", given)

    def roles(self, tiles, usable, sample, seed):
        return np.resize(self.given, len(tiles))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["train", "trian"], "Own.roles gives 'trian'. Return one of 'train', 'val', 'test', 'guard', 'unused'"),
        ([True, False], "Own.roles gives True. Return"),
    ],
)
def test_roles_of_ones_own_are_checked(tiny, encoder, given, words):
    model = SIGMMA(tiny, encoder(), n_latent=8)
    with pytest.raises(SetupError, match=words):
        model.data.assign_roles(model._slides, Own(given))


def test_roles_for_other_tiles_are_refused(tiny, encoder, monkeypatch):
    model = SIGMMA(tiny, encoder(), n_latent=8)
    monkeypatch.setattr(Own, "roles", lambda *_: np.array(["train"]))
    with pytest.raises(SetupError, match=r"Own.roles gives \(1,\)"):
        model.data.assign_roles(model._slides, Own(None))


@pytest.mark.parametrize(("given", "leaks"), [(["test", "val", "train"], True), (["train", "val"], False)])
def test_test_tiles_beside_training_tiles_leak(tiny, encoder, given, leaks):
    model = SIGMMA(tiny, encoder(), n_latent=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.data.assign_roles(model._slides, Own(given))
    told = [str(warning.message) for warning in caught if issubclass(warning.category, SplitWarning)]
    assert told == ["split='own' puts test tiles next to training tiles, so that scores come out too high. Give the tiles "
                    "between them the role 'guard', as Split.draw does."] * leaks  # fmt: skip


@pytest.mark.parametrize("split", ["blocks", "end", "none", "random"])
def test_splits_of_the_package_do_not_leak_unsaid(tiny, encoder, split):
    model = SIGMMA(tiny, encoder(), n_latent=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.data.assign_roles(model._slides, split)
    assert not any("next to training tiles" in str(warning.message) for warning in caught)
