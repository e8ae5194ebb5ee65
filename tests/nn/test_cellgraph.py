import numpy as np
import pytest
import torch

from sigmma_sc.nn.cellgraph import AttentionPool, CellGraphTower, EdgeSampler, PairScore, WeightedSAGE
from sigmma_sc.tissue.tiling import block_of
from sigmma_sc.train.batches import make_buckets

GRIDS = (4, 2, 1)


def batch_of(counts, seed=0, side=128.0, n_features=6):
    """Random cells in tiles of given sizes, random edges inside micro blocks."""
    rng = np.random.default_rng(seed)
    indptr = np.r_[0, np.cumsum(counts)]
    n = indptr[-1]
    offset = rng.uniform(0, side, (n, 2))
    blocks = np.stack([block_of(offset, side, b) for b in GRIDS]) if n else np.zeros((3, 0), np.int64)
    tile = np.repeat(np.arange(len(counts)), counts)
    same = (tile[:, None] == tile[None]) & (blocks[0][:, None] == blocks[0][None]) & ~np.eye(n, dtype=bool)
    target, source = np.nonzero(same & (rng.random((n, n)) < 0.6))
    x = torch.from_numpy(rng.normal(size=(n, n_features))).float()
    return x, indptr, blocks, source, target, tile


def reference(tower, x, indptr, blocks, source, target):
    """The method written out cell by cell and pair by pair, in evaluation: every pair weighs its probability."""
    n, tile = len(x), np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    edges = [{} for _ in range(n)]
    for s, t in zip(source, target, strict=True):
        edges[t][s] = 1.0
    h, cells, pooled, sets = x, [], [], []
    for k, layer in enumerate(tower.layers):
        if k:
            sampler = tower.samplers[k - 1]
            new = [dict(e) for e in edges]
            for v in range(n):
                for u in range(n):
                    if u == v or tile[u] != tile[v] or blocks[k][u] != blocks[k][v]:
                        continue
                    hidden = torch.relu(sampler.target(h[v]) + sampler.source(h[u]))
                    added = torch.sigmoid(hidden @ sampler.weight + sampler.bias).item()
                    absent = 1 - edges[v].get(u, 0.0)
                    new[v][u] = 1 - absent * (1 - added)
            edges = new
        rows = []
        for v in range(n):
            total = sum((w * h[u] for u, w in edges[v].items()), torch.zeros(h.shape[1]))
            mean = total / max(sum(edges[v].values()), 1e-8)
            rows.append(torch.nn.functional.gelu(layer.own(h[v]) + layer.neighbours(mean)))
        h = torch.stack(rows)
        cells.append(h)
        sets.append(edges)
        pools = []
        for t in range(len(indptr) - 1):
            part = h[indptr[t] : indptr[t + 1]]
            weight = torch.softmax(tower.pools[k].gate(part).squeeze(-1), 0)
            pools.append((weight[:, None] * part).sum(0))
        pooled.append(torch.stack(pools))
    return cells, pooled, sets


