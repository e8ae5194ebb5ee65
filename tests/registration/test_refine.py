import numpy as np

from sigmma_sc.registration.explain import explain
from sigmma_sc.registration.pose import displacement, nudged, scale_of, spread
from sigmma_sc.registration.refine import refine


def test_a_pose_half_a_square_off_is_brought_back(rng, section):
    squares, image, pose = section(rng)
    start = nudged(pose, np.array([15.0, -12, 10, -8]), *spread(squares.xy))
    found = refine(squares, image, start, (0.97, 1.03), 12.0, 0.1)
    assert displacement(start, pose, squares.xy) > 20
    assert displacement(found.pose, pose, squares.xy) < 2
    assert found.score >= explain(squares, image, pose).score


def test_scales_beyond_the_limits_are_not_taken(rng, section):
    squares, image, pose = section(rng)
    found = refine(squares, image, pose, (0.97, 1.0), 12.0, 0.1)
    assert scale_of(found.pose) < 1.001
    assert np.linalg.det(found.pose[:2, :2]) < 0
