import numpy as np
import pytest
import torch
from torch import nn

from sigmma_sc import ImageEncoder
from sigmma_sc.config import Config
from sigmma_sc.encoders.stain import optical_density, unmixing_matrix
from sigmma_sc.encoders.tuning import adaptable, blocks_of, require_tunable, tuned
from sigmma_sc.errors import EncoderError
from sigmma_sc.nn.objectives import info_nce
from sigmma_sc.nn.trainable import TrainableEncoder, patches_of, resampled, restained, turned

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
    torch.manual_seed(0)
    tiles = torch.from_numpy(rng.integers(130, 225, (4, 3, 16, 16), dtype=np.uint8))
    assert torch.equal(restained(tiles, 0.0), tiles)
    unmix = unmixing_matrix()
    old, new = (
        torch.einsum("ij,tjyx->tiyx", unmix, optical_density(t.float() / 255)) for t in (tiles, restained(tiles, 0.1))
    )
    for tile in range(4):
        for stain in (0, 1):
            x, y = old[tile, stain].flatten(), new[tile, stain].flatten()
            factor = (x @ y) / (x @ x)
            assert 0.5 < factor < 1.5
            torch.testing.assert_close(y, factor * x, atol=0.02, rtol=0)
        torch.testing.assert_close(new[tile, 2], old[tile, 2], atol=0.02, rtol=0)


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


def trainable(encoder):
    return {name for name, p in encoder.module.named_parameters() if p.requires_grad}


def test_the_encoder_itself_is_left_alone():
    encoder = small_vit()
    before = encoder.fingerprint()
    for regime in ("lora", "last_k", "full"):
        copy = tuned(encoder, Config(regime=regime))
        assert trainable(copy)
        for p in copy.parameters():
            p.data += 1.0
    assert encoder.fingerprint() == before


def test_last_blocks_of_a_vit_with_the_norm_behind_them():
    found = trainable(tuned(small_vit(), Config(regime="last_k", last_k=2)))
    assert {name.split(".")[1] for name in found if name.startswith("blocks")} == {"1", "2"}
    assert {name for name in found if not name.startswith("blocks")} == {"norm.weight", "norm.bias"}
    with pytest.raises(EncoderError, match="has 4 blocks, last_k=9"):
        require_tunable(small_vit(), Config(regime="last_k", last_k=9))


def test_last_blocks_of_a_module_that_is_not_timms():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.layers = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(3)])
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.stem(x)
            for layer in self.layers:
                x = layer(x)
            return self.norm(x).mean((2, 3))

    assert blocks_of(Net())[-2:] == [
        ["layers.1.weight", "layers.1.bias"],
        ["layers.2.weight", "layers.2.bias", "norm.weight", "norm.bias"],
    ]


def test_adapters_start_at_nothing_and_reach_every_map(rng):
    encoder = small_vit()
    crops = torch.from_numpy(rng.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    copy = tuned(encoder, Config(regime="lora", lora_rank=3))
    torch.testing.assert_close(copy.encode(crops), encoder.encode(crops), rtol=0, atol=0)
    names = trainable(copy)
    assert len(names) == 3 * 4 * 2  # qkv, proj, fc1, fc2 of three blocks, A and B of each
    assert all("lora_" in name for name in names)
    copy.features(crops).sum().backward()
    gradient = {n: p.grad.abs().max() for n, p in copy.module.named_parameters() if p.requires_grad}
    assert all(gradient[n] > 0 for n in gradient if "lora_B" in n)


def test_adapters_pass_by_what_torch_attention_never_calls():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert adaptable(layer) == ["linear1", "linear2"]
    assert adaptable(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 4))) == ["1", "2"]


