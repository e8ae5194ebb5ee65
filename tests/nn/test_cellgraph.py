import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sigmma_sc.nn import pairs
from sigmma_sc.nn.cellgraph import AttentionPool, CellGraphTower, WeightedSAGE
from sigmma_sc.nn.layout import Limits, cell_layout
from sigmma_sc.tissue.tiling import block_of

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


def dense(tower, x, layout, sample=None):
    """Edge weights of each scale as a matrix over all cells: row v holds the sources of v."""
    out = []
    for source, target, weight in tower.weights(x, layout, sample):
        matrix = torch.zeros(len(x), len(x), dtype=x.dtype)
        matrix[target, source] = weight.detach()
        out.append(matrix)
    return out


def mean_of(weights, h):
    """Mean of rows of h by weights of rows."""
    total = sum((w * h[u] for u, w in weights.items()), torch.zeros(h.shape[1], dtype=h.dtype))
    return total / sum(weights.values(), torch.zeros((), dtype=h.dtype)).clamp_min(1)


def reference(tower, x, indptr, blocks, source, target, drawn=None):
    """The method written out cell by cell and pair by pair; every pair weighs its probability, or what was drawn."""
    n, tile = len(x), np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    edges = [{} for _ in range(n)]
    for s, t in zip(source, target, strict=True):
        edges[t][s] = 1.0
    spatial = [set(e) for e in edges]
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
                    added = torch.sigmoid(hidden @ sampler.weight + sampler.bias)
                    if drawn is not None:  # straight through: the value of the draw, the gradient of its soft value
                        added = drawn(k, v, u, hidden @ sampler.weight + sampler.bias)
                    absent = 1 - edges[v].get(u, 0.0)
                    new[v][u] = 1 - absent * (1 - added)
            edges = new
        rows = []
        for v in range(n):
            near = {u: w for u, w in edges[v].items() if layer.added is None or u in spatial[v]}
            update = layer.root(h[v]) + layer.neighbours(mean_of(near, h))
            if layer.added is not None:
                others = {u: w for u, w in edges[v].items() if u not in spatial[v]}
                update = update + layer.added(mean_of(others, h))
            rows.append(torch.nn.functional.gelu(update))
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


def scattered(tower):
    """Scores far apart, so that probabilities differ between pairs."""
    with torch.no_grad():
        for sampler in tower.samplers:
            sampler.target.weight.mul_(5), sampler.source.weight.mul_(5), sampler.weight.normal_()
    return tower


SIZES = [0, 1, 30, 2, 17, 30, 1]


