import numpy as np
import pytest
from sklearn.linear_model import Ridge

from sigmma_sc.registration.explain import RIDGE, explain, explained_variance, regression, score_of, tissue_weight


def test_regression_is_that_of_scikit_learn(rng):
    """Components of equal weighted variance have one and the same penalty."""
    x = rng.normal(size=(60, 3))
    weight = rng.uniform(0.1, 1, 60)
    x -= weight @ x / weight.sum()
    x /= np.sqrt((weight[:, None] * x**2).sum(axis=0))
    y = rng.normal(size=(60, 2))
    beta, x_mean, y_mean = regression(x, y, weight)
    theirs = Ridge(alpha=RIDGE, solver="cholesky").fit(x, y, sample_weight=weight)
    np.testing.assert_allclose(beta.T, theirs.coef_, rtol=1e-5)
    np.testing.assert_allclose(y_mean - x_mean @ beta, theirs.intercept_, atol=1e-8)


def test_squares_without_weight_do_not_count(rng):
    x, y = rng.normal(size=(40, 2)), rng.normal(size=(40, 3))
    weight = (np.arange(40) < 30).astype(float)
    here = explained_variance(x, y, weight)
    np.testing.assert_allclose(here, explained_variance(x[:30], y[:30], np.ones(30)))


def test_score_by_hand():
    """R² of 0.75 with 3 components on 41 of 82 squares: 1 - 0.25 · 40 / 37, times half."""
    score, r2 = score_of(0.75, 41, 82, 3)
    assert r2 == pytest.approx(1 - 10 / 37)
    assert score == pytest.approx(-np.log(10 / 37) / 2)


def test_the_right_pose_scores_highest(rng, section):
    squares, image, pose = section(rng)
    right = explain(squares, image, pose)
    assert right.r2 > 0.6
    assert right.on_tissue == 1
    for shift in ((60, 0), (0, -60), (300, 200)):
        moved = pose.copy()
        moved[:2, 2] += shift
        assert explain(squares, image, moved).score < right.score / 1.5


def test_a_pose_off_the_tissue_scores_below_any_other(rng, section):
    squares, image, pose = section(rng)
    pose = pose.copy()
    pose[0, 2] += 1200
    found = explain(squares, image, pose)
    assert found.score < 0
    assert found.r2 == 0
    np.testing.assert_allclose(tissue_weight(np.array([0.2, 0.5, 0.9])), [0, 0.5, 1])
