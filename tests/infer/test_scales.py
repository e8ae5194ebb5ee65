import numpy as np

from sigmma_sc.infer.scales import at_scale


def test_all_scales_have_the_same_weight():
    values = {
        "micro": np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, np.nan]], np.float32),
        "macro": np.array([[0.0, 0.1], [2.0, 0.0], [np.nan, np.nan]], np.float32),
    }
    np.testing.assert_array_equal(at_scale(values, "macro"), values["macro"])
    expected = [[0.6, 0.8, 0, 1], [0, 0, 1, 0], [np.nan] * 4]
    np.testing.assert_allclose(at_scale(values, "all"), expected, rtol=1e-6)
