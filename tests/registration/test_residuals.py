import numpy as np
import pytest

from sigmma_sc.registration.fine import WindowCurves
from sigmma_sc.registration.held_out import blocks_of
from sigmma_sc.registration.pose import similarity
from sigmma_sc.registration.residuals import Residuals, residuals_of_blocks, residuals_of_windows


def test_residuals_of_windows_are_their_own_peaks(rng):
    """One window peaks off the middle, one is noise alone."""
    x, y = np.meshgrid(np.arange(-12, 13.0), np.arange(-12, 13.0))
    peak = np.exp(-((x - 2.3) ** 2 + (y + 1.6) ** 2) / 8) + 0.01 * rng.normal(size=x.shape)
    curves = np.stack([peak, rng.normal(size=x.shape)]).astype(np.float32)
    pose = similarity(0, 1, False, (0, 0), (100, 0))
    found = residuals_of_windows(WindowCurves(pose, np.array([[5.0, 6], [7, 8]]), curves, np.array([9, 9]), 0.5))
    np.testing.assert_allclose(found.xy, [[105, 6]])
    np.testing.assert_allclose(found.shift, [[1.15, -0.8]], atol=0.1)
    assert found.median == pytest.approx(np.hypot(1.15, 0.8), abs=0.1)


def test_a_displaced_part_is_seen_where_it_is(rng, section):
    """Squares of the right half are 15 µm off along x; the left ones are where they belong."""
    squares, image, pose = section(rng, noise=0.2)
    place = squares.xy @ pose[:2, :2].T + pose[:2, 2]
    right = place[:, 0] > 800
    inverse = np.linalg.inv(pose)
    moved = place - np.outer(right, (15.0, 0))
    squares.xy[:] = moved @ inverse[:2, :2].T + inverse[:2, 2]
    found = residuals_of_blocks(squares, blocks_of(place, 300.0), image, pose)
    there = found.xy[:, 0] > 820
    assert there.sum() >= 4
    assert (~there).sum() >= 4
    np.testing.assert_allclose(np.median(found.shift[there], axis=0), (15, 0), atol=4)
    np.testing.assert_allclose(np.median(found.shift[found.xy[:, 0] < 780], axis=0), (0, 0), atol=4)


def test_no_residual_has_no_median():
    assert np.isnan(Residuals(np.empty((0, 2)), np.empty((0, 2))).median)
