import numpy as np
import pytest

from sigmma_sc.registration.held_out import blocks_of, held_out, predicted_share
from sigmma_sc.registration.squares import Squares


def test_blocks_by_hand():
    xy = np.array([[0.0, 0], [9, 9], [11, 0], [0, 25], [12, 3]])
    blocks = blocks_of(xy, 10.0)
    assert blocks.tolist() == [0, 0, 1, 2, 1]


def test_a_quarter_of_the_blocks_is_held_out_whole():
    blocks = np.repeat(np.arange(40), 5)
    held = held_out(blocks, seed=3)
    assert held.sum() == 50
    assert set(held.reshape(40, 5).sum(axis=1)) == {0, 5}
    assert (held != held_out(blocks, seed=4)).any()


def test_right_poses_predict_what_was_held_out_and_wrong_ones_do_not(rng, section):
    squares, image, pose = section(rng)
    held = held_out(blocks_of(squares.xy, 144.0), 0)
    assert predicted_share(squares, held, image, pose) > 0.5
    wrong = pose.copy()
    wrong[:2, 2] += (300, 100)
    assert predicted_share(squares, held, image, wrong) < 0.1


def test_too_few_squares_predict_nothing(rng, section):
    squares, image, pose = section(rng)
    few = np.arange(len(squares)) < 10
    assert predicted_share(squares, few, image, pose) == 0


def test_the_share_is_that_of_an_exact_mixture(rng, section):
    """Without noise, colours of unseen squares are predicted whole; of unrelated values, not at all."""
    squares, image, pose = section(rng, noise=0.0)
    held = held_out(blocks_of(squares.xy, 144.0), 0)
    assert predicted_share(squares, held, image, pose) == pytest.approx(1, abs=1e-3)
    noise = Squares(squares.xy, rng.normal(size=squares.values.shape), squares.weight, squares.side)
    assert abs(predicted_share(noise, held, image, pose)) < 0.05
