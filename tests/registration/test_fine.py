from dataclasses import replace

import numpy as np
import pytest

from sigmma_sc.registration.fine import WindowCurves, _cubic, _curve, prefers_affine, window_curves
from sigmma_sc.registration.pose import displacement, nudged, spread
from sigmma_sc.tissue.setup import slides_of


@pytest.fixture
def slide(tiny):
    return slides_of(tiny)[0]


def paraboloids(rng, truth, n=30, noise=0.0):
    """Curves of ``n`` windows over 2 × 2 mm that peak where ``truth`` takes each window, seen from the identity."""
    middle = rng.uniform(0, 2000, (n, 2))
    peak = middle @ truth[:2, :2].T + truth[:2, 2] - middle + noise * rng.normal(size=(n, 2))
    x, y = np.meshgrid(np.arange(-15, 16.0), np.arange(-15, 16.0))
    apart = (x - peak[:, 0, None, None]) ** 2 + (y - peak[:, 1, None, None]) ** 2
    return WindowCurves(np.eye(3), middle, np.exp(-apart / 18).astype(np.float32), np.ones(n, np.int64), 1.0)


def test_a_curve_is_the_sum_of_the_stain_at_every_shift(rng):
    stain = rng.normal(size=(20, 18)).astype(np.float32)
    place, weight = rng.integers(0, 12, (6, 2)), rng.normal(size=6)
    expected = np.zeros((7, 7))
    for (x, y), w in zip(place, weight, strict=True):
        expected += w * stain[y : y + 7, x : x + 7]
    np.testing.assert_allclose(_curve(stain, place, weight, 3), expected, atol=1e-5)


def test_cubic_weights_sum_to_one_and_keep_a_line(rng):
    offset = rng.uniform(0, 1, 9)
    weights = _cubic(offset)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights @ np.arange(-1, 3), offset, atol=1e-12)


def test_the_pose_under_which_the_windows_peak(rng):
    truth = nudged(np.eye(3), np.array([3.3, -2.7, 2.1, 1.4]), np.array([1000.0, 1000]), 800.0)
    curves = paraboloids(rng, truth)
    found = curves.best_pose(np.eye(3), 4, 3.0)
    assert displacement(found, truth, curves.middle) < 0.05
    assert curves.height(truth) == pytest.approx(1, abs=0.01)
    assert not prefers_affine(curves, found, 0)


def test_a_stretched_section_needs_an_affine(rng):
    truth = nudged(np.eye(3), np.array([1.0, 0, 0, 0, 4.0, 2.0]), np.array([1000.0, 1000]), 800.0)
    curves = paraboloids(rng, truth)
    similar = curves.best_pose(np.eye(3), 4, 3.0)
    assert prefers_affine(curves, similar, 0)
    assert displacement(curves.best_pose(similar, 6, 1.0), truth, curves.middle) < 0.05
    assert displacement(similar, truth, curves.middle) > 2


def test_the_expected_error_is_about_the_real_one(rng):
    """Peaks that scatter by 1 µm along each axis, in 30 windows: 4 parameters have an error of √(4/30) µm."""
    stated, real = [], []
    for seed in range(6):
        curves = paraboloids(rng, np.eye(3), noise=1.0)
        found = curves.best_pose(np.eye(3), 4, 1.0)
        stated.append(curves.split_error(found, 4, seed))
        real.append(displacement(found, np.eye(3), curves.middle))
    assert np.mean(stated) == pytest.approx(np.sqrt(4 / 30), rel=0.4)
    assert np.mean(stated) == pytest.approx(np.mean(real), rel=0.5)


def test_cells_are_put_back_on_their_nuclei(slide):
    xy = slide.xy * slide.microns_per_pixel
    off = nudged(np.eye(3), np.array([4.0, -3, 2, 2]), *spread(xy))
    wide = window_curves(slide, off, 24.0, 4.0, None, 20, 0)
    start = off.copy()
    start[:2, 2] += wide.common_shift()
    pose = wide.best_pose(start, 4, 3.0)
    pose = window_curves(slide, pose, 12.0, 1.5, None, 20, 0).best_pose(pose, 4, 1.0)
    assert displacement(off, np.eye(3), xy) > 5
    assert displacement(pose, np.eye(3), xy) < 0.3


def test_windows_of_few_cells_are_left_out(slide):
    few = replace(slide, xy=slide.xy[::40], rows=slide.rows[::40])
    assert len(window_curves(few, np.eye(3), 12.0, 1.5, None, 20, 0)) == 0
