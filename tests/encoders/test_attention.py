"""Attention of the class token against the libraries' own unfused attention, and against products of queries and keys."""

from types import MethodType

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from sigmma_sc.encoders.attention import cls_attention
from sigmma_sc.encoders.encoder import ImageEncoder
from sigmma_sc.errors import EncoderError

SIDE = 32
TINY = {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def crops(n=2, side=SIDE):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)


def wrap(module, side=SIDE):
    with torch.no_grad():
        for part in module.parameters():
            if part.ndim > 1:
                part.mul_(12)  # libraries start flat: every patch would get the same
    return ImageEncoder(module, "vit", side, (0.5,) * 3, (0.25,) * 3)


def normalised(images):
    return (images / 255 - 0.5) / 0.25


def by_hand(block, x):
    """softmax(q kᵀ / √d) of one block of timm, written out."""
    attention, heads = block.attn, block.attn.num_heads
    n, tokens, width = x.shape
    weight, bias = attention.qkv.weight, attention.qkv.bias
    rows = block.norm1(x) @ weight.T + bias
    q, k = (rows[..., part * width : (part + 1) * width].reshape(n, tokens, heads, -1) for part in (0, 1))
    scores = torch.einsum("nihd,njhd->nhij", attention.q_norm(q), attention.k_norm(k)) / (width // heads) ** 0.5
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({}, 1),
        ({"reg_tokens": 4, "no_embed_class": True, "init_values": 0.5, "dynamic_img_size": True}, 5),
        ({"qk_norm": True, "global_pool": "avg"}, 1),
    ],
)
@torch.no_grad()
def test_equals_queries_times_keys(options, prefix):
    network = timm.models.VisionTransformer(**TINY, **options).eval()
    encoder, images = wrap(network), crops()
    x = network._pos_embed(network.patch_embed(normalised(images)))
    weights = by_hand(network.blocks[1], network.blocks[0](network.norm_pre(x)))
    assert weights.shape[-1] == prefix + 16
    maps = cls_attention(encoder, images)
    assert maps.shape == (2, 3, 4, 4)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.flatten(2), weights[:, :, 0, prefix:])
    # The rest of each row is what the class token gives to itself and to registers.
    torch.testing.assert_close(maps.sum((2, 3)), 1 - weights[:, :, 0, :prefix].sum(-1))
    assert maps.amax((2, 3)).min() > 1.2 / (prefix + 16)  # by no means even


@pytest.mark.parametrize(
    ("arch", "options", "prefix"),
    [
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("vit_small_patch14_reg4_dinov2", {"patch_size": 8}, 5),
        ("vit_small_patch16_dinov3", {"patch_size": 8}, 5),
        ("eva02_tiny_patch14_224", {"patch_size": 8}, 1),
        ("beit_base_patch16_224", {"patch_size": 8}, 1),
        ("vit_tiny_patch16_224", {"patch_size": 8, "block_fn": ParallelScalingBlock}, 1),
    ],
)
@torch.no_grad()
def test_equals_the_unfused_attention_of_timm(arch, options, prefix):
    """Rotary positions and relative biases are in the weights."""
    size = {"img_size": SIDE, "embed_dim": 96, "num_heads": 3, "depth": 2, "num_classes": 0}
    network = timm.create_model(arch, **(size | options)).eval()
    encoder, images = wrap(network), crops()
    maps = cls_attention(encoder, images)
    attention, kept = getattr(network.blocks[-1], "attn", network.blocks[-1]), []
    assert attention.fused_attn
    attention.fused_attn = False
    attention.attn_drop.forward = lambda weights: kept.append(weights) or weights
    network(normalised(images))
    side = SIDE // network.patch_embed.patch_size[0]
    assert kept[0].shape[-1] == prefix + side * side
    torch.testing.assert_close(maps, kept[0][:, :, 0, prefix:].unflatten(-1, (side, side)))


def test_rows_of_a_map_run_down_the_crop():
    """One bright patch: a head whose key is brightness looks there."""
    network = timm.models.VisionTransformer(**(TINY | {"depth": 1, "num_heads": 1})).eval()
    block = network.blocks[0]
    block.norm1 = nn.Identity()
    with torch.no_grad():
        for part in network.parameters():
            part.zero_()
        network.patch_embed.proj.weight[0] = 1 / 192  # first channel: mean brightness
        network.cls_token[..., 1] = 1
        block.attn.qkv.weight[0, 1] = 40 * 24**0.5  # query of the class token
        block.attn.qkv.weight[24, 0] = 1  # key
    images = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    images[..., 8:16, 24:32] = 255  # second row, last column
    maps = cls_attention(ImageEncoder(network, "bright", SIDE, (0, 0, 0), (1, 1, 1)), images)
    assert maps[0, 0, 1, 3] > 0.99


