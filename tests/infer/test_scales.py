import numpy as np

from sigmma_sc.infer.scales import at_scale, unit

VALUES = {"micro": np.array([[3.0, 4.0], [0.0, 0.0]]), "macro": np.array([[0.0, 2.0], [5.0, 12.0]])}


def test_rows_of_length_one():
    np.testing.assert_allclose(unit(VALUES["micro"]), [[0.6, 0.8], [0, 0]])


def test_all_scales_weigh_the_same():
    assert at_scale(VALUES, "macro") is VALUES["macro"]
    both = at_scale(VALUES, "all")
    np.testing.assert_allclose(both, [[0.6, 0.8, 0, 1], [0, 0, 5 / 13, 12 / 13]])


def test_cells_without_an_embedding_stay_without():
    assert np.isnan(at_scale({"micro": np.full((1, 2), np.nan), "macro": np.full((1, 2), np.nan)}, "all")).all()
