import numpy as np


def test_expression_probe_stands_beside_its_baselines(trained):
    table = trained[1].evaluate_expression(split="val")
    assert {"pcc", "mse", "pcc_frozen", "mse_frozen", "mse_gene_mean"} <= set(table.columns)
    assert len(table) == 50


def test_evaluation_is_deterministic(trained):
    _, model = trained
    a, b = (model.get_latent_representation(scale="all") for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert a.dtype == np.float32
    assert np.isfinite(a).all()
