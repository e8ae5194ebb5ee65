import numpy as np
import pytest

from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.cores import find_cores


def disks(rng, centres, radius=300.0, n=400):
    """Cells in disks, µm."""
    angle = rng.uniform(0, 2 * np.pi, (len(centres), n))
    reach = radius * np.sqrt(rng.uniform(0, 1, (len(centres), n)))
    xy = np.stack([np.cos(angle), np.sin(angle)], -1) * reach[..., None] + np.asarray(centres, float)[:, None]
    return xy.reshape(-1, 2)


@pytest.fixture
def array(rng):
    """Three rows of four cores that are not quite in line, in the order row by row."""
    column, row = np.meshgrid(np.arange(4), np.arange(3))
    centres = np.column_stack([column.ravel(), row.ravel()]) * 1000.0
    return disks(rng, centres + rng.uniform(-80, 80, centres.shape)), np.repeat(np.arange(12), 400)


def test_cores_of_an_array_are_numbered_row_by_row(array, rng):
    xy, truth = array
    order = rng.permutation(len(xy))
    np.testing.assert_array_equal(find_cores(xy[order] - 7000, 100, 100), truth[order])


@pytest.mark.parametrize("degrees", [-4, 4])
def test_an_array_that_is_turned_a_little_keeps_its_order(array, degrees):
    xy, truth = array
    angle = np.deg2rad(degrees)
    turned = xy @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    np.testing.assert_array_equal(find_cores(turned, 100, 100), truth)


def test_stray_cells_and_small_groups_are_in_no_core(array, rng):
    xy, truth = array
    stray = [[500.0, 500.0], [1500.0, 500.0]]
    debris = disks(rng, [[2500, 1500]], radius=40, n=99)
    found = find_cores(np.concatenate([stray, debris, xy]), 100, 100)
    assert (found[:101] == -1).all()
    np.testing.assert_array_equal(found[101:], truth)


@pytest.mark.parametrize(("distance", "n_cores"), [(60, 1), (85, 1), (115, 2), (200, 2)])
def test_the_gap_is_between_cells_not_centres(distance, n_cores):
    x, y = np.meshgrid(np.arange(0, 401, 20.0), np.arange(0, 401, 20.0))
    square = np.column_stack([x.ravel(), y.ravel()])
    found = find_cores(np.concatenate([square, square + [400 + distance, 0]]), 100, 10)
    assert found.max() + 1 == n_cores


def test_a_chain_of_cells_joins_two_cores(rng):
    two = disks(rng, [[0, 0], [1000, 0]])
    assert find_cores(two, 100, 100).max() == 1
    bridge = np.column_stack([np.arange(250, 760, 60.0), np.zeros(9)])
    assert find_cores(np.concatenate([two, bridge]), 100, 100).max() == 0


@pytest.mark.parametrize(("gap", "far"), [(0.05, 0), (100, 1e8)])
def test_a_gap_or_a_stray_cell_that_would_take_all_memory_is_told(rng, gap, far):
    xy = np.r_[rng.uniform(0, 2000, (500, 2)), [[far, far]]]
    with pytest.raises(SetupError, match=f"gap={gap:g} is too small for cells that lie"):
        find_cores(xy, gap, 10)


def test_a_ring_is_one_core_and_no_cells_are_none():
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    assert set(find_cores(500 * np.column_stack([np.cos(angle), np.sin(angle)]), 100, 50)) == {0}
    assert len(find_cores(np.empty((0, 2)), 100, 50)) == 0
    assert find_cores(np.zeros((3, 2)), 100, 5).tolist() == [-1] * 3
