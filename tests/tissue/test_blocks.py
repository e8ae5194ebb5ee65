import numpy as np
import pytest

from sigmma_sc.tissue import blocks
from sigmma_sc.tissue.blocks import plan_blocks


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 10)


def test_windows_end_with_the_block_of_their_last_pixel(small_blocks):
    # A grid of 2 × 3 blocks of 10 px; windows of 6 px: inside, over a side, over a corner, and in the lower right.
    low = np.array([[1, 1], [8, 2], [17, 7], [24, 14]])
    plan = plan_blocks(((10, 10), (10, 10, 10)), low, low + 6, 6)
    ends = {(b.row, b.column): b.windows.tolist() for b in plan}
    # The third window reaches from rows 7 to 12 and columns 17 to 22, so blocks (0, 1) to (1, 2) are needed.
    assert ends == {(0, 0): [0], (0, 1): [1], (0, 2): [], (1, 1): [], (1, 2): [2, 3]}
    need = {(b.row, b.column): (*b.need_low.tolist(), *b.need_high.tolist()) for b in plan}
    assert need[0, 0] == (1, 1, 10, 8)
    assert need[0, 1] == (10, 2, 20, 10)
    assert need[0, 2] == (20, 7, 23, 10)
    assert need[1, 2] == (20, 10, 30, 20)


def test_the_last_row_and_column_reach_over_the_edge(small_blocks):
    low = np.array([[18, 17]])
    (block,) = plan_blocks(((10, 10), (10, 10)), low, low + 5, 5)
    assert (block.low.tolist(), block.high.tolist()) == ([10, 10], [25, 25])
    assert (block.need_low.tolist(), block.need_high.tolist()) == ([18, 17], [23, 22])


def test_a_last_block_of_one_pixel_holds_the_windows_that_end_in_it(small_blocks):
    low = np.array([[9, 9], [3, 9]])
    plan = plan_blocks(((10, 1), (10, 1)), low, low + 2, 2)
    assert {(b.row, b.column): b.windows.tolist() for b in plan if len(b.windows)} == {(1, 0): [1], (1, 1): [0]}


def test_small_chunks_are_joined_and_strips_kept_low(small_blocks):
    low = np.array([[0, 0], [92, 92]])
    fine = plan_blocks(((3,) * 32, (4,) * 24), low, low + 2, 2)
    assert fine[0].high.tolist() == [12, 9]  # three chunks of 4 px make 10 px; 9 rows of 12 px are 100 px
    strips = plan_blocks(((1,) * 100, (100,)), low, low + 2, 2)
    assert strips[0].high.tolist() == [102, 2]  # no lower than the windows; the only column reaches over the edge


def test_every_window_lies_in_its_last_block_with_margins(rng):
    chunks = ((300,) * 30, (70,) * 130)
    low = rng.integers(-250, 9000, (5000, 2))
    high = low + rng.integers(1, 250, (5000, 1))
    plan = plan_blocks(chunks, low, high, 250)
    assert sorted(np.concatenate([b.windows for b in plan])) == list(range(5000))
    assert [(b.row, b.column) for b in plan] == sorted((b.row, b.column) for b in plan)
    for block in plan:
        assert (low[block.windows] >= block.low - 250).all()
        assert (high[block.windows] <= block.high).all()
        assert (block.low <= block.need_low).all()
        assert (block.need_high <= block.high).all()