def test_adapters_go_to_layers_by_their_whole_name(rng):
    """In a Sequential names are numbers, which other layers' names end with."""
    encoder = ImageEncoder(nn.Sequential(small_vit().module, nn.Linear(24, 24)), "projected", 32)
    copy = tuned(encoder, Config(regime="lora", lora_rank=2))
    adapted = {name.partition(".lora_")[0] for name in trainable(copy)}
    assert adapted == {"1", *(f"0.blocks.{n}.{part}" for n in range(3) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))}  # fmt: skip
    crops = torch.from_numpy(rng.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    torch.testing.assert_close(copy.encode(crops), encoder.encode(crops), rtol=0, atol=0)


def test_adapters_of_a_convolutional_network(rng):
    encoder = ImageEncoder.from_timm("mobilenetv3_small_050", input_size=32)
    names = {name.partition(".lora_")[0] for name in trainable(tuned(encoder, Config(regime="lora", lora_rank=2)))}
    points = {n for n, p in encoder.module.named_modules() if isinstance(p, nn.Conv2d) and p.kernel_size == (1, 1)}
    assert names == points
    thick = ImageEncoder(
        nn.Sequential(*stages((3, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)), "thick", 16
    )
    with pytest.raises(EncoderError, match=r"'thick' has 0\.\d% of its weights in linear maps .* 5% are needed"):
        require_tunable(thick, Config(regime="lora"))


class Residual(nn.Module):
    def __init__(self, n_input, n_output):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(n_input, n_output, 3, padding=1), nn.BatchNorm2d(n_output)

    def forward(self, x):
        return self.norm(self.conv(x))


def stages(depths):
    """Stages of blocks as torchvision's ResNet has them."""
    sides = [(3, 8), *((8, 8) for _ in range(20))]
    return [nn.Sequential(*(Residual(*(sides[0] if n == k == 0 else sides[1])) for k in range(d))) for n, d in enumerate(depths)]  # fmt: skip


class Staged(nn.Module):
    """Named like torchvision's ResNet, whose longest stage is not its last."""

    def __init__(self, depths, head=False):
        super().__init__()
        for n, stage in enumerate(stages(depths), 1):
            self.add_module(f"layer{n}", stage)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)) if head else nn.Identity()

    def forward(self, x):
        for name, stage in self.named_children():
            x = x.mean((2, 3)) if name == "head" else stage(x)
        return self.head(x)


def test_last_blocks_of_stages_cannot_be_counted():
    staged = ImageEncoder(Staged((2, 4, 3)), "staged", 16)
    with pytest.raises(
        EncoderError, match=r"'staged' is no plain stack.*'layer2'.*followed by 'layer3'.*regime='lora' or 'full'"
    ):
        require_tunable(staged, Config(regime="last_k", last_k=1))
    # What is behind the longest list may be a list of layers, and then goes with the last block.
    plain = ImageEncoder(Staged((2, 4), head=True), "plain", 16)
    require_tunable(plain, Config(regime="last_k", last_k=1))
    found = trainable(tuned(plain, Config(regime="last_k", last_k=1)))
    assert {name.rpartition(".")[0] for name in found} == {"layer2.3.conv", "layer2.3.norm", "head.0", "head.1"}


def test_the_projection_of_open_clip_goes_with_the_last_block():
    open_clip = pytest.importorskip("open_clip", reason="the extra 'encoders' is not installed")
    tower = open_clip.transformer.VisionTransformer(32, 16, 24, 3, 2, 4.0, output_dim=8)
    encoder = ImageEncoder(tower, "clip", 32)
    found = trainable(tuned(encoder, Config(regime="last_k", last_k=1)))
    assert {name for name in found if "resblocks" not in name} == {"ln_post.weight", "ln_post.bias", "proj"}
    assert {name.split(".")[2] for name in found if "resblocks" in name} == {"2"}


def test_statistics_of_batch_norms_stay(rng):
    encoder = ImageEncoder(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "bn", 16
    )
    trainable = TrainableEncoder(tuned(encoder, Config(regime="full")), (1,), (16,)).train()
    trainable(tiles_of(rng, 3, 16)).sum().backward()
    assert torch.equal(trainable.encoder.module[1].running_mean, torch.zeros(4))
    assert trainable.encoder.module[0].weight.grad is not None


def test_an_encoder_without_weights_cannot_be_trained():
    from sigmma_sc import get_encoder

    with pytest.raises(EncoderError, match="no weights to train with regime='lora'"):
        require_tunable(get_encoder("stain-stats"), Config(regime="lora"))
    conv = ImageEncoder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "conv", 16)
    with pytest.raises(EncoderError, match="0.0% of its weights in linear maps"):
        require_tunable(conv, Config(regime="lora"))
