import numpy as np
import pytest
import torch

from sigmma_sc.nn import pairs
from sigmma_sc.nn.layout import cell_layout
from sigmma_sc.nn.pairs import EdgeWeights, uniform_like
from sigmma_sc.tissue.tiling import block_of


def parts(seed=0, n=2, p=5, k=3, dtype=torch.float64):
    torch.manual_seed(seed)
    a, b = (torch.randn(n, p, k, dtype=dtype, requires_grad=True) for _ in range(2))
    c, d = torch.randn(k, dtype=dtype, requires_grad=True), torch.randn((), dtype=dtype, requires_grad=True)
    weights = torch.rand(n, p, p, dtype=dtype, requires_grad=True)
    candidates = torch.rand(n, p, p) < 0.7
    return a, b, c, d, weights, (candidates & candidates.mT).to(dtype)


@pytest.mark.parametrize("temperature", [None, 1.0, 0.7])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("union", [False, True])
def test_edge_weights_and_their_gradients(symmetric, union, temperature, monkeypatch):
    a, b, c, d, weights, candidates = parts()
    if not union:
        weights = None
    uniform = torch.rand_like(candidates)
    monkeypatch.setattr(pairs, "uniform_like", lambda x: uniform.clone())
    score = (torch.relu(a[:, :, None] + b[:, None]) * c).sum(-1) + d
    score = (score + score.mT) / 2 if symmetric else score
    if temperature is None:
        e = torch.sigmoid(score) * candidates
    else:
        shared = uniform.triu() + uniform.triu(1).mT if symmetric else uniform
        soft = torch.sigmoid((score + torch.logit(shared)) / temperature)
        e = ((soft > 0.5).to(soft) + soft - soft.detach()) * candidates
        assert 0 < e.sum() < candidates.sum()
    plain = e if weights is None else weights + (1 - weights) * e
    got = EdgeWeights.apply(a, b, c, d, weights, candidates, temperature, symmetric)
    torch.testing.assert_close(got, plain)
    inputs = [t for t in (a, b, c, d, weights) if t is not None]
    way = torch.randn_like(plain)
    for ours, expected in zip(
        torch.autograd.grad(got, inputs, way), torch.autograd.grad(plain, inputs, way), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_uniform_numbers_are_uniform():
    torch.manual_seed(0)
    u = uniform_like(torch.empty(3, 333, 333))
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    counts = torch.histc(u, 50, 0, 1)
    assert ((counts - u.numel() / 50).square() / (u.numel() / 50)).sum() < 90  # chi-squared, 49 degrees: p about 0.0003
    flat = u.flatten() - 0.5
    for lag in (1, 2, 3, 4):
        assert abs((flat[lag:] * flat[:-lag]).mean() * 12) < 4.5 / u.numel() ** 0.5


def test_drawn_edges_follow_the_bernoulli_probability_whatever_the_temperature():
    a, b, c, d, _, candidates = parts(p=6, dtype=torch.float32)
    with torch.no_grad():
        expected = EdgeWeights.apply(a, b, c, d, None, candidates, None, False)
        for temperature in (0.3, 2.0):
            draws = [EdgeWeights.apply(a, b, c, d, None, candidates, temperature, False) for _ in range(4000)]
            assert set(torch.cat(draws).unique().tolist()) == {0.0, 1.0}
            assert (torch.stack(draws).mean(0) - expected).abs().max() < 4.5 * 0.5 / 4000**0.5  # standard errors


def draw(counts, grids=(4, 2, 1), seed=0):
    """First cell of each tile, blocks, and edges inside micro blocks of cells strewn at random."""
    rng = np.random.default_rng(seed)
    n = sum(counts)
    offset = rng.uniform(0, 1, (n, 2))
    blocks = np.stack([block_of(offset, 1.0, b) for b in grids])
    tile = np.repeat(np.arange(len(counts)), counts)
    same = (tile[:, None] == tile) & (blocks[0][:, None] == blocks[0]) & ~np.eye(n, dtype=bool)
    target, source = np.nonzero(same & (rng.random((n, n)) < 0.5))
    return np.r_[0, np.cumsum(counts)], blocks, source, target


def test_sums_over_shells():
    """Spread and gathered again, a cell's row comes back once from each shell in which the cell has company."""
    indptr, blocks, source, target = draw([0, 1, 40, 2, 30])
    layout = cell_layout(indptr, blocks, source, target)
    x = torch.arange(1.0, 74.0)[:, None]
    back = layout.from_slots(layout.to_slots(x, list(layout.buckets)), x.new_zeros(1, 1))
    company = (layout.slot < len(layout.cell)).sum(0)
    assert torch.equal(back, x * company[:, None])
    assert company[0] == 0  # alone in its tile
    assert company.max() == 2


def test_moves_with_all_its_tensors():
    indptr, blocks, source, target = draw([3, 20])
    moved = cell_layout(indptr, blocks, source, target).to(torch.device("meta"))
    assert {name for name, v in vars(moved).items() if isinstance(v, torch.Tensor) and v.is_meta} == {
        "cell",
        "inner_block",
        "slot",
        "micro",
        "tile",
    }


def test_gradients_of_slots_are_sums_and_copies():
    """By finite differences, for cells in two shells, in one and in none."""
    indptr, blocks, source, target = draw([1, 5, 2, 9])
    layout = cell_layout(indptr, blocks, source, target)
    x = torch.randn(17, 2, dtype=torch.float64, requires_grad=True)

    def spread_and_collected(x):
        slots = layout.to_slots(x, list(layout.buckets))
        weighed = {bucket: part * part.new_tensor([2.0, 3.0]) for bucket, part in slots.items()}
        return torch.cat([part.flatten() for part in slots.values()]), layout.from_slots(weighed, x[:1])

    assert torch.autograd.gradcheck(spread_and_collected, (x,))
