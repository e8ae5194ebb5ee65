from dataclasses import replace

import numpy as np
import pytest

from sigmma_sc.errors import SetupError
from sigmma_sc.infer.alike import FEATURES, STAIN, Likeness, View, distances
from sigmma_sc.infer.reference import Reference


def a_reference(n=200, n_slides=1):
    """Tiles in blocks of five, three quarters of which train."""
    rng = np.random.default_rng(0)
    return Reference(
        genes=["g"],
        library=1.0,
        expression=np.zeros((n, 1), np.float16),
        image={},
        transcriptome={},
        encoder=rng.normal(size=(n, 15)).astype(np.float16),
        slide=np.arange(n) % n_slides,
        block=np.arange(n) // 5,
        train=np.arange(n) < 3 * n // 4,
        position=np.zeros((n, 2), np.float32),
        stain=rng.normal(size=(n, 6)).astype(np.float32),
    )


def test_distances_equal_a_loop():
    rng = np.random.default_rng(0)
    query, keys = (rng.normal(size=(n, 4)).astype(np.float32) for n in (6, 9))
    expected = [np.sort(np.linalg.norm(keys - q, axis=1))[:5].mean() for q in query]
    np.testing.assert_allclose(distances(query, keys), expected, rtol=1e-5)
    np.testing.assert_allclose(
        distances(query, keys[:2]), [np.linalg.norm(keys[:2] - q, axis=1).mean() for q in query], rtol=1e-5
    )


def test_usual_distances_are_to_training_tiles_of_other_groups():
    features = np.array([[0.0], [0], [1], [3], [8]], np.float32)
    train = np.array([True, True, True, True, False])
    view = View.of(features, train, np.array([0, 0, 1, 1, 2]))
    std = features[:4].std()
    # To the two of the other pair; of the validation tile to all four.
    expected = np.sort([2, 2, 1, 3, (8 + 8 + 7 + 5) / 4]) / std
    np.testing.assert_allclose(view.usual, expected, rtol=1e-6)
    # A tile at 2 is 2, 2, 1 and 1 from the four: four of the five are farther. One at 100 is beyond all.
    np.testing.assert_allclose(view.share(np.array([[2], [100], [9]], np.float32)), [0.8, 0, 0])


def test_new_tiles_of_the_same_kind_are_alike_in_any_share():
    """A share of s or less has a probability of about s, as a p-value does; two views do not change that."""
    reference = a_reference(n=2000)
    rng = np.random.default_rng(1)
    likeness = Likeness.of(reference)
    found = likeness(rng.normal(size=(2000, 6)).astype(np.float32), rng.normal(size=(2000, 15)).astype(np.float16))
    for level in (0.05, 0.2, 0.5):
        assert (found["sigmma_alike"] <= level).mean() == pytest.approx(level, abs=0.3 * level)


@pytest.mark.parametrize(("stain", "features", "cause"), [(8, 0, STAIN), (0, 8, FEATURES)])
def test_other_tiles_are_not_and_it_is_told_why(stain, features, cause):
    likeness = Likeness.of(a_reference())
    rng = np.random.default_rng(1)
    found = likeness(
        (stain + rng.normal(size=(50, 6))).astype(np.float32), (features + rng.normal(size=(50, 15))).astype(np.float16)
    )
    assert (found["sigmma_alike"] == 0).all()
    assert (found["sigmma_least_alike"] == cause).mean() > 0.9  # by chance a tile may be odd in both


def test_several_training_slides_tell_how_slides_differ():
    """A stain between those of the slides is unlike each of them, and as far from them as they are from each other."""
    reference = a_reference(n=300, n_slides=3)
    shifted = reference.stain + 6 * reference.slide[:, None].astype(np.float32)
    several = replace(reference, stain=shifted)
    between = (15 + np.random.default_rng(1).normal(size=(40, 6))).astype(np.float32)
    encoder = reference.encoder[:40]
    assert (Likeness.of(several)(between, encoder)["sigmma_alike"] > 0.05).all()
    one = replace(several, slide=np.zeros(300, int))
    assert (Likeness.of(one)(between, encoder)["sigmma_alike"] < 0.05).all()


def test_a_model_that_cannot_tell_says_why():
    with pytest.raises(SetupError, match="holds 10 tiles with training tiles in other blocks, and 20 are needed"):
        Likeness.of(a_reference(10))
