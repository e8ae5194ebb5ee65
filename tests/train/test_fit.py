"""What a call of train does before it trains, and what it leaves behind when it does not end."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from sigmma_sc import SIGMMA, ImageEncoder
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import NotTrainedError, SetupError

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "batch_size": 32}


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.crops = 0

    def forward(self, x):
        self.crops += len(x)
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


class Stop(pl.Callback):
    """End training in the middle of an epoch."""

    def __init__(self, epoch, error=RuntimeError):
        self.epoch, self.error = epoch, error

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == self.epoch:
            raise self.error("stopped")


def state_of(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"precision": "bf16-true"}, SetupError, "precision='bf16-true' is not one of"),
        ({"precision": "float16"}, SetupError, "precision='float16'"),
        ({"weight_decay": -1.0}, SetupError, "weight_decay=-1.0 must be 0 or more"),
        ({"max_epochs": 2.5}, SetupError, "max_epochs=2.5 must be a whole number"),
        ({"max_epoch": 5}, TypeError, "max_epoch"),
        ({"strategy": "dpp"}, ValueError, "dpp"),
        ({"ckpt_path": "last"}, KeyError, "Give checkpoint_dir"),
    ],
)
def test_what_cannot_be_is_refused_before_a_crop_is_encoded(tiny, arguments, error, words):
    module = Counting()
    model = SIGMMA(tiny, ImageEncoder(module, name="counting", input_size=16), n_latent=8)
    done = module.crops
    with pytest.raises(error, match=words):
        model.train(**{"max_epochs": 1, "split": "none", **QUIET, **arguments})
    with pytest.raises(NotTrainedError):
        model.evaluate_retrieval()
    assert module.crops == done


def test_what_cannot_be_scored_is_refused_before_a_crop_is_encoded(tiny):
    module = Counting()
    model = SIGMMA(tiny, ImageEncoder(module, name="counting", input_size=16), n_latent=8)
    model.train(max_epochs=1, split="none", **QUIET)
    other = simulate_tissue(n_cells=300, seed=3)
    del other.tables["table"]
    SIGMMA.setup_spatialdata(other, table_key=None, microns_per_pixel=0.5, tile_size=64)
    done = module.crops
    for call, words in (
        (lambda: model.evaluate_retrieval(split="test"), "No tile belongs to split='test'"),
        (lambda: model.evaluate_expression(protocol="hst"), "protocol='hst'"),
        (lambda: model.evaluate_retrieval(other), "has no cells to score it by"),
    ):
        with pytest.raises(SetupError, match=words):
            call()
    assert module.crops == done


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_first_call_that_does_not_end_leaves_a_model_as_new(tiny, encoder, error):
    model, never = (SIGMMA(tiny, encoder(), n_latent=8) for _ in range(2))
    # Lightning ends the process at an interruption.
    with pytest.raises((RuntimeError, SystemExit)):
        model.train(max_epochs=3, split="blocks", callbacks=[Stop(1, error)], **QUIET)
    assert not model.is_trained
    assert not model.history
    assert model.data.roles.split is None
    for one in (model, never):
        one.train(max_epochs=2, split="end", **QUIET)  # another split is free to choose
    assert same(state_of(model), state_of(never))
    assert len(model.history["train_loss_epoch"]) == 2


def test_the_same_object_takes_up_where_it_was_stopped(tiny, encoder, tmp_path):
    whole = SIGMMA(tiny, encoder(), n_latent=8)
    whole.train(max_epochs=3, split="blocks", checkpoint_dir=tmp_path / "whole", **QUIET)
    model = SIGMMA(tiny, encoder(), n_latent=8)
    again = {"max_epochs": 3, "split": "blocks", "checkpoint_dir": tmp_path / "parts", **QUIET}
    with pytest.raises(RuntimeError, match="stopped"):
        model.train(callbacks=[Stop(2)], **again)
    model.train(**again)
    assert same(state_of(model), state_of(whole))
    np.testing.assert_array_equal(model.history["validation_loss"], whole.history["validation_loss"])
    assert model.epochs_trained == whole.epochs_trained == 3


def test_a_later_call_that_does_not_end_leaves_the_weights_of_the_one_before(tiny, encoder):
    model = SIGMMA(tiny, encoder(), n_latent=8)
    model.train(max_epochs=2, split="blocks", **QUIET)
    before, embedded = state_of(model), model.get_latent_representation()
    with pytest.raises(RuntimeError, match="stopped"):
        model.train(max_epochs=3, callbacks=[Stop(1)], **QUIET)
    assert same(before, state_of(model))
    assert len(model.history["train_loss_epoch"]) == model.epochs_trained == 2
    np.testing.assert_array_equal(model.get_latent_representation(), embedded)


def test_epochs_are_counted_whoever_keeps_the_history(tiny, encoder):
    """Otherwise a second call would draw the batches of the first again."""
    kept, model = (SIGMMA(tiny, encoder(), n_latent=8) for _ in range(2))
    for epochs in (2, 3):
        kept.train(max_epochs=epochs, split="none", **QUIET)
        model.train(max_epochs=epochs, split="none", logger=False, **QUIET)
    assert model.epochs_trained == kept.epochs_trained == 5
    assert not model.history
    assert same(state_of(model), state_of(kept))


def test_early_stopping_counts_the_epochs_that_were_run(tiny, encoder, monkeypatch):
    from sigmma_sc.nn.towers import Towers

    model = SIGMMA(tiny, encoder(), n_latent=8)
    monkeypatch.setattr(Towers, "losses", lambda self, out: {s: (1 + 0 * z).sum() for s, z in out["image"].items()})
    model.train(max_epochs=30, split="blocks", early_stopping=True, early_stopping_patience=3, **QUIET)
    assert model.epochs_trained == len(model.history["train_loss_epoch"]) == 4


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


def test_a_loaded_model_trains_on_tissue_it_has_not_seen(twins, encoder, tmp_path):
    model, other = twins
    model.save(tmp_path / "model")
    loaded = SIGMMA.load(tmp_path / "model", other, encoder())
    with pytest.raises(SetupError, match="No tile belongs to split='test'"):
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
