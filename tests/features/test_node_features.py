import numpy as np
import pytest
import torch

from sigmma_sc import SIGMMA


def test_dense_and_sparse_tissue_differ_by_the_distance_alone(tiny, encoder):
    found = {}
    for covariates in (True, False):
        model = SIGMMA(tiny, encoder(), n_latent=8, cell_covariates=covariates, standardise="training")
        model.data.assign_roles(model._slides, "none")
        model.data.fit_node_features(model._slides)
        slide = model._slides[0]
        found[covariates] = model.data.tensors(
            slide, slide.tiles, torch.device("cpu"), images=False
        ).transcriptome.nodes.numpy()
    np.testing.assert_array_equal(found[True][:, :50], found[False])
    totals = np.asarray(tiny["table"].X[slide.rows].sum(axis=1)).ravel()
    np.testing.assert_allclose(found[True][:, 50], np.log1p(totals), rtol=1e-5)
    xy = slide.xy * slide.microns_per_pixel
    k = 11
    nearest = np.sort(np.linalg.norm(xy - xy[k], axis=1))[1:9]
    assert found[True][k, 51] == pytest.approx(np.log1p(nearest.mean()), rel=1e-4)
