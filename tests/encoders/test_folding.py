import pytest
import torch
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn

from sigmma_sc import ImageEncoder
from sigmma_sc.encoders.folding import folded


class Network(nn.Module):
    """Convolutions and normalisations in all the ways in which they can meet."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.activated = BatchNormAct2d(8)
        self.standardised = nn.Sequential(StdConv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.twice = nn.Conv2d(8, 8, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.branched = nn.Conv2d(8, 8, 1)
        self.after_branch = nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.standardised(self.activated(self.depthwise(self.plain(x))))
        x = self.norms[1](self.twice(self.norms[0](self.twice(x))))
        x = self.branched(x)
        return (self.after_branch(x) + x).mean((2, 3))


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = Network()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.weight.data, part.running_var):
                values.uniform_(0.5, 2)
            for values in (part.bias.data, part.running_mean):
                values.normal_()
    return network


def crops():
    return torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_only_a_convolution_whose_output_goes_to_its_norm_alone_is_folded(network):
    encoder = ImageEncoder(network, "all ways", 32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    other = folded(encoder)
    left = {name for name, part in other.module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert left == {"standardised.1", "norms.0", "norms.1", "after_branch"}
    torch.testing.assert_close(other.encode(crops()), encoder.encode(crops()), rtol=1e-4, atol=1e-5)
    # The encoder itself is as it was.
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_hook_keeps_its_layers(network):
    network.plain[0].register_forward_hook(lambda part, images, out: out * 2)
    encoder = ImageEncoder(network, "hooked", 32)
    other = folded(encoder)
    assert isinstance(other.module.plain[1], nn.BatchNorm2d)
    torch.testing.assert_close(other.encode(crops()), encoder.encode(crops()), rtol=1e-4, atol=1e-5)


class Undecided(nn.Sequential):
    """Looks at a value, which a tracer cannot."""

    def forward(self, x):
        return super().forward(x if x.mean() > 0 else x + 1)


@pytest.mark.parametrize(
    "module",
    [
        lambda x: x.mean((2, 3)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        Undecided(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ],
    ids=["function", "without norms", "untraceable"],
)
def test_what_cannot_be_folded_is_left_alone(module):
    encoder = ImageEncoder(module, "left alone", 32)
    assert folded(encoder) is encoder
