import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from sigmma_sc.features.tensors import GraphTensors
from sigmma_sc.nn.layout import Limits, cell_layout, limits_of
from sigmma_sc.tissue.tiling import Tiles, block_of

NONE = np.zeros(0, np.int64)


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


def candidates(layout, n):
    """How often each ordered pair of real cells is a candidate, by shell, ``(n_shells, n, n)``; row v, column u."""
    out = np.zeros((len(layout.slot), n + 1, n + 1))
    for bucket in layout.buckets:
        cell = layout.blocks(layout.cell, bucket).numpy()
        found = layout.candidates(bucket).numpy()
        assert set(np.unique(found)) <= {0.0, 1.0}
        np.add.at(out[bucket.shell], (cell[:, :, None], cell[:, None, :]), found)
    return out[:, :n, :n]


def test_by_hand():
    """A tile with cells 0, 1 in one meso block and 2 in another, and a tile with one cell."""
    layout = cell_layout(np.array([0, 3, 4]), np.array([[0, 1, 15, 0], [0, 0, 3, 0], [0, 0, 0, 0]]), NONE, NONE)
    assert [(b.shell, b.n, b.size, b.start) for b in layout.buckets] == [(0, 1, 2, 0), (1, 1, 3, 2)]
    assert layout.cell.tolist() == [0, 1, 0, 1, 2]  # nothing of the lone cell
    assert layout.slot.tolist() == [[0, 1, 5, 5], [2, 3, 4, 5]]  # 5 slots: what has none finds the row of zeros
    assert layout.tile.tolist() == [0, 0, 0, 1]
    assert layout.n_tiles == 2
    first, second = candidates(layout, 4)
    assert np.argwhere(first).tolist() == [[0, 1], [1, 0]]
    assert np.argwhere(second).tolist() == [[0, 2], [1, 2], [2, 0], [2, 1]]


@pytest.mark.parametrize("grids", [(4, 2, 1), (6, 3, 1), (8, 4, 2, 1), (2, 1)])
@pytest.mark.parametrize("max_pairs", [1, 300, 2**18])
def test_every_pair_of_a_block_is_a_candidate_once(grids, max_pairs):
    counts = [0, 1, 40, 2, 90, 40, 7]
    indptr, blocks, source, target = draw(counts, grids)
    layout = cell_layout(indptr, blocks, source, target, limits=Limits((1.5, 1.25), max_pairs))
    n, tile = sum(counts), np.repeat(np.arange(len(counts)), counts)
    found = candidates(layout, n).cumsum(0)
    for shell, block in enumerate(blocks[1:]):
        same = (tile[:, None] == tile) & (block[:, None] == block) & ~np.eye(n, dtype=bool)
        np.testing.assert_array_equal(found[shell], same)
    for bucket in layout.buckets:
        assert bucket.n == 1 or bucket.n * bucket.size**2 <= max_pairs
    # What a cell is sent to is where it is collected from.
    cell = np.append(layout.cell.numpy(), -1)
    for slots in layout.slot.numpy():
        there = slots < len(cell) - 1
        np.testing.assert_array_equal(cell[slots[there]], np.flatnonzero(there))


def test_spatial_edges_are_where_they_belong():
    indptr, blocks, source, target = draw([0, 1, 40, 2, 90, 40, 7])
    layout = cell_layout(indptr, blocks, source, target)
    n = int(indptr[-1])
    expected, found = np.zeros((2, n + 1, n + 1))
    expected[target, source] = 1
    for bucket in layout.active_buckets(0):
        cell = layout.blocks(layout.cell, bucket).numpy()
        np.add.at(found, (cell[:, :, None], cell[:, None, :]), layout.spatial(bucket, torch.float32).numpy())
    np.testing.assert_array_equal(found, expected)


def test_blocks_of_like_size_lie_together():
    """A dense tile does not set the cost of the others: padding stays within the range of a bucket."""
    counts = [400, *range(5, 60)]
    indptr, blocks, source, target = draw(counts)
    layout = cell_layout(indptr, blocks, source, target)
    slots = sum(b.n * b.size**2 for b in layout.buckets if b.shell == 1)
    assert slots < 1.25**2 * sum(n**2 for n in counts)
    assert slots < 0.1 * len(counts) * 400**2
    for bucket in layout.buckets:
        real = (layout.blocks(layout.cell, bucket) < sum(counts)).sum(1)
        assert real.max() == bucket.size
        assert bucket.size <= max(4, (1.5, 1.25)[bucket.shell] * real.min())


def test_a_cell_in_two_tiles_keeps_to_each():
    """Overlapping tiles of one batch: cell 1 stands in both, with another block and other company in each."""
    xy = np.array([[10.0, 10.0], [70.0, 10.0], [130.0, 10.0]])
    tiles = Tiles(
        128.0, np.array([[0.0, 0.0], [64.0, 0.0]]), np.zeros(2, int), np.array([0, 2, 4]), np.array([0, 1, 1, 2])
    )
    adjacency = csr_matrix(np.ones((3, 3)) - np.eye(3))
    tensors = GraphTensors(xy, torch.arange(3.0)[:, None], adjacency, (4, 2, 1))
    batch = tensors.part(tiles, np.array([0, 1]))
    layout = batch["layout"]
    assert batch["x"].flatten().tolist() == [0, 1, 1, 2]
    assert layout.tile.tolist() == [0, 0, 1, 1]
    assert not layout.micro.any()  # neighbours, but in no case within 32 µm squares
    (shell,) = {bucket.shell for bucket in layout.buckets}
    assert shell == 1
    assert np.argwhere(candidates(layout, 4)[1]).tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]


def test_a_gpu_takes_fewer_and_larger_buckets(rng):
    counts = rng.integers(2, 60, 40)
    indptr = np.append(0, np.cumsum(counts))
    coarse = rng.integers(0, 4, counts.sum())
    blocks = np.stack([coarse * 4 + rng.integers(0, 4, counts.sum()), coarse, np.zeros_like(coarse)])
    none = np.zeros(0, np.int64)
    small, large = (
        cell_layout(indptr, blocks, none, none, limits_of(torch.device(kind))).buckets for kind in ("cpu", "cuda")
    )
    assert len(large) <= 0.75 * len(small)
    assert max(bucket.n for bucket in large) > max(bucket.n for bucket in small)
