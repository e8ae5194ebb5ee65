"""What a user calls, on the pretend device: features, training, resuming, embeddings, and the way back to the CPU."""

from collections import Counter

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from sigmma_sc import SIGMMA, ImageEncoder
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError
from sigmma_sc.features import patches
from sigmma_sc.features.patches import PatchFeatures

QUIET = {"enable_progress_bar": False, "batch_size": 8}


def vit():
    torch.manual_seed(0)
    return ImageEncoder.from_timm(
        "vit_tiny_patch16_224", input_size=32, img_size=32, embed_dim=24, depth=1, num_heads=2
    )


@pytest.fixture(scope="module")
def tissue():
    sdata = simulate_tissue(n_cells=400, seed=0)
    SIGMMA.setup_spatialdata(sdata, tile_size=64, grids=(2, 1))
    return sdata


def train(model, device, **more):
    from lightning.pytorch.strategies import SingleDeviceStrategy

    options = {**QUIET, "split": "random", **more}
    model.train(**options, strategy=SingleDeviceStrategy(device=device.place))


@pytest.mark.parametrize("encoder", [vit, lambda: "stain-stats"])
def test_features_wait_once_a_batch(encoder, tissue, device, monkeypatch):
    monkeypatch.setattr(patches, "GPU_BATCH", 8)
    model = SIGMMA(tissue, encoder())
    slide = model.resolve()[0]
    crops, sizes, _ = model.data.crops(slide.tiles.take(np.arange(6)))
    here = PatchFeatures(model.image_encoder)(slide, crops, torch.device("cpu"), sizes)
    features = PatchFeatures(model.image_encoder)
    model.image_encoder.to(device.place)
    device.waits.clear()
    there = features(slide, crops, device.place, sizes)
    torch.testing.assert_close(there, here, atol=2e-3, rtol=2e-3)
    waits = {what: n for (what, _), n in device.waits.items() if what != "to the device"}
    assert waits == {"to the host, blocking": -(-len(crops) // 8)}


class WatchSteps(pl.Callback):
    """Waits within steps, and between them, from the second step of an epoch on: with the first one, logging begins."""

    def __init__(self, device):
        self.device = device
        self.within, self.between = Counter(), Counter()

    def on_train_batch_start(self, trainer, plan, batch, batch_idx):
        if batch_idx > 1:
            self.between += self.device.waits
        self.device.waits.clear()

    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx):
        if batch_idx > 0:
            self.within += self.device.waits
        self.device.waits.clear()


@pytest.mark.parametrize("regime", ["frozen", "lora"])
def test_training_waits_for_nothing_in_a_step(regime, tissue, device, tmp_path):
    model = SIGMMA(tissue, vit(), n_latent=16, regime=regime, lora_rank=2)
    watch = WatchSteps(device)
    train(model, device, max_epochs=2, checkpoint_dir=tmp_path, callbacks=[watch], batch_size=4)
    assert model.trainer.num_training_batches > 2
    assert watch.within == {}
    assert {what for what, _ in watch.between} == {"to the device"}
    assert model.device == device.place
    assert np.isfinite(model.history["train_loss_epoch"]).all().all()
    again = SIGMMA(tissue, vit(), n_latent=16, regime=regime, lora_rank=2)
    train(again, device, max_epochs=2, checkpoint_dir=tmp_path, batch_size=4)  # returns what there is
    for name, value in model.module.trained_state().items():
        assert torch.equal(again.module.trained_state()[name].cpu(), value.cpu()), name


def test_embeddings_are_those_of_the_cpu_and_come_back(tissue, device):
    model = SIGMMA(tissue, vit(), n_latent=16)
    model.train(**QUIET, max_epochs=1, split="none", accelerator="cpu")

    def everything():
        tiles = model.get_tile_representation(scale="all")
        return {
            "cells": model.get_latent_representation(scale="all", n_offsets=2),
            "tiles": tiles.X,
            "retrieval": model.evaluate_retrieval(split="all").select_dtypes("number").to_numpy(),
            "attention": model.get_attention(tiles.obs_names[[3, 8]])["attention"].values,
        }

    here = everything()
    for place in (device.place, "cpu"):
        model.to_device(place)
        assert model.image_encoder.device.type == model.device.type == torch.device(place).type
        model.data.features._known = type(model.data.features._known)()  # encode again
        there = everything()
        for name, value in here.items():
            np.testing.assert_allclose(there[name], value, rtol=1e-2, atol=2e-3, err_msg=name)


@pytest.mark.parametrize("missing", ["gelu", "bmm", "random_"])
def test_a_device_without_an_operation_is_refused_before_any_compute(missing, tissue, device, monkeypatch):
    def read(*_):
        raise AssertionError("a crop was read")

    monkeypatch.setattr(patches, "read_canvases", read)
    device.failing.add(missing)
    model = SIGMMA(tissue, vit(), n_latent=16)
    with pytest.raises(SetupError, match=f"cannot train this model, .*{missing}.*accelerator='cpu'"):
        train(model, device, max_epochs=1)
    assert not model.is_trained
