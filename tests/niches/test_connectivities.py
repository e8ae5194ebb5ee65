"""UMAP's weights against their definition."""

import numpy as np
from scipy.optimize import brentq
from scipy.spatial.distance import cdist

from sigmma_sc.niches.connectivities import umap_connectivities


def test_weights_equal_their_definition(rng):
    cells = rng.normal(size=(200, 8))
    cells[[20, 21]] = cells[3]
    gaps = cdist(cells, cells)
    indices = np.argsort(gaps - np.eye(200), axis=1, kind="stable")[:, :10]
    distances = np.take_along_axis(gaps, indices, axis=1)
    expected = np.zeros((200, 200))
    for row, (others, apart) in enumerate(zip(indices[:, 1:], distances[:, 1:], strict=True)):
        excess = np.maximum(apart - apart[apart > 0].min(), 0)
        width = brentq(lambda w, e=excess: np.exp(-e / w).sum() - np.log2(10), 1e-9, 1e3)
        expected[row, others] = np.exp(-excess / width)
    expected = expected + expected.T - expected * expected.T
    weights = umap_connectivities(indices, distances)
    np.testing.assert_allclose(weights.toarray(), expected, atol=1e-4)
    assert weights.dtype == np.float32
    assert abs(weights - weights.T).max() == 0


def test_a_cell_whose_neighbours_are_copies_but_one_keeps_them():
    # No width makes the sum log2(5) = 2.3: the three copies alone make it 3. Its width is 1/1000 of the mean distance.
    distances = np.array([[0, 0, 0, 0, 1.0]] * 5)
    weights = umap_connectivities(np.array([np.roll(np.arange(5), -k) for k in range(5)]), distances)
    np.testing.assert_array_equal(weights.toarray(), 1 - np.eye(5))
