import numpy as np

from sigmma_sc.features.covariates import log_distance


def test_distance_to_the_nearest_cells(rng):
    xy = rng.uniform(0, 100, (30, 2))
    apart = np.linalg.norm(xy[:, None] - xy, axis=2)
    expected = np.log1p(np.sort(apart, axis=1)[:, 1:9].mean(axis=1))
    np.testing.assert_allclose(log_distance(xy), expected, rtol=1e-5)
    np.testing.assert_allclose(log_distance(np.array([[0.0, 0], [3, 4], [3, 4]])), np.log1p([5, 2.5, 2.5]), rtol=1e-6)
    np.testing.assert_array_equal(log_distance(xy[:1]), [0])
