import numpy as np
import pytest

from sigmma_sc.reporting.pack import codes, packed, percents, positions


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, ">u2", ">u4"])
def test_arrays_come_back(kind, decode):
    values = np.array([[0, 1], [200, np.iinfo(np.dtype(kind)).max]], kind)
    for given in (values, values.T):
        np.testing.assert_array_equal(decode(packed(given)), given.ravel())


def test_positions_are_within_half_a_step(rng):
    xy = rng.random((1000, 2)) * (30_000, 900)
    found = positions(xy, 30_000, 900) / 65_535 * (30_000, 900)
    assert np.all(np.abs(found - xy) <= np.array([30_000, 900]) / 65_535 / 2 + 1e-9)
    np.testing.assert_array_equal(positions(np.array([[-5.0, 901.0]]), 30_000, 900), [[0, 65_535]])


@pytest.mark.parametrize(("n", "kind"), [(255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.uint32)])
def test_codes_take_the_smallest_type_that_has_a_value_to_spare(n, kind):
    found = codes(np.array([0, n - 1, -1]), n)
    assert found.dtype == kind
    assert found.tolist() == [0, n - 1, np.iinfo(kind).max]


def test_percents():
    assert percents(np.array([0, 0.004, 0.5, 1, np.nan, 1.2])).tolist() == [0, 0, 50, 100, 255, 100]