@pytest.mark.parametrize("relational", [False, True])
@pytest.mark.parametrize("max_pairs", [1, 60, 2**18])
def test_tower_equals_the_method_written_out(max_pairs, relational):
    x, indptr, blocks, source, target, _ = batch_of(SIZES)
    torch.manual_seed(0)
    tower, x = scattered(CellGraphTower(6, 8, relational=relational)).eval().double(), x.double()
    with torch.no_grad():
        layout = cell_layout(indptr, blocks, source, target, limits=Limits((1.5, 1.25), max_pairs))
        cells, tiles = tower(x, layout)
        ref_cells, ref_tiles, sets = reference(tower, x, indptr, blocks, source, target)
        found = dense(tower, x, layout)
    weights = np.array([float(w) for edges in sets[1] for w in edges.values()])
    assert weights.min() < 0.3 < 0.7 < np.sort(weights[weights < 1])[-1]
    for a, b in zip(cells + tiles, ref_cells + ref_tiles, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    assert (tiles[0][0] == 0).all()  # an empty tile pools to zero
    for matrix, edges in zip(found, sets, strict=True):
        expected = torch.zeros(len(x), len(x), dtype=x.dtype)
        for v, sources in enumerate(edges):
            for u, w in sources.items():
                expected[v, u] = w
        torch.testing.assert_close(matrix, expected, atol=1e-12, rtol=1e-10)
    single = tower.float()(x.float(), layout)
    for a, b in zip(single[0] + single[1], cells + tiles, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("relational", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_equal_those_of_the_method_written_out(training, relational, monkeypatch):
    """Of all parameters and of the input, with the draws given."""
    x, indptr, blocks, source, target, tile = batch_of([0, 1, 9, 12], seed=2)
    layout = cell_layout(indptr, blocks, source, target)
    torch.manual_seed(0)
    tower = CellGraphTower(6, 5, dropout=0.0, edge_temperature=0.7, relational=relational)
    tower = scattered(tower).train(training).double()
    x = x.double()
    # Uniform noise by pair: whatever bucket asks, it gets that of its pairs.
    n = len(x)
    noise = {k: torch.rand(n + 1, n + 1, dtype=x.dtype) for k in (1, 2)}
    asked = []

    def uniform(x):
        k, bucket = asked.pop(0)
        cell = layout.blocks(layout.cell, bucket)
        return noise[k][cell[:, :, None], cell[:, None, :]]

    monkeypatch.setattr(pairs, "uniform_like", uniform)

    def drawn(k, v, u, logit):
        noisy = logit + torch.logit(noise[k][v, u])
        soft = torch.sigmoid(noisy / 0.7)
        # Exactly 0 or 1, since a sum of weights may equal the bound at which the gradient of the mean changes.
        return (noisy > 0).to(soft) + (soft - soft.detach())

    gradients = []
    for which in ("ours", "written out"):
        asked[:] = [(k, bucket) for k in (1, 2) for bucket in layout.active_buckets(k)]
        tower.zero_grad()
        inputs = x.clone().requires_grad_()
        if which == "ours":
            cells, tiles = tower(inputs, layout)
        else:
            cells, tiles, _ = reference(tower, inputs, indptr, blocks, source, target, drawn if training else None)
        weighed = sum((h * torch.linspace(0, 1, h.shape[1], dtype=h.dtype)).square().sum() for h in cells)
        (1000 * (weighed + sum(z[2:].square().sum() for z in tiles))).backward()
        gradients.append({"x": inputs.grad, **{name: p.grad.clone() for name, p in tower.named_parameters()}})
    ours, expected = gradients
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-9, rtol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    for k in (0, 1):
        assert expected[f"samplers.{k}.target.weight"].abs().max() > 0.1


def test_a_batch_of_empty_tiles_alone():
    """Bare glass may fill whole batches of inference."""
    x, indptr, blocks, source, target, _ = batch_of([0, 0, 0])
    cells, tiles = CellGraphTower(6, 8)(x, cell_layout(indptr, blocks, source, target))
    assert [h.shape for h in cells] == [(0, 8)] * 3
    assert all((z == 0).all() and z.shape == (3, 8) for z in tiles)


def test_a_single_scale_has_its_spatial_edges_alone():
    x, indptr, blocks, source, target, _ = batch_of([20, 0, 7])
    tower = CellGraphTower(6, 8, n_scales=1)
    (matrix,) = dense(tower, x, cell_layout(indptr, blocks[:1], source, target))
    expected = torch.zeros(len(x), len(x))
    expected[target, source] = 1.0
    assert torch.equal(matrix, expected)


@pytest.mark.parametrize("training", [False, True])
def test_edges_are_nested_and_never_cross_a_block(training):
    x, indptr, blocks, source, target, tile = batch_of([25, 40], seed=3)
    tower = CellGraphTower(6, 8, dropout=0.0).train(training)
    weights = dense(tower, x, cell_layout(indptr, blocks, source, target))
    kept = [w > 1e-6 for w in weights]
    micro = torch.zeros(len(x), len(x), dtype=torch.bool)
    micro[target, source] = True
    assert torch.equal(kept[0], micro)
    for k in range(3):
        block = torch.from_numpy(tile * 100 + blocks[k])
        assert not (kept[k] & (block[:, None] != block[None])).any()
        assert not kept[k].diagonal().any()
    assert (weights[1][kept[0]] == 1).all()
    assert (weights[2] >= weights[1] * (1 - 1e-6)).all() or training
    if training:  # drawn, not weighed
        assert all(((w - w.round()).abs() < 1e-6).all() for w in weights)
        assert weights[0].sum() < weights[1].sum() < weights[2].sum()
        assert set(map(tuple, kept[0].nonzero().tolist())) < set(map(tuple, kept[2].nonzero().tolist()))


def test_embeddings_permute_with_the_cells():
    x, indptr, blocks, source, target, _ = batch_of([20, 33], seed=1)
    tower = CellGraphTower(6, 8).eval()
    order = np.r_[np.random.default_rng(2).permutation(20), 20 + np.random.default_rng(3).permutation(33)]
    place = np.argsort(order)
    a, za = tower(x, cell_layout(indptr, blocks, source, target))
    b, zb = tower(x[order], cell_layout(indptr, blocks[:, order], place[source], place[target]))
    for k in range(3):
        torch.testing.assert_close(a[k][order], b[k], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(za[k], zb[k], atol=1e-5, rtol=1e-4)


def test_tiles_do_not_see_each_other():
    x, indptr, blocks, source, target, _ = batch_of([20, 33], seed=1)
    tower = CellGraphTower(6, 8).eval()
    first = target < 20
    alone, _ = tower(x[:20], cell_layout(indptr[:2], blocks[:, :20], source[first], target[first]))
    both, _ = tower(x, cell_layout(indptr, blocks, source, target))
    for k in range(3):
        torch.testing.assert_close(alone[k], both[k][:20], atol=1e-6, rtol=1e-5)


def test_full_and_none_are_the_ablations():
    x, indptr, blocks, source, target, _ = batch_of([25], seed=4)
    layout = cell_layout(indptr, blocks, source, target)
    full = dense(CellGraphTower(6, 8, edges="full").eval(), x, layout)
    assert torch.equal(full[2], 1 - torch.eye(25))
    block = torch.from_numpy(blocks[1])
    assert torch.equal(full[1], (block[:, None] == block[None]).float() - torch.eye(25))
    none = dense(CellGraphTower(6, 8, edges="none").eval(), x, layout)
    assert torch.equal(none[0], none[2])
    assert none[0].sum() == len(source)


def test_symmetric_edges_are_drawn_for_both_directions():
    x, indptr, blocks, _, _, _ = batch_of([25], seed=4)
    nothing = np.zeros(0, np.int64)
    layout = cell_layout(indptr, blocks, nothing, nothing)
    torch.manual_seed(0)
    tower = scattered(CellGraphTower(6, 8, symmetric=True, dropout=0.0)).train()
    for weights in (dense(tower, x, layout)[2], dense(tower, x, layout, sample=False)[2]):
        torch.testing.assert_close(weights, weights.T, rtol=0, atol=1e-6)
        assert 0 < weights.sum() < 25 * 24
    directed = scattered(CellGraphTower(6, 8, dropout=0.0)).train()
    weights = dense(directed, x, layout)[2]
    assert (weights != weights.T).any()
    tower(x, layout)[1][2].square().sum().backward()
    assert tower.samplers[1].source.weight.grad.abs().max() > 0


def test_relations_need_added_edges():
    layers = CellGraphTower(6, 8, relational=True).layers
    assert [layer.added is None for layer in layers] == [True, False, False]
    assert all(layer.added is None for layer in CellGraphTower(6, 8, edges="none", relational=True).layers)


def test_sampling_may_be_asked_for_and_may_be_left_out():
    x, indptr, blocks, source, target, _ = batch_of([25], seed=4)
    layout = cell_layout(indptr, blocks, source, target)
    tower = CellGraphTower(6, 8, dropout=0.0)
    with torch.no_grad():
        weighed = tower.eval()(x, layout)[0][2]
        assert torch.equal(tower.train()(x, layout, sample=False)[0][2], weighed)
        one, two = (tower.eval()(x, layout, sample=True)[0][2] for _ in range(2))
    assert not torch.equal(one, weighed)
    assert not torch.equal(one, two)


@pytest.mark.parametrize("training", [False, True])
def test_no_value_is_looked_at(training):
    """Tensors without values tell whatever would have to wait for a GPU: shapes that depend on data, and numbers read from it."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )

    x, indptr, blocks, source, target, _ = batch_of([20, 0, 33], seed=1)
    layout = cell_layout(indptr, blocks, source, target)
    tower = CellGraphTower(6, 8).train(training)
    mode = FakeTensorMode()
    parameters = {name: mode.from_tensor(p) for name, p in tower.named_parameters()}
    fields = {
        name: mode.from_tensor(getattr(layout, name)) for name in ("cell", "inner_block", "slot", "micro", "tile")
    }
    with mode:
        cells, tiles = torch.func.functional_call(tower, parameters, (mode.from_tensor(x), replace(layout, **fields)))
        loss = sum(z.square().sum() for z in tiles)
        if training:
            torch.autograd.grad(loss, list(parameters.values()))
        for look in (lambda: cells[0][cells[0] > 0], lambda: cells[0].nonzero(), lambda: tiles[0].sum().item()):
            with pytest.raises((DynamicOutputShapeException, DataDependentOutputException)):
                look()
    assert cells[2].shape == (53, 8)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True])
def test_half_precision_runs_and_is_close(training, kind):
    x, indptr, blocks, source, target, _ = batch_of([20, 0, 33, 1, 2], seed=1)  # cells alone in their block among them
    layout = cell_layout(indptr, blocks, source, target)
    torch.manual_seed(0)
    tower = CellGraphTower(6, 8, dropout=0.0)
    whole = tower(x, layout, sample=False)[1][2]
    with torch.autocast("cpu", kind):
        half = tower(x, layout, sample=False)[1][2]
        drawn = tower.train(training)(x, layout)[1][2]
    torch.testing.assert_close(half.float(), whole, atol=0.03, rtol=0.05)
    drawn.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in tower.parameters() if p.grad is not None)


def test_mean_by_hand():
    """One cell hears two whole neighbours, one a quarter of one, and one nobody."""
    layer, h = WeightedSAGE(2, 2), torch.tensor([[2.0, 4.0], [6.0, 8.0], [1.0, 1.0]])
    with torch.no_grad():
        layer.root.weight.zero_(), layer.root.bias.zero_(), layer.neighbours.weight.copy_(torch.eye(2))
    weights = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.25, 0.0], [0.0, 0.0, 0.0]])
    got = layer(h, weights @ torch.cat([h, torch.ones(3, 1)], 1))
    expected = torch.nn.functional.gelu(torch.tensor([[4.0, 6.0], [1.5, 2.0], [0.0, 0.0]]))
    torch.testing.assert_close(got, expected)


def test_cells_without_a_neighbour_do_not_outweigh_the_others():
    """The gradient of an edge to a cell that has none is what that edge would bring, however many such cells there are."""
    torch.manual_seed(0)
    # Blocks of two or three cells and no spatial edge: a draw often leaves a cell without any neighbour.
    x, indptr, blocks, _, _, _ = batch_of([12] * 40, seed=1)
    nothing = np.zeros(0, np.int64)
    tower = CellGraphTower(6, 8, dropout=0.0)
    cells, _ = tower(x, cell_layout(indptr, blocks, nothing, nothing))
    alone = (cells[1] == torch.nn.functional.gelu(tower.layers[1].root(cells[0]))).all(1)
    assert 20 < alone.sum() < 400
    cells[1].square().mean().backward()
    largest = max(float(p.grad.abs().max()) for p in tower.samplers[0].parameters())
    assert 0 < largest < 0.1 * float(tower.layers[1].root.weight.grad.abs().max())


def test_weighted_sage_with_unit_weights_equals_pyg():
    from torch_geometric.nn import SAGEConv

    x, _, _, source, target, _ = batch_of([30], seed=5)
    ours, theirs = WeightedSAGE(6, 8), SAGEConv(6, 8, aggr="mean", root_weight=True)
    theirs.lin_l.weight.data = ours.neighbours.weight.data
    theirs.lin_l.bias.data.zero_()
    theirs.lin_r.weight.data = ours.root.weight.data
    weights = torch.zeros(30, 30)
    weights[target, source] = 1.0
    got = ours(x, weights @ torch.cat([x, torch.ones(30, 1)], 1))
    edges = torch.from_numpy(np.stack([source, target]))
    expected = torch.nn.functional.gelu(theirs(x, edges) + ours.root.bias)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_evaluation_weighs_edges_by_how_often_they_are_drawn():
    x, indptr, blocks, source, target, _ = batch_of([12], seed=7)
    layout = cell_layout(indptr, blocks, source, target)
    torch.manual_seed(0)
    tower = CellGraphTower(6, 8, dropout=0.0)
    with torch.no_grad():
        for layer in tower.layers:  # else what is drawn at meso would change what may be drawn at macro
            layer.neighbours.weight.zero_()
        expected = dense(tower.eval(), x, layout)
        draws = [dense(tower.train(), x, layout) for _ in range(2000)]
    for k in (1, 2):
        drawn = torch.stack([graphs[k] for graphs in draws]).mean(0)
        assert (drawn - expected[k]).abs().max() < 4.5 * 0.5 / 2000**0.5  # four and a half standard errors
        assert 0 < expected[k][expected[k] > 0].min() < 0.9


def test_straight_through_gradient_reaches_the_edge_mlp():
    x, indptr, blocks, source, target, _ = batch_of([30, 30], seed=6)
    torch.manual_seed(0)
    tower = CellGraphTower(6, 8).train()
    _, tiles = tower(x, cell_layout(indptr, blocks, source, target))
    (tiles[2] ** 2).sum().backward()
    for sampler in tower.samplers:
        for name in ("target.weight", "source.weight", "weight", "bias"):
            assert sampler.get_parameter(name).grad.abs().max() > 0, name


def test_attention_pool_by_hand():
    pool = AttentionPool(2)
    pool.gate.weight.data = torch.tensor([[1.0, 0.0]])
    pool.gate.bias.data.zero_()
    h = torch.tensor([[0.0, 1.0], [np.log(3.0), 5.0], [100.0, 7.0]], dtype=torch.float32)
    got = pool(h, torch.tensor([0, 0, 2]), 3)
    torch.testing.assert_close(got[0, 1], torch.tensor(0.25 * 1 + 0.75 * 5))
    torch.testing.assert_close(got[2], h[2])
    assert (got[1] == 0).all()


def test_empty_tiles_give_no_nan_gradient():
    x, indptr, blocks, source, target, _ = batch_of([0, 3, 0])
    tower = CellGraphTower(6, 8).train()
    _, tiles = tower(x, cell_layout(indptr, blocks, source, target))
    sum(t.sum() for t in tiles).backward()
    assert all(torch.isfinite(p.grad).all() for p in tower.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_pooling_of_many_cells_adds_in_single_precision(kind):
    """1,600 cells a tile; added in half, or stored in it at the end, the error is above 2e-4."""
    torch.manual_seed(0)
    pool, tile = AttentionPool(32), torch.arange(2).repeat_interleave(1600)
    h = torch.nn.functional.gelu(torch.randn(3200, 32) * 0.5 + 0.3).to(kind)
    expected = copy.deepcopy(pool).double()(h.double(), tile, 2)
    with torch.autocast("cpu", kind):
        found = pool(h, tile, 2)
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < 2e-4


class Additions(TorchDispatchMode):
    """Types in which rows are added one by one to others, as a GPU does in any order, rounding each time."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if "index_add" in name or "scatter_add" in name or "index_put" in name or "embedding_dense" in name:
            self.types.add(args[0].dtype)
        return out


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"edges": "full", "relational": True}], ids=str)
def test_forward_and_backward_add_no_rows_in_half(options):
    x, indptr, blocks, source, target, _ = batch_of([20, 0, 33], seed=1)
    tower = CellGraphTower(6, 8, **options)
    with Additions() as additions:
        with torch.autocast("cpu", torch.bfloat16):
            tiles = tower(x, cell_layout(indptr, blocks, source, target))[1]
        sum(z.float().square().sum() for z in tiles).backward()
    assert additions.types == {torch.float32}  # of the pooling


def test_gradient_of_many_cells_in_half_is_that_of_double_precision():
    """1,600 cells a tile, every pair weighed: rounding of single cells averages out."""
    x, indptr, blocks, source, target, _ = batch_of([1600], seed=1)
    layout = cell_layout(indptr, blocks, source, target)
    torch.manual_seed(0)
    tower = CellGraphTower(6, 8, dropout=0.0)
    weights = torch.randn(3, 1, 8)

    def gradient(tower, x, half):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            tiles = tower(x, layout, sample=False)[1]
        sum((z * w).sum() for z, w in zip(tiles, weights, strict=True)).backward()
        return torch.cat([p.grad.double().flatten() for p in tower.parameters()])

    expected = gradient(copy.deepcopy(tower).double(), x.double(), False)
    single = gradient(copy.deepcopy(tower), x, False)
    half = gradient(tower, x, True)
    assert (single - expected).norm() / expected.norm() < 1e-5
    assert (half - expected).norm() / expected.norm() < 5e-3
