import pytest

from sigmma_sc import SIGMMA
from sigmma_sc.errors import SetupError

QUIET = {"enable_progress_bar": False, "split": "none", "batch_size": 64}


def fitted(sdata, encoder, epochs=1, **options):
    model = SIGMMA(sdata, encoder, n_latent=16, **options)
    model.train(max_epochs=epochs, lr=3e-3, **QUIET)
    return model


def test_macro_alone(tiny, encoder):
    model = fitted(tiny, encoder(), 2, loss_weights=(0, 0, 1))
    last = {k: v.iloc[-1, 0] for k, v in model.history.items()}
    assert last["train_loss_epoch"] == pytest.approx(last["train_loss_macro"], rel=1e-6)
    assert set(model.evaluate_retrieval(split="train").scale) == {"macro"}
    with pytest.raises(SetupError, match="scale='micro' is not one of 'macro', 'all'"):
        model.get_tile_representation(scale="micro")
    assert model.get_latent_representation(scale="micro").shape[1] == 16  # what the macro graph is built on


def test_micro_alone_has_no_coarser_cells(tiny, encoder):
    model = fitted(tiny, encoder(), loss_weights=(1, 0, 0))
    with pytest.raises(SetupError, match="scale='macro'"):
        model.get_latent_representation(scale="macro")
    assert model.get_latent_representation(scale="all").shape[1] == 16


def test_weights_weigh(tiny, encoder):
    model = fitted(tiny, encoder(), 1, loss_weights=(0.5, 2, 1))
    last = {k: v.iloc[-1, 0] for k, v in model.history.items()}
    total = 0.5 * last["train_loss_micro"] + 2 * last["train_loss_meso"] + last["train_loss_macro"]
    assert last["train_loss_epoch"] == pytest.approx(total, rel=1e-5)
