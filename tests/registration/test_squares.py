from dataclasses import replace

import numpy as np
import pytest

from sigmma_sc.registration.squares import Squares, _pooled, expression_squares
from sigmma_sc.tissue.setup import slides_of


@pytest.fixture
def slide(tiny):
    return slides_of(tiny)[0]


def test_counts_are_pooled_by_square(slide, rng):
    square = rng.integers(0, 7, len(slide.rows))
    counts = slide.table.X.toarray()[slide.rows]
    expected = np.stack([counts[square == k].sum(axis=0) for k in range(7)])
    np.testing.assert_array_equal(_pooled(slide, square, 7).toarray(), expected)


def test_squares_are_at_the_mean_of_their_cells(slide):
    squares = expression_squares(slide, 64.0)
    xy = slide.xy * slide.microns_per_pixel
    number = np.floor((xy - xy.min(axis=0)) / 64)
    for middle, weight in zip(squares.xy, squares.weight, strict=True):
        inside = (number == np.floor((middle - xy.min(axis=0)) / 64)).all(axis=1)
        assert inside.sum() == weight
        np.testing.assert_allclose(xy[inside].mean(axis=0), middle)


def test_components_are_standardised_and_independent(slide):
    values = expression_squares(slide, 64.0, n_components=5).values
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(np.cov(values.T, bias=True), np.eye(5), atol=1e-4)


def test_depth_is_normalised_away(slide):
    """Twice the counts of all cells change nothing, for counts are brought to the median total."""
    deep = slide.table.copy()
    deep.X = deep.X * 2
    one, other = (expression_squares(s, 64.0, 3).values for s in (slide, replace(slide, adata=deep)))
    same = [abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(one.T, other.T, strict=True)]
    assert min(same) > 0.99


def test_smoothing_keeps_a_plane_and_loses_noise(rng):
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(40)), axis=-1).reshape(-1, 2) * 25.0 + 12.5
    values = np.column_stack([grid[:, 0], rng.normal(size=len(grid))])
    squares = Squares(grid, (values - values.mean(axis=0)) / values.std(axis=0), np.ones(len(grid)), 25.0)
    large = squares.smoothed(100.0)
    assert len(large) < len(squares) / 3
    assert np.corrcoef(large.values[:, 0], large.xy[:, 0])[0, 1] > 0.999
    # What is left of noise is unrelated to the noise next to it, two squares of 100 µm away.
    np.testing.assert_allclose(large.values.std(axis=0), 1)
