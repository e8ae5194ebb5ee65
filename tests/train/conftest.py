import pytest
import torch

from sigmma_sc import SIGMMA, ImageEncoder
from sigmma_sc.datasets import simulate_tissue


class MeanAndSpread(torch.nn.Module):
    """Six numbers a crop, in no time; ``gain`` makes another encoder of it."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def forward(self, x):
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1) * self.gain


def _encoder(gain=1.0, input_size=16, std=(1.0, 1.0, 1.0)):
    return ImageEncoder(MeanAndSpread(gain), name="mean", input_size=input_size, mean=(0.0, 0.0, 0.0), std=std)


@pytest.fixture(scope="session")
def encoder():
    return _encoder


@pytest.fixture(scope="session")
def tiny():
    """A simulated slide of some hundred tiles of 64 µm; tests must not change it."""
    sdata = simulate_tissue(n_cells=1500, seed=0)
    SIGMMA.setup_spatialdata(sdata, tile_size=64)
    return sdata
