import numpy as np
import pytest
import torch
from torch import nn

from sigmma_sc import ImageEncoder
from sigmma_sc.config import Config
from sigmma_sc.encoders.tuning import adaptable, blocks_of, require_tunable, tuned
from sigmma_sc.errors import EncoderError


def small_vit(**kwargs):
    torch.manual_seed(0)
    return ImageEncoder.from_timm(
        "vit_tiny_patch16_224", input_size=32, img_size=32, embed_dim=24, depth=3, num_heads=2, **kwargs
    )


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
    torch.testing.assert_close(copy.encode(crops), encoder.encode(crops), rtol=0, atol=1e-6)
    names = trainable(copy)
    assert len(names) == 3 * 4 * 2  # qkv, proj, fc1, fc2 of three blocks, A and B of each
    assert all("lora_" in name for name in names)
    # Weighted: a plain sum over the output of a LayerNorm is constant, and its gradient nothing but rounding.
    (copy.features(crops) * torch.linspace(-1, 1, 24)).sum().backward()
    gradient = {n: p.grad.abs().max() for n, p in copy.module.named_parameters() if "lora_B" in n}
    assert min(gradient.values()) > 0.1


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
    torch.testing.assert_close(copy.encode(crops), encoder.encode(crops), rtol=0, atol=1e-6)


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


def test_an_encoder_without_weights_cannot_be_trained():
    from sigmma_sc import get_encoder

    with pytest.raises(EncoderError, match="no weights to train with regime='lora'"):
        require_tunable(get_encoder("stain-stats"), Config(regime="lora"))
    conv = ImageEncoder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "conv", 16)
    with pytest.raises(EncoderError, match="0.0% of its weights in linear maps"):
        require_tunable(conv, Config(regime="lora"))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("network", ["linear", "pointwise"])
def test_adapters_without_casts_are_those_of_peft(network, kind, rng):
    """Under autocast peft casts inputs to float32, and autocast casts them back: the same bits, forward and backward."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [nn.Conv2d(3, 12, 3, 2), nn.GELU(), nn.Conv2d(12, 12, 1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if network == "linear":
        layers = [nn.Flatten(), nn.Linear(768, 12), nn.GELU(), nn.Linear(12, 12), nn.GELU()]
    torch.manual_seed(0)
    copy = tuned(ImageEncoder(nn.Sequential(*layers, nn.Linear(12, 6)), "net", 16), Config(regime="lora", lora_rank=2))
    adapted = [part for part in copy.modules() if isinstance(part, BaseTunerLayer)]
    for name, p in copy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)  # they start at zero
    crops = torch.from_numpy(rng.integers(0, 256, (5, 3, 16, 16), dtype=np.uint8))
    found = {}
    for casts in (False, True):
        assert not any(layer.cast_input_dtype_enabled for layer in adapted) or casts
        for layer in adapted:
            layer.cast_input_dtype_enabled = casts
        copy.zero_grad()
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
            features = copy.features(crops)
        (features * torch.arange(6)).square().sum().backward()
        gradients = [p.grad for p in copy.parameters() if p.requires_grad]
        found[casts] = features.detach(), gradients
    assert len(adapted) >= 2
    assert torch.equal(found[False][0], found[True][0])
    for one, other in zip(found[False][1], found[True][1], strict=True):
        assert torch.equal(one, other)
    assert any(gradient.any() for gradient in found[False][1])