def test_the_encoder_is_left_as_it_was():
    network = timm.models.VisionTransformer(**TINY)
    network.train()
    network.blocks[0].eval()
    encoder, images = wrap(network), crops()
    attention = network.blocks[-1].attn
    before = encoder.encode(images), [part.training for part in network.modules()], encoder.fingerprint()
    names = {name: set(vars(part)) for name, part in network.named_modules()}
    cls_attention(encoder, images)
    assert torch.equal(encoder.encode(images), before[0])
    assert [part.training for part in network.modules()] == before[1]
    assert encoder.fingerprint() == before[2]
    assert attention.fused_attn is True
    assert {name: set(vars(part)) for name, part in network.named_modules()} == names
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())

    def fail(self, x):
        raise RuntimeError("out of memory")

    attention.proj.forward = MethodType(fail, attention.proj)
    with pytest.raises(RuntimeError, match="out of memory"):
        cls_attention(encoder, images)
    assert attention.fused_attn is True
    assert not attention.attn_drop._forward_hooks


class TestTransformers:
    @pytest.fixture
    def transformers(self):
        return pytest.importorskip("transformers", reason="the extra 'encoders' is not installed")

    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48,
            "patch_size": 8, "image_size": SIDE}  # fmt: skip

    @pytest.mark.parametrize("name", ["CLIPVisionModelWithProjection", "Dinov2Model", "Dinov2WithRegistersModel"])
    @torch.no_grad()
    def test_equals_their_own_weights(self, name, transformers):
        kind = getattr(transformers, name)
        network = kind._from_config(kind.config_class(**self.size), attn_implementation="eager").eval()
        handle = network.register_forward_hook(lambda module, given, out: next(iter(out.values())).flatten(1)[:, :8])
        encoder, images = wrap(network), crops()
        maps = cls_attention(encoder, images)
        handle.remove()
        assert not any(part._forward_hooks for part in network.modules())  # before transformers adds its own
        expected = network(normalised(images), output_attentions=True).attentions[-1]
        prefix = 5 if "Registers" in name else 1
        assert expected.shape == (2, 3, prefix + 16, prefix + 16)
        torch.testing.assert_close(maps.flatten(2), expected[:, :, 0, prefix:])

    def test_rotary_positions_are_refused(self, transformers):
        network = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**self.size)).eval()
        network.register_forward_hook(lambda module, given, out: out.last_hidden_state[:, 0])
        with pytest.raises(EncoderError, match=r"'vit' \(DINOv3ViTModel\) has no attention"):
            cls_attention(wrap(network), crops())


class TestOpenClip:
    @torch.no_grad()
    def test_equals_queries_times_keys(self):
        transformer = pytest.importorskip("open_clip.transformer", reason="the extra 'encoders' is not installed")
        network = transformer.VisionTransformer(SIDE, 8, 24, 2, 3, 2, output_dim=8).eval()
        encoder, images = wrap(network), crops()
        given = []
        handle = network.transformer.resblocks[-1].ln_1.register_forward_hook(lambda module, x, out: given.append(out))
        maps = cls_attention(encoder, images)
        handle.remove()
        attention = network.transformer.resblocks[-1].attn
        rows = given[0] @ attention.in_proj_weight.T + attention.in_proj_bias
        q, k = (part.unflatten(-1, (3, 8)).transpose(1, 2) for part in rows.chunk(3, dim=-1)[:2])
        expected = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1)
        torch.testing.assert_close(maps.flatten(2), expected[:, :, 0, 1:])
        assert not attention._forward_hooks


@pytest.mark.parametrize(
    "module",
    [
        timm.models.VisionTransformer(**TINY, class_token=False, global_pool="avg"),
        timm.create_model("resnet10t", num_classes=0),
        lambda x: x.mean((2, 3)),
    ],
    ids=["no class token", "convolutions", "no module"],
)
def test_others_are_refused_by_name(module):
    encoder = ImageEncoder(module, "mine", SIDE, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(EncoderError, match="'mine' .* has no attention of a class token to patches. Needed is"):
        cls_attention(encoder, crops())
