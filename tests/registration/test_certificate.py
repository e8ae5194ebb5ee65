import numpy as np
import pytest

from sigmma_sc.registration.certificate import (
    CANNOT_TELL,
    REGISTERED,
    curvature_error,
    evidence,
    halves_error,
    refusal,
)
from sigmma_sc.registration.coarse import Candidate
from sigmma_sc.registration.explain import explain
from sigmma_sc.registration.held_out import blocks_of, held_out
from sigmma_sc.registration.pose import displacement
from sigmma_sc.registration.refine import refine
from sigmma_sc.registration.squares import Squares


@pytest.fixture
def made(rng, section):
    squares, image, pose = section(rng)
    held = held_out(blocks_of(squares.xy, 144.0), 0)
    return squares, image, pose, held


def candidate(squares, image, pose, shift=(0, 0)):
    moved = pose.copy()
    moved[:2, 2] += shift
    return Candidate(moved, explain(squares, image, moved).score)


def test_a_right_pose_is_certified(made):
    squares, image, pose, held = made
    found = evidence(
        squares, held, image, candidate(squares, image, pose), candidate(squares, image, pose, (200, 0)), 0
    )
    assert found.verdict == REGISTERED
    assert found.r2_held_out > 0.5
    assert found.r2_shuffled < 0.05
    assert found.far_share < 0.2


def test_a_wrong_pose_is_not(made):
    squares, image, pose, held = made
    found = evidence(squares, held, image, candidate(squares, image, pose, (200, 90)), None, 0)
    assert found.verdict == CANNOT_TELL
    assert "held out" in found.reason or "shuffled" in found.reason


def test_a_far_pose_as_good_is_named(made):
    """Also where the best pose explains windows held out."""
    squares, image, pose, held = made
    best = candidate(squares, image, pose)
    found = evidence(
        squares, held, image, best, Candidate(candidate(squares, image, pose, (200, 0)).pose, 0.8 * best.score), 0
    )
    assert found.verdict == CANNOT_TELL
    assert "80%" in found.reason


def test_shuffled_expression_is_not_certified(made, rng):
    squares, image, pose, held = made
    mixed = Squares(squares.xy, squares.values[rng.permutation(len(squares))], squares.weight, squares.side)
    assert evidence(mixed, held, image, candidate(mixed, image, pose), None, 0).verdict == CANNOT_TELL


def test_a_refusal_has_no_numbers():
    found = refusal("too few")
    assert (found.verdict, found.reason) == (CANNOT_TELL, "too few")
    assert np.isnan([found.error, found.r2, found.nuclei]).all()


def test_expected_errors_are_of_the_size_of_the_real_one(rng, section):
    real, halves, curvature = [], [], []
    for seed in range(3):
        squares, image, pose = section(rng, noise=1.0)
        found = refine(squares, image, pose, (0.97, 1.03), 6.0, 0.05).pose
        blocks = blocks_of(squares.xy, 144.0)
        real.append(displacement(found, pose, squares.xy))
        halves.append(halves_error(squares, blocks, image, found, (0.97, 1.03), seed))
        curvature.append(curvature_error(squares, image, found, len(squares)))
    assert 0.4 * np.mean(real) < np.mean(halves) < 2.5 * np.mean(real)
    assert 0.2 * np.mean(real) < np.mean(curvature) < 2.5 * np.mean(real)


def test_curvature_is_infinite_without_a_maximum(made):
    squares, image, pose, _ = made
    assert curvature_error(squares, image, candidate(squares, image, pose, (40, 0)).pose, len(squares)) == np.inf
