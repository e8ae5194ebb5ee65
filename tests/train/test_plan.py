import lightning.pytorch as pl
import numpy as np

from sigmma_sc import SIGMMA
from sigmma_sc.nn.towers import Towers

QUIET = {"enable_progress_bar": False, "split": "none", "batch_size": 64}


def fitted(sdata, encoder, epochs=1, **options):
    model = SIGMMA(sdata, encoder, n_latent=16, **options)
    model.train(max_epochs=epochs, lr=3e-3, **QUIET)
    return model


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
    model.train(max_epochs=30, split="blocks", early_stopping=True, early_stopping_patience=3, **QUIET)
    assert model.epochs_trained == len(model.history["train_loss_epoch"]) == 4
