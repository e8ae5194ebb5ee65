import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from sigmma_sc.encoders.encoder import ImageEncoder
from sigmma_sc.encoders.fingerprint import agree, identity_of, mismatch


def crops(side, n=3, seed=0):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Pooled(nn.Module):
    """Equal weights, another forward."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return pooled(x, self.how) * self.scale


def pooled(x, how):
    return x.mean((2, 3)) if how == "mean" else x.amax((2, 3))


def hooked(module, hook):
    module.register_forward_hook(hook)
    return module


def test_identity_tells_what_is_done_with_equal_weights():
    made = [
        lambda: Pooled("mean"),
        lambda: Pooled("max"),
        lambda: hooked(Pooled("mean"), lambda module, given, out: out.square()),
        lambda: lambda x: x.mean((2, 3)),
        lambda: lambda x: x.amax((2, 3)),
        lambda: lambda x: x.mean((2, 3)) * 2,
    ]
    kept = [[identity_of(ImageEncoder(make(), "mine", 8)) for _ in range(2)] for make in made]
    for i, (one, again) in enumerate(kept):
        assert mismatch(one, again) == []
        assert all(mismatch(one, other) for j, (other, _) in enumerate(kept) if j != i)
    assert mismatch(kept[0][0], kept[1][0]) == ["output"]


def test_outputs_agree():
    nan, inf = float("nan"), float("inf")
    for one, other, same in (
        ([3.0, 4.0], [3.0, 4.04], True),
        ([3.0, 4.0], [3.0, 4.06], False),
        ([3.0, 4.0], [3.0], False),
        ([0.0], [0.0], True),
        ([nan, inf], [nan, inf], True),
        ([nan, 1.0], [0.0, 1.0], False),
    ):
        assert agree(one, other) == same


def test_identity_names_what_differs():
    encoder = ImageEncoder(Pooled("mean"), "mine", 32)
    encoder.train()
    state = torch.get_rng_state()
    kept = json.loads(json.dumps(identity_of(encoder)))
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.module.training
    assert mismatch(identity_of(encoder), kept) == []
    rounded = type("Rounded", (Pooled,), {"forward": lambda self, x: Pooled.forward(self, x) * 1.0001})
    assert mismatch(identity_of(ImageEncoder(rounded("mean"), "mine", 32)), kept) == []
    heavier = ImageEncoder(Pooled("mean"), "mine", 32)
    heavier.module.scale.data += 1e-4
    others = {
        ("output",): ImageEncoder(Pooled("max"), "mine", 32),
        ("weights",): heavier,
        ("name",): ImageEncoder(Pooled("mean"), "yours", 32),
        ("input_size",): ImageEncoder(Pooled("mean"), "mine", 64),
        ("std", "output"): ImageEncoder(Pooled("mean"), "mine", 32, std=(1, 1, 1)),
        ("weights", "output"): ImageEncoder(lambda x: x.mean((2, 3))[:, :2], "mine", 32),
    }
    for different, other in others.items():
        assert [
            part for part in mismatch(identity_of(other), kept) if (part, different) != ("output", ("input_size",))
        ] == list(different)


@pytest.mark.parametrize(("arch", "options"), [("mobilenetv2_050", {"pad_type": "same"}), ("resnet10t", {"global_pool": "max"})])  # fmt: skip
def test_identity_tells_arguments_that_change_no_weight(arch, options, tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model(arch, num_classes=0).state_dict(), tmp_path / "w.safetensors")
    plain, other = (ImageEncoder.from_timm(arch, tmp_path / "w.safetensors", input_size=64, **k) for k in ({}, options))
    assert not torch.allclose(plain.encode(crops(64)), other.encode(crops(64)), rtol=0.05)
    assert plain.fingerprint() == other.fingerprint()
    assert mismatch(identity_of(other), identity_of(plain)) == ["output"]
    # The same network as a module of one's own.
    mine = ImageEncoder(plain.module, arch, 64, plain.mean, plain.std)
    assert mismatch(identity_of(mine), identity_of(plain)) == []
