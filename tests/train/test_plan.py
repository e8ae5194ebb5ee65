"""The Lightning side of training."""

import re
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np

from sigmma_sc import SIGMMA, _progress
from sigmma_sc.config import Config
from sigmma_sc.nn.towers import Towers
from sigmma_sc.nn.trainable import TrainableEncoder
from sigmma_sc.train.plan import AlignmentPlan

QUIET = {"enable_progress_bar": False, "split": "none", "batch_size": 64}


def fitted(sdata, encoder, epochs=1, **options):
    model = SIGMMA(sdata, encoder, n_latent=16, **options)
    model.train(max_epochs=epochs, lr=3e-3, **QUIET)
    return model


def test_progress_of_training_is_shown_unless_turned_off(tiny, encoder, capsys, monkeypatch):
    monkeypatch.setattr(_progress, "DELAY", 0.0)
    model = SIGMMA(tiny, encoder(), n_latent=8)
    model.train(max_epochs=2, split="none", batch_size=64)
    encoding, training = capsys.readouterr().err.splitlines()[-2:]
    assert re.fullmatch(r"Encoding cell_circles: [\d,]+ crops, \d+:\d\d", encoding)
    assert re.fullmatch(r"Training: 2 epochs, \d+:\d\d", training)
    SIGMMA(tiny, encoder(2.0), n_latent=8).train(max_epochs=1, **QUIET)
    model.train(max_epochs=1, split="none", batch_size=64, progress_bar_refresh_rate=0)
    assert capsys.readouterr().err == ""


def test_edge_sampler_cools_down(tiny, encoder):

    class Watch(pl.Callback):
        seen: list = []

        def on_train_batch_end(self, trainer, plan, *_):
            self.seen.append(plan.module.cell_tower.graph.edge_temperature)

    model = SIGMMA(tiny, encoder(), n_latent=16, edge_temperature=(2.0, 0.5))
    model.train(max_epochs=3, callbacks=[Watch()], **QUIET)
    steps = len(Watch.seen)
    np.testing.assert_allclose(Watch.seen, 2.0 * 0.25 ** (np.arange(steps) / (steps - 1)))


def test_a_model_without_a_graph_has_no_sampler_to_cool(tiny, encoder):
    fitted(tiny, encoder(), cells="genes", edge_temperature=(2.0, 0.5))


def test_early_stopping_counts_the_epochs_that_were_run(tiny, encoder, monkeypatch):

    model = SIGMMA(tiny, encoder(), n_latent=8)
    monkeypatch.setattr(Towers, "losses", lambda self, out: {s: (1 + 0 * z).sum() for s, z in out["image"].items()})
    model.train(max_epochs=30, early_stopping=True, early_stopping_patience=3, **{**QUIET, "split": "blocks"})
    assert model.epochs_trained == len(model.history["train_loss_epoch"]) == 4


def test_biases_norms_and_temperatures_are_not_decayed(encoder):
    trainable = TrainableEncoder(encoder(), (2, 1), (16, 16))
    towers = Towers(6, 5, (2, 1), ("meso", "macro"), Config(n_latent=4, learn_temperature=True), trainable)
    plan = AlignmentPlan(towers, lr=1e-3, encoder_lr=1e-4, weight_decay=0.1, edge_temperatures=(1.0, 1.0))
    plan._trainer = SimpleNamespace(estimated_stepping_batches=10)
    names = {id(parameter): name for name, parameter in towers.named_parameters()}
    found = {}
    for group in plan.configure_optimizers()["optimizer"].param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]] = group["initial_lr"], group["weight_decay"]
    assert found["temperature.log"] == (1e-3, 0.0)
    assert found["image_heads.0.linear.weight"] == (1e-3, 0.1)
    assert found["image_heads.0.linear.bias"] == (1e-3, 0.0)
    assert found["encoder.encoder.module.gain"] == (1e-4, 0.0)
    assert found.keys() == {name for name, parameter in towers.named_parameters() if parameter.requires_grad}
    for name, parameter in towers.named_parameters():
        assert found[name][1] == (0.1 if parameter.ndim > 1 else 0.0)
