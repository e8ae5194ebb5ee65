import torch

from sigmma_sc import SIGMMA

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "batch_size": 32}


def state_of(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_epochs_are_counted_whoever_keeps_the_history(tiny, encoder):
    """Otherwise a second call would draw the batches of the first again."""
    kept, model = (SIGMMA(tiny, encoder(), n_latent=8) for _ in range(2))
    for epochs in (2, 3):
        kept.train(max_epochs=epochs, split="none", **QUIET)
        model.train(max_epochs=epochs, split="none", logger=False, **QUIET)
    assert model.epochs_trained == kept.epochs_trained == 5
    assert not model.history
    assert same(state_of(model), state_of(kept))
