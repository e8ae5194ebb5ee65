"""What a call of train does before it trains, and what it leaves behind when it does not end."""

import signal
from concurrent.futures import ThreadPoolExecutor

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from sigmma_sc import SIGMMA, ImageEncoder
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError

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


@pytest.mark.parametrize("key", [None, "X_mine"])
def test_values_of_a_later_slide_are_looked_at_before_a_crop_is_encoded(key):
    slides = {name: simulate_tissue(n_cells=300, seed=k, microns_per_pixel=1.0) for k, name in enumerate("ab")}
    for one in slides.values():
        one["table"].obsm["X_mine"] = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    SIGMMA.setup_spatialdata(slides, tile_size=64, features_key=key)
    table = slides["b"]["table"]
    values = table.X.data if key is None else table.obsm[key][7]
    module = Counting()
    model = SIGMMA(slides, ImageEncoder(module, name="counting", input_size=16), n_latent=8, min_cells=2)
    done, good = module.crops, values[0]
    values[0] = -1 if key is None else np.nan
    how = {"max_epochs": 1, "split": {"test": ["b/cell_circles"]}, **QUIET}
    with pytest.raises(SetupError, match="holds -1.0 for cell" if key is None else "rows that are not finite"):
        model.train(**how)
    assert module.crops == done
    values[0] = good
    model.train(**how)
    done = module.crops
    values[0] = -1 if key is None else np.nan
    with pytest.raises(SetupError, match="holds -1.0 for cell" if key is None else "rows that are not finite"):
        model.get_latent_representation()
    assert module.crops == done


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_first_call_that_does_not_end_leaves_a_model_as_new(tiny, encoder, error):
    model, never = (SIGMMA(tiny, encoder(), n_latent=8) for _ in range(2))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(error):
        model.train(max_epochs=3, split="blocks", callbacks=[Stop(1, error)], **QUIET)
    # Lightning would ignore the next interruption.
    assert signal.getsignal(signal.SIGINT) is handler
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
    with pytest.raises(KeyboardInterrupt):
        model.train(callbacks=[Stop(2, KeyboardInterrupt)], **again)
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


def test_models_that_train_and_embed_in_threads_have_the_numbers_of_models_alone(tiny, encoder):
    """Dropout, edges, fresh weights and Monte Carlo draws; meanwhile, the caller draws too."""

    def trained(seed):
        model = SIGMMA(tiny, encoder(), n_latent=8, seed=seed, dropout=0.3, mc_samples=2)
        model.train(max_epochs=2, split="blocks", **QUIET)
        return state_of(model), model.get_latent_representation(n_offsets=1)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    alone = [trained(seed) for seed in (0, 1)]
    # The caller's own state is as it was.
    assert torch.equal(torch.rand(3), expected)
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(trained, (0, 1)))
    for (one, x), (other, y) in zip(alone, together, strict=True):
        assert same(one, other)
        np.testing.assert_array_equal(x, y)
