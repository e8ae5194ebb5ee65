import numpy as np
import pytest
from scipy.sparse import csr_matrix, issparse

from sigmma_sc import SIGMMA, Config
from sigmma_sc.errors import SetupError
from sigmma_sc.features.counts_pca import CountsPCA
from sigmma_sc.features.node_features import NodeFeatures
from sigmma_sc.features.obsm_embedding import ObsmEmbedding
from sigmma_sc.features.pseudobulk import Pseudobulk
from sigmma_sc.features.registry import NODE_FEATURES, node_features_of
from sigmma_sc.tissue.setup import Setup


def setup(**changed):
    told = {
        "image_key": "he_image",
        "table_key": "table",
        "coordinate_system": "global",
        "layer": None,
        "features_key": None,
        "sample_key": None,
        "microns_per_pixel": None,
        "tile_size": 64.0,
        "grids": (4, 2, 1),
    }
    return Setup(**{**told, **changed})


@pytest.mark.parametrize(
    ("options", "changed", "kind"),
    [
        ({}, {}, CountsPCA),
        ({}, {"features_key": "X_mine"}, ObsmEmbedding),
        ({"node_features": "pca"}, {"features_key": "X_mine"}, CountsPCA),
        ({"node_features": "obsm"}, {"features_key": "X_mine"}, ObsmEmbedding),
        ({"node_features": "obsm"}, {"table_key": None}, ObsmEmbedding),  # an image, for a model of another object
        ({"cells": "genes"}, {}, Pseudobulk),
        ({"cells": "genes"}, {"features_key": "X_mine"}, Pseudobulk),
        ({"cells": "genes", "node_features": "pseudobulk"}, {}, Pseudobulk),
    ],
)
def test_features_follow_from_options_and_setup(options, changed, kind):
    features = node_features_of(Config(seed=3, cell_covariates=False, **options), setup(**changed))
    assert type(features) is kind
    assert (features.seed, features.covariates) == (3, False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"node_features": "genes"}, "node_features='genes' is not one of 'auto', 'pca', 'obsm', 'pseudobulk'"),
        ({"node_features": ["pca"]}, "is not one of 'auto'"),
        ({"node_features": "obsm"}, r"'obsm' needs an embedding of the cells.*features_key="),
        ({"node_features": "pseudobulk"}, "'pseudobulk' has one row for each tile, which cells='graph' cannot use"),
        ({"node_features": "pca", "cells": "genes"}, "'pca' has one row for each cell, which cells='genes' cannot use"),
    ],
)
def test_features_that_do_not_fit_are_refused_when_the_model_is_made(tiny, encoder, options, words):
    with pytest.raises(SetupError, match=words):
        SIGMMA(tiny, encoder(), n_latent=8, **options)


class Mine(NodeFeatures):
    """Features with whatever the test asks for."""

    rows = 0

    def transform(self, slide, tiles):
        return np.ones((self.rows, 2))


def test_features_of_ones_own_are_found_by_name(tiny, encoder, monkeypatch):
    monkeypatch.setitem(NODE_FEATURES, "mine", Mine)
    model = SIGMMA(tiny, encoder(), n_latent=8, node_features="mine")
    (slide,) = model.resolve()
    with pytest.raises(SetupError, match=r"Mine\.transform gives features of shape \(0, 2\) for 1500 cells"):
        model.data.node_features(slide, slide.tiles)
    monkeypatch.setattr(Mine, "rows", 1500)
    values = model.data.node_features(slide, slide.tiles)
    assert (values.shape, values.dtype) == ((1500, 3), np.float32)  # and the distance to the nearest cells
    np.testing.assert_array_equal(values[:, :2], 1)


@pytest.mark.parametrize("per_tile", [False, True])
def test_features_of_ones_own_may_be_dense_or_sparse(tiny, encoder, monkeypatch, per_tile):
    monkeypatch.setitem(NODE_FEATURES, "mine", Mine)
    monkeypatch.setattr(Mine, "per_tile", per_tile)
    model = SIGMMA(tiny, encoder(), n_latent=8, node_features="mine", cells="genes" if per_tile else "graph")
    (slide,) = model.resolve()
    monkeypatch.setattr(Mine, "rows", len(slide.tiles) if per_tile else 1500)
    dense = model.data.node_features(slide, slide.tiles)
    monkeypatch.setattr(Mine, "transform", lambda self, slide, tiles: csr_matrix(np.ones((self.rows, 2))))
    sparse = model.data.node_features(slide, slide.tiles)
    assert issparse(dense) == issparse(sparse) == per_tile
    assert dense.dtype == sparse.dtype == np.float32
    assert dense.shape == sparse.shape
    assert abs(dense - sparse).max() == 0
