import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sigmma_sc import ImageEncoder, settings
from sigmma_sc._settings import logger
from sigmma_sc.encoders import onnx
from sigmma_sc.encoders.onnx import run_by_onnx
from sigmma_sc.errors import EncoderWarning, SetupError


@pytest.fixture(autouse=True)
def auto(monkeypatch):
    monkeypatch.setattr(settings, "_cpu_runtime", "auto")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 24, 3))
        self.layers[1].running_mean += 0.3

    def forward(self, x):
        return self.layers(x).mean((2, 3))


class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        return self.linear(x.mean((2, 3))) + torch.rand(4)


class Branching(nn.Module):
    """What it computes hangs on the values, which an export cannot know."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        first = self.linear(x.mean((2, 3)))
        return first if x[0].mean() > 0 else -first


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        return self.linear(torch.linalg.eigvals(x[:, :, :3, :3]).real[:, 0])


def encoder_of(module):
    return ImageEncoder(module, name="small", input_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))


def crops(n, size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (n, size, size, 3), generator=generator, dtype=torch.uint8)
    return pixels.permute(0, 3, 1, 2)  # channels last in memory, as the reader gives them


@pytest.mark.parametrize("size", [32, 48])
def test_features_are_those_of_torch(caplog, size):
    encoder = encoder_of(Small())
    encoder.allow(size)
    encoder.module.train()
    images = crops(4, size)
    with caplog.at_level("INFO", logger.name), warnings.catch_warnings():
        warnings.simplefilter("error")
        run = run_by_onnx(encoder, size, 4)
    np.testing.assert_allclose(run(images), encoder.encode(images), rtol=1e-4, atol=1e-5)
    assert run(images).dtype == torch.float32
    assert encoder.module.training
    assert "'small' runs on the CPU by ONNX Runtime" in caplog.text


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Drawing(), "gives other features"),
        (Branching(), "gives other features"),
        (Complex(), r"cannot be exported \(.+\)"),
    ],
)
def test_a_network_that_would_give_other_features_is_left_to_torch_with_a_warning(module, reason):
    encoder = encoder_of(module)
    with pytest.warns(EncoderWarning, match=f"'small' is not run by ONNX Runtime: it {reason}"):
        assert run_by_onnx(encoder, 32, 4) is None


def test_an_export_leaves_the_generator_of_random_numbers_as_it_was():
    encoder = encoder_of(Small())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run_by_onnx(encoder, 32, 4)
    assert torch.equal(torch.rand(2), expected)


def test_without_the_extra_without_weights_or_where_unwanted_torch_does_it(monkeypatch):
    without_weights = ImageEncoder(lambda x: x.mean((2, 3)), name="means", input_size=32)
    assert run_by_onnx(without_weights, 32, 4) is None
    encoder = encoder_of(Small())
    settings.cpu_runtime = "torch"
    assert run_by_onnx(encoder, 32, 4) is None
    settings.cpu_runtime = "auto"
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    assert run_by_onnx(encoder, 32, 4) is None
    with pytest.raises(SetupError, match="cpu_runtime='onnx' is not one of 'auto', 'torch'"):
        settings.cpu_runtime = "onnx"
