import numpy as np
import pytest
import torch
from torch import nn

from sigmma_sc import ImageEncoder
from sigmma_sc.config import Config
from sigmma_sc.encoders.stain import optical_density, unmixing_matrix
from sigmma_sc.encoders.tuning import tuned
from sigmma_sc.nn.objectives import info_nce
from sigmma_sc.nn.trainable import StainJitter, TrainableEncoder, patches_of, resampled, turned

GRIDS = (2, 1)


def small_vit(**kwargs):
    torch.manual_seed(0)
    return ImageEncoder.from_timm(
        "vit_tiny_patch16_224", input_size=32, img_size=32, embed_dim=24, depth=3, num_heads=2, **kwargs
    )


def tiles_of(rng, n=6, p=40):
    return torch.from_numpy(rng.integers(0, 256, (n, 3, p, p), dtype=np.uint8))


def test_patches_lie_row_by_row(rng):
    tiles = tiles_of(rng, 2, 8)
    patches = patches_of(tiles, 2)
    assert torch.equal(patches[1], tiles[0, :, :4, 4:])
    assert torch.equal(patches[6], tiles[1, :, 4:, :4])
    assert torch.equal(patches_of(tiles, 1), tiles)


def test_resampling_is_that_of_the_reader(rng):
    from PIL import Image

    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((75, 75)))
    for size in (32, 224):
        expected = np.asarray(Image.fromarray(smooth).resize((size, size), Image.BICUBIC)).astype(int)
        got = resampled(torch.from_numpy(smooth.copy()).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).numpy()
        assert np.abs(got - expected).max() <= 1


def test_turns_are_the_eight_of_a_square():
    torch.manual_seed(0)
    tile = torch.arange(3 * 16).to(torch.uint8).view(1, 3, 4, 4)
    found = {bytes(t.numpy().tobytes()) for t in turned(tile.expand(400, -1, -1, -1))}
    expected = set()
    for k in range(4):
        for flip in (False, True):
            t = torch.rot90(tile[0], k, (1, 2))
            expected.add(bytes((t.flip(-1) if flip else t).contiguous().numpy().tobytes()))
    assert found == expected


def test_restaining_scales_the_amounts_of_the_stains(rng):
    unmix = unmixing_matrix()
    amounts = torch.from_numpy(rng.uniform(0.1, 0.6, (4, 3, 16, 16))).float()
    amounts[:, 2] = 0  # stains alone: however much of them there is, no colour leaves the range of a byte
    density = torch.einsum("ij,tjyx->tiyx", torch.linalg.inv(unmix), amounts)
    tiles = (255 * 10**-density).round().to(torch.uint8)
    assert torch.equal(StainJitter(0.0)(tiles), tiles)
    old, new = (
        torch.einsum("ij,tjyx->tiyx", unmix, optical_density(t.float() / 255)) for t in (tiles, StainJitter(0.1)(tiles))
    )
    factors = (old * new).sum((2, 3)) / (old * old).sum((2, 3))
    for tile in range(4):
        for stain in (0, 1):
            expected = factors[tile, stain] * old[tile, stain]
            torch.testing.assert_close(new[tile, stain], expected, atol=0.02, rtol=0)
        torch.testing.assert_close(new[tile, 2], old[tile, 2], atol=0.02, rtol=0)
    found = factors[:, :2]
    assert ((found > 0.5) & (found < 1.5)).all()
    assert found.std() > 0.02  # each tile and stain has its own


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_restaining_is_in_single_precision(rng, kind):
    """Cast to half, a factor of 1 darkens one value in six."""
    tiles = tiles_of(rng).clamp_min(1)  # black and one grey level have one optical density
    with torch.autocast("cpu", kind):
        assert torch.equal(StainJitter(0.0)(tiles), tiles)
        torch.manual_seed(0)
        cast = StainJitter()(tiles)
    torch.manual_seed(0)
    assert torch.equal(cast, StainJitter()(tiles))


def test_stains_are_not_saved_and_move():
    jitter = StainJitter()
    assert jitter.state_dict() == {}
    assert jitter.to("meta").mix.is_meta
    assert jitter.unmix.is_meta


def test_features_are_those_of_the_crops_one_by_one(rng):
    encoder = small_vit()
    trainable = TrainableEncoder(encoder, GRIDS, (32, 32))
    tiles = tiles_of(rng)
    got = trainable(tiles)
    assert got.shape == (6, 5, 24)
    expected = encoder.encode(resampled(tiles[2:3, :, 20:, :20], 32))
    torch.testing.assert_close(got[2, 2], expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got[4, 4], encoder.encode(resampled(tiles[4:5], 32))[0], atol=1e-5, rtol=1e-4)


def gradients(chunk_size, rng, cached=True):
    """Gradient of a contrastive loss over all tiles at once with respect to the encoder, in float64."""
    encoder = tuned(small_vit(), Config(regime="full")).double()
    encoder.features = lambda crops: encoder.module((crops.double() / 255 - encoder._mean) / encoder._std)
    trainable = TrainableEncoder(encoder, GRIDS, (32, 32))
    trainable.chunk_size = chunk_size
    tiles, partner = tiles_of(rng), torch.from_numpy(rng.normal(size=(6, 24)))
    if cached:
        patches = trainable(tiles)
    else:
        crops = [resampled(patches_of(tiles, grid), 32) for grid in GRIDS]
        patches = torch.cat(
            [encoder.features(c).view(6, grid * grid, -1) for c, grid in zip(crops, GRIDS, strict=True)], 1
        )
    loss = info_nce(patches[:, :4].mean(1) + patches[:, 4], partner, 0.07)
    loss.backward()
    return loss.detach(), [p.grad for p in encoder.parameters()]


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 100])
def test_gradient_in_chunks_is_that_of_the_whole_batch(chunk_size):
    loss, grads = gradients(chunk_size, np.random.default_rng(0))
    whole, expected = gradients(0, np.random.default_rng(0), cached=False)
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=1e-12)
    assert max(g.abs().max() for g in expected) > 1e-3
    for got, exp in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, exp, rtol=1e-9, atol=1e-12)


def test_memory_of_chunks_does_not_grow_with_the_batch(rng):
    """What autograd keeps of the forward pass, counted by its own hooks."""

    def kept(n):
        trainable = TrainableEncoder(tuned(small_vit(), Config(regime="full")), (1,), (32,))
        trainable.chunk_size = 4
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            trainable(tiles_of(rng, n))
        return sum(sizes)

    assert kept(16) == kept(4) * 4  # pixels alone
    assert kept(4) <= 4 * 3 * 40 * 40


def test_statistics_of_batch_norms_stay(rng):
    encoder = ImageEncoder(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "bn", 16
    )
    trainable = TrainableEncoder(tuned(encoder, Config(regime="full")), (1,), (16,)).train()
    trainable(tiles_of(rng, 3, 16)).sum().backward()
    assert torch.equal(trainable.encoder.module[1].running_mean, torch.zeros(4))
    assert trainable.encoder.module[0].weight.grad is not None
