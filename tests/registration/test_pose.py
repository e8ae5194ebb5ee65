import numpy as np
import pytest

from sigmma_sc.registration.pose import displacement, linear_part, nudged, scale_of, similarity, spread, to_pixels
from sigmma_sc.tissue.frame import apply_affine


def test_a_similarity_by_hand():
    """A quarter turn of mirrored points, twice as large: (1, 0) about (0, 0) goes to (0, -2) about (10, 20)."""
    pose = similarity(np.pi / 2, 2.0, True, (0, 0), (10, 20))
    np.testing.assert_allclose(apply_affine(pose, np.array([[1.0, 0.0], [0.0, 1.0]])), [[10, 18], [8, 20]], atol=1e-12)


@pytest.mark.parametrize("mirrored", [False, True])
def test_parts_of_a_similarity_are_those_it_was_made_of(mirrored):
    angle, scale, flag = linear_part(similarity(-2.5, 1.2, mirrored, (3, 4), (5, 6)))
    assert (angle, scale, flag) == (pytest.approx(-2.5), pytest.approx(1.2), mirrored)
    assert scale_of(similarity(-2.5, 1.2, mirrored, (3, 4), (5, 6))) == pytest.approx(1.2)


@pytest.mark.parametrize("which", range(6))
def test_a_nudge_moves_the_section_by_its_length(rng, which):
    """Root mean square over a round section: shears move points by as much as a turn or a scale does."""
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    xy = 500 * np.column_stack([np.cos(angle), np.sin(angle)]) + (70, -30)
    middle, radius = spread(xy)
    assert radius == pytest.approx(500)
    pose = similarity(1.0, 1.0, True, (0, 0), (300, 200))
    step = np.zeros(6)
    step[which] = 0.5
    assert displacement(nudged(pose, step, middle, radius), pose, xy) == pytest.approx(0.5, rel=1e-3)


def test_four_steps_keep_a_similarity():
    pose = nudged(similarity(1.0, 1.1, True, (0, 0), (3, 2)), np.array([5.0, 4, 3, 2]), np.array([10.0, 20]), 100.0)
    singular = np.linalg.svd(pose[:2, :2], compute_uv=False)
    assert singular[0] == pytest.approx(singular[1])


def test_a_pose_in_pixels_takes_pixels_where_that_in_microns_takes_microns(rng):
    pose = similarity(0.3, 0.9, False, (1, 2), (30, 40))
    xy = rng.uniform(0, 100, (5, 2))
    np.testing.assert_allclose(apply_affine(to_pixels(pose, 0.5), xy / 0.5) * 0.5, apply_affine(pose, xy))
