"""Training steps on the pretend device: numbers of the CPU, tensors on one device, and no wait."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from sigmma_sc import SIGMMA, ImageEncoder
from sigmma_sc.config import Config
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.encoders.tuning import tuned
from sigmma_sc.nn import cellgraph, objectives, pairs, trainable
from sigmma_sc.nn.cellgraph import AttentionPool
from sigmma_sc.nn.pairs import CellLayout
from sigmma_sc.nn.temperature import Temperature
from sigmma_sc.nn.towers import Towers
from sigmma_sc.nn.trainable import TrainableEncoder

CASES = (
    ("frozen", {}),
    ("frozen", {"edges": "full"}),
    ("frozen", {"edges": "none", "learn_temperature": True}),
    ("frozen", {"symmetric_edges": True}),
    ("lora", {}),
    ("last_k", {}),
    ("full", {}),
)


def vit():
    torch.manual_seed(0)
    return ImageEncoder.from_timm(
        "vit_tiny_patch16_224", input_size=32, img_size=32, embed_dim=24, depth=1, num_heads=2
    )


@pytest.fixture(scope="module")
def part():
    """Tiles with their cells, patch features and pixels."""
    sdata = simulate_tissue(n_cells=400, seed=0)
    SIGMMA.setup_spatialdata(sdata, tile_size=64, grids=(2, 1))
    model = SIGMMA(sdata, vit())
    slide = model.resolve()[0]
    model.data.assign_roles([slide], "none")
    model.data.fit_node_features([slide])
    which = np.flatnonzero(slide.tiles.n_cells >= 5)[:8]
    tiles = slide.tiles.take(which)
    whole = model.data.tensors(slide, tiles, torch.device("cpu")).part(np.arange(len(tiles)))
    pixels = model.data.tensors(slide, tiles, torch.device("cpu"), cells=False, pixels=True)
    return whole | pixels.part(np.arange(len(tiles)))


def towers_of(regime, n_nodes, **switches):
    config = Config(regime=regime, lora_rank=2, last_k=1, n_latent=16, dropout=0.0, **switches)
    torch.manual_seed(0)
    encoder = None
    if regime != "frozen":
        encoder = TrainableEncoder(tuned(vit(), config), (2, 1), (32, 32))
        encoder.augment = True
    return Towers(24, n_nodes, (2, 1), ("grid2", "grid1"), config, encoder).train()


def step(towers, part):
    """Loss and gradients of one step; draws come from one seed."""
    batch = {k: v for k, v in part.items() if k != ("patches" if towers.encoder is not None else "pixels")}
    optimiser = torch.optim.AdamW([p for p in towers.parameters() if p.requires_grad])
    torch.manual_seed(1)
    loss = towers.total(towers.losses(towers([batch])))
    loss.backward()
    optimiser.step()
    towers.temperature.clamp()
    return loss.detach(), {n: p.grad for n, p in towers.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("regime", "switches"), CASES, ids=str)
def test_a_step_is_that_of_the_cpu_and_waits_for_nothing(regime, switches, part, device):
    towers = towers_of(regime, part["x"].shape[1], **switches)
    loss, gradients = step(copy.deepcopy(towers), part)
    towers.to(device.place)
    there = move_data_to_device(part, device.place)
    device.waits.clear()
    loss_there, gradients_there = step(towers, there)
    waits = dict(device.waits)
    assert isinstance(loss_there, device.Tensor)
    assert gradients.keys() == gradients_there.keys()
    torch.testing.assert_close(loss_there.cpu(), loss)
    for name, value in gradients.items():
        torch.testing.assert_close(gradients_there[name].cpu(), value, rtol=1e-3, atol=1e-6)
    assert waits == {}


def test_a_batch_is_moved_without_a_wait(part, device):
    there = move_data_to_device(part, device.place)
    for name in ("cell", "inner_block", "slot", "micro", "tile"):
        assert isinstance(getattr(there["layout"], name), device.Tensor), name
    assert isinstance(there["x"], device.Tensor)
    assert device.waits
    assert [what for what, _ in device.waits if "blocking" in what] == []


def without_buffer(module, name):
    """A plain attribute in the place of a buffer: it stays behind when the module moves."""
    value = module._buffers.pop(name)
    object.__setattr__(module, name, value)


def lost_mean(monkeypatch, towers):
    without_buffer(towers.cell_tower.standardise, "mean")


def lost_stains(monkeypatch, towers):
    without_buffer(towers.encoder.restained, "mix")


def numbers_of_the_host(monkeypatch, towers):
    monkeypatch.setattr(pairs, "uniform_like", lambda x: torch.rand(x.shape))


def turns_of_the_host(monkeypatch, towers):
    plain = torch.rand
    monkeypatch.setattr(trainable.torch, "rand", lambda *size, device=None, generator=None: plain(*size))


def partners_of_the_host(monkeypatch, towers):
    plain = torch.arange
    monkeypatch.setattr(objectives.torch, "arange", lambda *args, device=None: plain(*args))


def temperature_looked_at(monkeypatch, towers):
    def clamp(self):
        if self.log.max().item() > 0:
            self.log.clamp_(max=0)

    monkeypatch.setattr(Temperature, "clamp", torch.no_grad()(clamp))


def tiles_counted(monkeypatch, towers):
    plain = AttentionPool.forward
    monkeypatch.setattr(AttentionPool, "forward", lambda self, h, tile, n: plain(self, h, tile, int(tile.max()) + 1))


def edges_left_behind(monkeypatch, towers):
    plain = CellLayout.to
    monkeypatch.setattr(CellLayout, "to", lambda self, device: replace(plain(self, device), micro=self.micro))


def masked_pixels(monkeypatch, towers):
    def resampled(patches, size):
        out = torch.nn.functional.interpolate(patches.float(), (size, size))
        out[out > 255] = out[out > 255].clamp(max=255)  # how many there are decides the size
        return out.to(torch.uint8)

    monkeypatch.setattr(trainable, "resampled", resampled)


def neighbours_asked_for(monkeypatch, towers):
    plain = cellgraph._mean
    monkeypatch.setattr(
        cellgraph, "_mean", lambda messages: plain(messages) if messages.any() else torch.zeros_like(messages[:, 1:])
    )


def weights_of_the_host(monkeypatch, towers):
    weights = torch.ones(2)
    monkeypatch.setattr(
        type(towers), "total", lambda self, losses: (torch.stack(list(losses.values())) * weights).sum()
    )


def gradient_by_the_host(monkeypatch, towers):
    plain = pairs.EdgeWeights.backward

    def backward(ctx, grad):
        return plain(ctx, grad.cpu().to(grad.device))

    monkeypatch.setattr(pairs.EdgeWeights, "backward", staticmethod(backward))


@pytest.mark.parametrize(
    ("regime", "bug"),
    [
        ("frozen", lost_mean),
        ("full", lost_stains),
        ("frozen", numbers_of_the_host),
        ("full", turns_of_the_host),
        ("frozen", partners_of_the_host),
        ("frozen", temperature_looked_at),
        ("frozen", tiles_counted),
        ("frozen", edges_left_behind),
        ("full", masked_pixels),
        ("frozen", neighbours_asked_for),
        ("frozen", weights_of_the_host),
        ("frozen", gradient_by_the_host),
    ],
)
def test_a_planted_bug_is_caught(regime, bug, part, device, monkeypatch):
    towers = towers_of(regime, part["x"].shape[1], learn_temperature=True)
    bug(monkeypatch, towers)
    towers.to(device.place)
    there = move_data_to_device(part, device.place)
    device.waits.clear()
    refused = False
    try:
        step(towers, there)
    except device.MixedDevicesError:
        refused = True
    assert refused or device.waits
