import numpy as np
import pytest
from scipy.stats.qmc import discrepancy

from sigmma_sc.tissue.tiling import (
    block_of,
    covering_tiles,
    crops_of_tiles,
    lattice_tiles,
    quasi_random_shifts,
    shifted_tiles,
)


def members(tiles, t):
    return set(tiles.cells[tiles.indptr[t] : tiles.indptr[t + 1]].tolist())


def test_every_cell_under_the_image_is_in_its_own_tile(rng):
    xy = rng.uniform(-50, 1100, (3000, 2))
    tiles, own = covering_tiles(xy, 1000, 730, 128.3)
    inside = (xy >= 0).all(1) & (xy[:, 0] < 1000) & (xy[:, 1] < 730)
    np.testing.assert_array_equal(own >= 0, inside)
    for cell in np.flatnonzero(inside):
        assert cell in members(tiles, own[cell])
    assert (tiles.origins + 128.3 <= (1000 + 1e-6, 730 + 1e-6)).all()


def test_members_equal_brute_force(rng):
    xy = rng.uniform(0, 600, (500, 2))
    tiles = lattice_tiles(xy, 600, 600, 100, 50)
    assert len(tiles) == 11 * 11
    for t, origin in enumerate(tiles.origins):
        offset = xy - origin
        brute = np.flatnonzero(((offset >= 0) & (offset < 100)).all(1))
        assert members(tiles, t) == set(brute.tolist())


def test_tiles_of_a_phase_do_not_overlap(rng):
    tiles = lattice_tiles(rng.uniform(0, 600, (10, 2)), 600, 600, 100, 25)
    assert len(np.unique(tiles.phase)) == 16
    for phase in np.unique(tiles.phase):
        corners = tiles.origins[tiles.phase == phase]
        apart = np.abs(corners[:, None] - corners[None]).max(-1)
        assert apart[~np.eye(len(corners), dtype=bool)].min() >= 100 - 1e-9


def test_an_image_smaller_than_a_tile_has_one():
    tiles, own = covering_tiles(np.array([[5.0, 5.0], [60.0, 5.0]]), 50, 40, 128)
    assert len(tiles) == 1
    np.testing.assert_array_equal(own, [0, -1])


@pytest.mark.parametrize(
    ("xy", "grid", "block"),
    [
        ((0, 0), 4, 0),
        ((31.9, 0), 4, 0),
        ((32, 0), 4, 1),
        ((0, 64), 2, 2),
        ((127.9, 127.9), 4, 15),
        ((128.0, 128.0), 4, 15),
        ((77, 99), 1, 0),
    ],
)
def test_block_by_hand(xy, grid, block):
    assert block_of(np.array([xy], float), 128.0, grid)[0] == block


def test_shared_patches_are_read_once(rng):
    tiles = lattice_tiles(rng.uniform(0, 512, (10, 2)), 512, 512, 128, 64)
    crops, index = crops_of_tiles(tiles, (4, 2, 1))
    assert index.shape == (49, 21)
    # 16 x 16 micro, 7 x 7 macro, and meso patches at every 64 px: 8 x 8.
    assert len(crops) == 256 + 64 + 49
    np.testing.assert_allclose(crops[index[:, 20], :2], tiles.origins)
    np.testing.assert_allclose(crops[index[:, 5]], np.c_[tiles.origins + 32, np.full(49, 32)])


def test_tiles_turn_with_the_slide(rng):
    """Slide and cells turned by 90° together give the same tiles of the same cells."""
    xy = rng.uniform(0, 640, (800, 2))
    turned = np.c_[640 - xy[:, 1], xy[:, 0]]
    a, own_a = covering_tiles(xy, 640, 640, 128)
    b, own_b = covering_tiles(turned, 640, 640, 128)
    assert {frozenset(members(a, t)) for t in range(25)} == {frozenset(members(b, t)) for t in range(25)}
    same_a = own_a[:, None] == own_a[None]
    np.testing.assert_array_equal(same_a, own_b[:, None] == own_b[None])


def test_moved_grids_hold_every_chosen_cell_once(rng):
    xy = rng.uniform(0, 100, (300, 2))
    chosen = np.flatnonzero(xy[:, 0] < 80)
    tiles = shifted_tiles(xy, chosen, 16.0, np.array([3.0, 7.0]))
    assert sorted(tiles.cells) == list(chosen)
    for t in range(len(tiles)):
        members = tiles.cells[tiles.indptr[t] : tiles.indptr[t + 1]]
        assert len(members)  # no tile is empty
        inside = ((xy[chosen] >= tiles.origins[t]) & (xy[chosen] < tiles.origins[t] + 16)).all(axis=1)
        np.testing.assert_array_equal(members, chosen[inside])
    np.testing.assert_allclose((tiles.origins - (3, 7)) % 16, 0, atol=1e-9)


def test_tiles_taken_in_any_order_keep_their_cells(rng):
    tiles, _ = covering_tiles(rng.uniform(0, 500, (400, 2)), 500, 500, 90.0)
    which = np.array([7, 0, 35, 7, 12])
    taken = tiles.take(which)
    assert [members(taken, k) for k in range(5)] == [members(tiles, t) for t in which]
    np.testing.assert_array_equal(taken.origins, tiles.origins[which])
    assert len(tiles.take(np.empty(0, np.int64)).cells) == 0


@pytest.mark.parametrize("size", [(500, 500), (517, 733), (90, 1000), (40, 40)])
def test_covering_members_equal_brute_force_with_shifted_borders(rng, size):
    xy = rng.uniform(-20, 1020, (800, 2))
    tiles, _ = covering_tiles(xy, *size, 90.0)
    for t, origin in enumerate(tiles.origins):
        offset = xy - origin
        brute = np.flatnonzero(((offset >= 0) & (offset < 90 * (1 + 1e-9))).all(1))
        np.testing.assert_array_equal(tiles.cells[tiles.indptr[t] : tiles.indptr[t + 1]], brute)


def test_crops_of_no_tiles():
    tiles, _ = covering_tiles(np.empty((0, 2)), 100, 100, 50.0)
    crops, index = crops_of_tiles(tiles.take(np.empty(0, np.int64)), (2, 1))
    assert crops.shape == (0, 3)
    assert index.shape == (0, 5)


def test_quasi_random_shifts_are_worked_out_and_even():
    shifts = quasi_random_shifts(4)
    by_hand = [[0, 0], [0.754878, 0.569840], [0.509755, 0.139680], [0.264633, 0.709521]]
    np.testing.assert_allclose(shifts, by_hand, atol=1e-6)
    np.testing.assert_array_equal(quasi_random_shifts(16)[:4], shifts)
    # On a torus, as the offsets of a grid are: more even than most random draws, and than a lattice.
    lattice = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2) / 4
    drawn = [discrepancy(np.random.default_rng(seed).random((16, 2)), method="WD") for seed in range(100)]
    even = discrepancy(quasi_random_shifts(16), method="WD")
    assert even < np.quantile(drawn, 0.05)
    assert even < 0.5 * discrepancy(lattice, method="WD")
