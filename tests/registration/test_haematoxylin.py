import numpy as np

from sigmma_sc.registration.haematoxylin import centred_ranks, shift_curve


def test_curve_is_the_sum_of_the_stain_at_every_shift(rng):
    """Against looking each cell up at each shift."""
    reach, half = 3, 5
    stain = rng.normal(size=(2 * (half + reach), 2 * (half + reach)))
    row, column, weight = rng.integers(0, 10, 7), rng.integers(0, 10, 7), rng.normal(size=7)
    expected = [
        [(weight * stain[row + reach + dy, column + reach + dx]).sum() for dx in range(-reach, reach + 1)]
        for dy in range(-reach, reach + 1)
    ]
    np.testing.assert_allclose(shift_curve(stain, row, column, half, weight), expected, atol=1e-5)


def test_ranks_are_centred():
    np.testing.assert_allclose(centred_ranks(np.array([5.0, 1.0, 1.0, 9.0])), [0.125, -0.25, -0.25, 0.375])
