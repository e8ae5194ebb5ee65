import pytest
import torch
from torch import nn

from sigmma_sc import ImageEncoder
from sigmma_sc.encoders.device import (
    BYTES_A_WEIGHT,
    MOST_CROPS,
    SHARE,
    bytes_of_crop,
    crops_in_memory,
    feature_type,
    has_bfloat16,
)

GPU = torch.device("cuda", 0)
CARDS = {
    "GTX 1080": ((6, 1), torch.float32),
    "V100": ((7, 0), torch.float16),
    "T4, RTX 2080": ((7, 5), torch.float16),
    "A100": ((8, 0), torch.bfloat16),
    "L4, RTX 4090": ((8, 9), torch.bfloat16),
    "H100, H200": ((9, 0), torch.bfloat16),
}


@pytest.mark.parametrize("name", CARDS)
def test_type_of_features_by_card(name, monkeypatch):
    capability, kind = CARDS[name]

    class Current:
        def __init__(self, device):
            assert device == GPU

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    def supported(including_emulation=True):
        return including_emulation or capability >= (8, 0)  # by emulation all of them

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert feature_type(GPU) == kind
    assert has_bfloat16(GPU) == (kind == torch.bfloat16)
    assert feature_type(GPU, single=True) == torch.float32


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_other_devices_compute_in_float32(kind):
    assert feature_type(torch.device(kind)) == torch.float32
    assert not has_bfloat16(torch.device(kind))


def network(n_hidden=5):
    layers = nn.Sequential(nn.Flatten(), nn.Linear(48, n_hidden), nn.ReLU(), nn.Linear(n_hidden, 2, bias=False))
    return ImageEncoder(layers, "net", 4)


def test_bytes_of_a_crop_by_hand():
    """The inputs of both linear maps; the output of the ReLU is the input of the second, and weights are not counted."""
    assert bytes_of_crop(network(), 4) == 4 * (48 + 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert bytes_of_crop(network(), 4) == 2 * (48 + 5)


def test_frozen_weights_keep_less():
    """Below the first trained layer nothing is kept."""
    encoder = network().requires_grad_(False)
    assert bytes_of_crop(encoder, 4) == 0
    encoder.module[3].weight.requires_grad_(True)
    assert bytes_of_crop(encoder, 4) == 4 * 5


def test_crops_are_a_power_of_two_that_fits():
    encoder = network()
    states = BYTES_A_WEIGHT * sum(p.numel() for p in encoder.parameters())
    for crops in (4, 32, 128):
        room = crops * 4 * (48 + 5) / SHARE
        for share, expected in ((1.01, crops), (1.9, crops), (0.99, crops // 2)):
            assert crops_in_memory(encoder, 4, states + int(share * room)) == expected
    assert crops_in_memory(encoder, 4, 2**40) == MOST_CROPS
    assert crops_in_memory(encoder, 4, 0) == 1
