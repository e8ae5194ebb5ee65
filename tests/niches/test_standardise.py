import numpy as np
import pytest

from sigmma_sc.errors import SetupError
from sigmma_sc.niches.standardise import standardise


def test_each_sample_has_mean_zero_and_standard_deviation_one(rng):
    x = np.r_[rng.normal(5, 2, (80, 3)), rng.normal(-1, 0.1, (60, 3))]
    x[:, 2] = 0.1  # constant, but for rounding of its mean
    x[7, 1] = np.nan
    samples = np.repeat(["a", "b"], [80, 60]).astype(object)
    samples[100] = None
    z = standardise(x, samples)
    assert np.isnan(z[[7, 100]]).all()
    for name in ("a", "b"):
        here = (samples == name) & np.isfinite(z).all(axis=1)
        np.testing.assert_allclose(z[here].mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(z[here].std(axis=0), [1, 1, 0], atol=1e-12)
    kept = x[:80][np.isfinite(x[:80]).all(axis=1)]
    np.testing.assert_allclose(z[0, :2], ((x[0] - kept.mean(axis=0)) / kept.std(axis=0))[:2])


def test_refusals():
    with pytest.raises(SetupError, match="must name the same cells"):
        standardise(np.zeros((3, 2)), ["a"])
    with pytest.raises(SetupError, match="Sample 'b' has 49 cells"):
        standardise(np.random.default_rng(0).normal(size=(99, 2)), ["a"] * 50 + ["b"] * 49)