def test_tower_equals_the_method_written_out():
    x, indptr, blocks, source, target, _ = batch_of([0, 1, 30, 2, 17, 30, 1])
    torch.manual_seed(0)
    tower = CellGraphTower(6, 8).eval()
    with torch.no_grad():
        for sampler in tower.samplers:  # so that probabilities differ between pairs
            sampler.target.weight.mul_(5), sampler.source.weight.mul_(5), sampler.weight.normal_()
        cells, tiles = tower(x, list(make_buckets(indptr, blocks, source, target)), 7)
        ref_cells, ref_tiles, sets = reference(tower, x, indptr, blocks, source, target)
    weights = np.array([w for edges in sets[1] for w in edges.values()])
    assert weights.min() < 0.3 < 0.7 < np.sort(weights[weights < 1])[-1]
    for a, b in zip(cells + tiles, ref_cells + ref_tiles, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert (tiles[0][0] == 0).all()  # an empty tile pools to zero


def test_a_batch_of_empty_tiles_alone():
    """Bare glass may fill whole batches of inference."""
    x, indptr, blocks, source, target, _ = batch_of([0, 0, 0])
    cells, tiles = CellGraphTower(6, 8)(x, list(make_buckets(indptr, blocks, source, target)), 3)
    assert [h.shape for h in cells] == [(0, 8)] * 3
    assert all((z == 0).all() for z in tiles)


@pytest.mark.parametrize("training", [False, True])
def test_edges_are_nested_and_never_cross_a_block(training):
    x, indptr, blocks, source, target, _ = batch_of([25, 40], seed=3)
    tower = CellGraphTower(6, 8, dropout=0.0).train(training)
    for bucket in make_buckets(indptr, blocks, source, target):
        _, graphs = tower.embed(x, bucket)
        weights = [g.detach() for g in graphs]
        kept = [g > 1e-6 for g in weights]
        assert (weights[0] == bucket.micro).all()
        for k in range(3):
            same = bucket.blocks[k][:, :, None] == bucket.blocks[k][:, None, :]
            real = bucket.mask[:, :, None] & bucket.mask[:, None, :]
            assert not (kept[k] & ~(same & real)).any()
            assert not torch.diagonal(kept[k], dim1=1, dim2=2).any()
        assert (weights[1][kept[0]] == 1).all()
        assert (weights[2] >= weights[1] - 1e-6).all()
        if training:  # drawn, not weighed
            assert all(((g - g.round()).abs() < 1e-6).all() for g in weights)
            assert weights[0].sum() < weights[1].sum() < weights[2].sum()


def test_embeddings_permute_with_the_cells():
    x, indptr, blocks, source, target, _ = batch_of([20, 33], seed=1)
    tower = CellGraphTower(6, 8).eval()
    order = np.r_[np.random.default_rng(2).permutation(20), 20 + np.random.default_rng(3).permutation(33)]
    place = np.argsort(order)
    a, za = tower(x, list(make_buckets(indptr, blocks, source, target)), 2)
    b, zb = tower(x[order], list(make_buckets(indptr, blocks[:, order], place[source], place[target])), 2)
    for k in range(3):
        torch.testing.assert_close(a[k][order], b[k], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(za[k], zb[k], atol=1e-5, rtol=1e-4)


def test_tiles_do_not_see_each_other():
    x, indptr, blocks, source, target, _ = batch_of([20, 33], seed=1)
    tower = CellGraphTower(6, 8).eval()
    first = target < 20
    alone, _ = tower(x[:20], list(make_buckets(indptr[:2], blocks[:, :20], source[first], target[first])), 1)
    both, _ = tower(x, list(make_buckets(indptr, blocks, source, target)), 2)
    for k in range(3):
        torch.testing.assert_close(alone[k], both[k][:20], atol=1e-6, rtol=1e-5)


def test_full_and_none_are_the_ablations():
    x, indptr, blocks, source, target, _ = batch_of([25], seed=4)
    (bucket,) = make_buckets(indptr, blocks, source, target)
    _, full = CellGraphTower(6, 8, edges="full").eval().embed(x, bucket)
    assert full[2].sum() == 25 * 24
    same = bucket.blocks[1][0][:, None] == bucket.blocks[1][0][None]
    assert full[1].sum() == (same.sum() - 25)
    _, none = CellGraphTower(6, 8, edges="none").eval().embed(x, bucket)
    assert all((g == bucket.micro).all() for g in none)


def test_weighted_sage_with_unit_weights_equals_pyg():
    from torch_geometric.nn import SAGEConv

    x, _, _, source, target, _ = batch_of([30], seed=5)
    ours, theirs = WeightedSAGE(6, 8), SAGEConv(6, 8, aggr="mean", root_weight=True)
    theirs.lin_l.weight.data = ours.neighbours.weight.data
    theirs.lin_l.bias.data.zero_()
    theirs.lin_r.weight.data = ours.own.weight.data
    dense = torch.zeros(1, 30, 30)
    dense[0, target, source] = 1.0
    got = ours(x[None], dense)[0]
    edges = torch.from_numpy(np.stack([source, target]))
    expected = torch.nn.functional.gelu(theirs(x, edges) + ours.own.bias)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_pair_score_gradients():
    torch.manual_seed(0)
    a, b = (torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PairScore.apply, (a, b, w))
    plain = (torch.relu(a[:, :, None] + b[:, None]) * w).sum(-1)
    torch.testing.assert_close(PairScore.apply(a, b, w), plain)


def test_sampled_edges_follow_the_bernoulli_probability():
    torch.manual_seed(0)
    sampler = EdgeSampler(4, temperature=0.5)
    h = torch.randn(1, 6, 4) * 2
    candidates = ~torch.eye(6, dtype=torch.bool)[None]
    with torch.no_grad():
        logits = PairScore.apply(sampler.target(h), sampler.source(h), sampler.weight) + sampler.bias
        mean = torch.stack([sampler(h, candidates, sample=True) for _ in range(4000)]).mean(0)
    expected = torch.sigmoid(logits) * candidates
    assert (mean - expected).abs().max() < 4 * 0.5 / 4000**0.5  # four standard errors


def test_evaluation_weighs_edges_by_how_often_they_are_drawn():
    x, indptr, blocks, source, target, _ = batch_of([12], seed=7)
    (bucket,) = make_buckets(indptr, blocks, source, target)
    torch.manual_seed(0)
    tower = CellGraphTower(6, 8, dropout=0.0)
    with torch.no_grad():
        for layer in tower.layers:  # else what is drawn at meso would change what may be drawn at macro
            layer.neighbours.weight.zero_()
        _, expected = tower.eval().embed(x, bucket)
        tower.train()
        draws = [tower.embed(x, bucket)[1] for _ in range(4000)]
    for k in (1, 2):
        drawn = torch.stack([graphs[k] for graphs in draws]).mean(0)
        assert (drawn - expected[k]).abs().max() < 4.5 * 0.5 / 4000**0.5  # four and a half standard errors
        assert 0 < expected[k][expected[k] > 0].min() < 0.9


def test_straight_through_gradient_reaches_the_edge_mlp():
    x, indptr, blocks, source, target, _ = batch_of([30, 30], seed=6)
    torch.manual_seed(0)
    tower = CellGraphTower(6, 8).train()
    _, tiles = tower(x, list(make_buckets(indptr, blocks, source, target)), 2)
    (tiles[2] ** 2).sum().backward()
    for sampler in tower.samplers:
        for name in ("target.weight", "source.weight", "weight", "bias"):
            assert sampler.get_parameter(name).grad.abs().max() > 0, name


def test_attention_pool_by_hand():
    pool = AttentionPool(2)
    pool.gate.weight.data = torch.tensor([[1.0, 0.0]])
    pool.gate.bias.data.zero_()
    h = torch.tensor([[[0.0, 1.0], [np.log(3.0), 5.0], [100.0, 100.0]]], dtype=torch.float32)
    got = pool(h, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(got[0, 1], torch.tensor(0.25 * 1 + 0.75 * 5))


def test_empty_tiles_give_no_nan_gradient():
    x, indptr, blocks, source, target, _ = batch_of([0, 3, 0])
    tower = CellGraphTower(6, 8).train()
    _, tiles = tower(x, list(make_buckets(indptr, blocks, source, target)), 3)
    sum(t.sum() for t in tiles).backward()
    assert all(torch.isfinite(p.grad).all() for p in tower.parameters() if p.grad is not None)
