from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, issparse

from sigmma_sc import SIGMMA, Config
from sigmma_sc.errors import SetupError
from sigmma_sc.features import registry
from sigmma_sc.features.counts_pca import CountsPCA
from sigmma_sc.features.node_features import NodeFeatures
from sigmma_sc.features.obsm_embedding import ObsmEmbedding
from sigmma_sc.features.patches import PatchFeatures
from sigmma_sc.features.pseudobulk import Pseudobulk
from sigmma_sc.features.registry import NODE_FEATURES, node_features_of, register_node_features
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


@pytest.fixture
def features(monkeypatch):
    monkeypatch.setattr(registry, "NODE_FEATURES", dict(NODE_FEATURES))
    return registry.NODE_FEATURES


class NoTransform(NodeFeatures):
    pass


class Forgets(Mine):
    def fit(self, training):
        self.n = len(training)


class OwnArguments(Mine):
    def __init__(self):
        super().__init__()


def test_features_of_ones_own_are_registered(features):
    register_node_features("mine", Mine)
    register_node_features("mine", Mine)  # a cell of a notebook, run again
    assert features["mine"] is Mine


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("pca", Mine, "node_features='pca' is registered already, sigmma_sc.features.counts_pca.CountsPCA"),
        ("auto", Mine, "node_features='auto' is registered already"),
        ("a.b", Mine, "node_features='a.b' must consist of"),
        ("mine", Mine(), "is not a subclass of sg.NodeFeatures. Pass your class itself"),
        ("mine", dict, "is not a subclass of sg.NodeFeatures"),
        ("mine", NoTransform, "NoTransform lacks transform"),
        ("mine", Forgets, "Forgets has fit without state and restore"),
        ("mine", OwnArguments, "OwnArguments.__init__ must take covariates and seed"),
    ],
)
def test_what_are_no_features_is_refused(features, name, kind, words):
    with pytest.raises(SetupError, match=words):
        register_node_features(name, kind)
    assert features == NODE_FEATURES


class Careless(Mine):
    """What the test gives for features, genes and state."""

    given = None
    saved: ClassVar = {}

    def transform(self, slide, tiles):
        return self.given

    def state(self):
        return self.saved


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("given", None, "Careless.transform gives NoneType. Return a NumPy array"),
        ("given", pd.DataFrame(np.ones((1500, 2))), "Careless.transform gives DataFrame"),
        ("given", np.full((1500, 2), np.nan), "Careless.transform gives NaN or infinite"),
        ("given", np.ones((3, 2)), "for 1500 cells"),
        ("genes", ["EPCAM", "FOO"], "does not fit Careless: 1 of 2 genes are missing, e.g. FOO"),
        ("saved", {"found": {1, 2}}, r"Careless.state\(\)\['found'\] is set, which cannot be saved"),
        ("saved", {"names": np.array(["a"])}, r"Careless.state\(\)\['names'\] is ndarray, which cannot be saved"),
    ],
)
def test_careless_features_are_refused_before_a_crop_is_encoded(tiny, encoder, monkeypatch, attribute, value, words):
    monkeypatch.setitem(NODE_FEATURES, "mine", Careless)
    monkeypatch.setattr(Careless, attribute, value)
    model = SIGMMA(tiny, encoder(), n_latent=8, node_features="mine")
    monkeypatch.setattr(PatchFeatures, "__call__", lambda *_: pytest.fail("encoded first"))
    with pytest.raises(SetupError, match=words):
        model.train(1, 32, "none", enable_progress_bar=False)
