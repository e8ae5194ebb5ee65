"""Training of the image encoder itself, on a small slide with a small convolutional network."""

import numpy as np
import pytest
import torch
from torch import nn

from sigmma_sc import SIGMMA, ImageEncoder
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import EncoderError

QUIET = {"enable_progress_bar": False, "batch_size": 64}


def network(seed=0):
    torch.manual_seed(seed)
    blocks = [nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.GELU()), nn.Sequential(nn.Conv2d(8, 12, 3, 2), nn.GELU())]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 12)]
    return ImageEncoder(nn.Sequential(*blocks, *pool), name="net", input_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(scope="module")
def slide():
    sdata = simulate_tissue(n_cells=900, seed=0)
    SIGMMA.setup_spatialdata(sdata, tile_size=64, grids=(2, 1))
    return sdata


def learned(model):
    return {name for name, p in model.module.encoder.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("regime", ["lora", *(pytest.param(r, marks=pytest.mark.slow) for r in ("last_k", "full"))])
def test_training_the_encoder(slide, regime, tmp_path):
    encoder = network()
    before = encoder.fingerprint()
    model = SIGMMA(slide, encoder, n_latent=16, regime=regime, last_k=1, lora_rank=2, seed=0)
    model.train(max_epochs=40, lr=5e-3, encoder_lr=1e-3, split="none", augment=False, **QUIET)
    last = {k: v.iloc[-10:, 0].mean() for k, v in model.history.items()}  # an epoch is one batch of this slide
    assert last["train_loss_grid1"] < last["train_ln_batch"] - 0.15
    # The given encoder is as it was, the trained one differs in what was to be trained and in nothing else.
    assert encoder.fingerprint() == before
    own = model.module.encoder.encoder
    assert own.fingerprint() != before
    given = dict(encoder.module.named_parameters())
    for name, p in own.module.named_parameters():
        plain = name.replace(".base_layer", "")
        if plain in given:
            assert torch.equal(p, given[plain]) == (f"encoder.module.{name}" not in learned(model)), name
    # Saved are the towers and what was trained.
    image = model.get_tile_representation(scale="all").X
    model.save(tmp_path / "model")
    loaded = SIGMMA.load(tmp_path / "model", slide, network())
    np.testing.assert_array_equal(loaded.get_tile_representation(scale="all").X, image)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(scale="all"), model.get_latent_representation(scale="all")
    )
    from safetensors.torch import load_file

    names = {
        n.removeprefix("towers.encoder.")
        for n in load_file(tmp_path / "model" / "weights.safetensors")
        if n.startswith("towers.encoder.")
    }
    assert names == learned(model)
    with pytest.raises(EncoderError, match="differs in its weights"):
        SIGMMA.load(tmp_path / "model", slide, network(seed=1))


def test_frozen_baseline_is_the_encoder_as_it_came(slide):
    model = SIGMMA(slide, network(), n_latent=16, regime="full")
    model.train(max_epochs=2, lr=3e-3, encoder_lr=1e-3, split="end", **QUIET)
    frozen = SIGMMA(slide, network(), n_latent=16)
    frozen.train(max_epochs=1, split="end", **QUIET)
    tuned, plain = (m.evaluate_expression(split="test") for m in (model, frozen))
    np.testing.assert_allclose(tuned.pcc_frozen, plain.pcc_frozen, rtol=1e-6)
    assert np.abs(tuned.pcc - plain.pcc).max() > 1e-3


def test_chunks_do_not_change_the_result(slide):
    losses = []
    for chunk_size in (3, 50):
        model = SIGMMA(slide, network(), n_latent=16, regime="full", edges="none")
        model.train(max_epochs=2, encoder_lr=1e-3, chunk_size=chunk_size, augment=False, split="none", **QUIET)
        losses.append(model.history["train_loss_epoch"].iloc[-1, 0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_killed_run_takes_up_with_the_trained_encoder(slide, tmp_path):
    class Stop(RuntimeError):
        pass

    import lightning.pytorch as pl

    class StopAt(pl.Callback):
        def on_train_epoch_start(self, trainer, plan):
            if trainer.current_epoch == 2:
                raise Stop

    def run(folder, **more):
        model = SIGMMA(slide, network(), n_latent=16, regime="lora", lora_rank=2)
        model.train(max_epochs=4, encoder_lr=1e-2, split="none", checkpoint_dir=folder, **QUIET, **more)
        return model

    with pytest.raises(Stop):
        run(tmp_path / "a", callbacks=[StopAt()])
    resumed, whole = run(tmp_path / "a"), run(tmp_path / "b")
    a, b = resumed.module.state_dict(), whole.module.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert any("lora_B" in name and b[name].abs().max() > 0 for name in b)


def test_attention_before_and_after(slide):
    torch.manual_seed(0)
    encoder = ImageEncoder.from_timm(
        "vit_tiny_patch16_224", input_size=32, img_size=32, embed_dim=24, depth=2, num_heads=2
    )
    with torch.no_grad():  # fresh weights attend evenly, whatever the image
        for block in encoder.module.blocks:
            block.attn.qkv.weight *= 20
    model = SIGMMA(slide, encoder, n_latent=16, regime="lora")
    model.train(max_epochs=3, encoder_lr=1e-2, split="none", **QUIET)
    tiles = model.get_tile_representation(scale="all").obs_names[[3, 8]]
    before, after = (model.get_attention(tiles, when=when)["attention"].values for when in ("before", "after"))
    frozen = SIGMMA(slide, encoder, n_latent=16)
    frozen.train(max_epochs=1, split="none", **QUIET)
    np.testing.assert_array_equal(before, frozen.get_attention(tiles)["attention"].values)
    assert before.shape == after.shape == (2, 2, 2, 2)
    assert np.abs(before - after).max() > 1e-3
