import json

import numpy as np
import pytest

from sigmma_sc import Config
from sigmma_sc.errors import SetupError

GRIDS = (4, 2, 1)


def test_a_configuration_survives_json():
    config = Config(
        edge_temperature=(1.0, 0.3), loss_weights=(0, 0, 1), crop_sizes=(64, 128, 224), edges="full", seed=7
    )
    assert Config.of(json.loads(json.dumps(config.to_json())), GRIDS) == config
    assert hash(config) == hash(Config.of(config.to_json(), GRIDS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"egdes": "none"}, "no option 'egdes'. Did you mean 'edges'"),
        ({"edges": "some"}, "edges='some' is not one of"),
        ({"cells": "spots"}, "cells='spots'"),
        ({"regime": "half"}, "regime='half'"),
        ({"negatives": "all"}, "negatives='all'"),
        ({"n_latent": 0}, "n_latent=0"),
        ({"n_neighs": 2.5}, "n_neighs=2.5 must be a whole number"),
        ({"crop_sizes": 64}, "crop_sizes=64 must be a tuple"),
        ({"loss_weights": "001"}, "loss_weights='001' must be a tuple"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"edge_temperature": (1.0, 0.0)}, "edge_temperature=0.0"),
        ({"edge_temperature": (1.0, 0.5, 0.1)}, "one number, or two"),
        ({"loss_weights": (0, 0, 0)}, "one of them positive"),
        ({"loss_weights": (1, 1)}, r"loss_weights=\(1, 1\) must have one value for each of grids"),
        ({"crop_sizes": (224,)}, "crop_sizes"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"mc_samples": -1}, "mc_samples=-1"),
        ({"radius": 0.0}, "radius=0.0"),
        ({"n_latent": 64.0}, "n_latent=64.0 must be a whole number"),
        ({"n_latent": True}, "n_latent=True must be a whole number"),
        ({"seed": -1}, "seed=-1 must be a whole number, 0 or more"),
        ({"seed": 2**32}, "seed=4294967296 must be at most 4294967295"),
        ({"symmetric_edges": "no"}, "symmetric_edges='no' must be True or False"),
        ({"cell_covariates": 2}, "cell_covariates=2 must be True or False"),
        ({"loss_weights": (1, float("nan"), 1)}, "loss_weights"),
        ({"loss_weights": ()}, r"loss_weights=\(\) must be a tuple of numbers"),
        ({"dropout": "0.1"}, "dropout='0.1'"),
        ({"temperature": 0.6, "learn_temperature": True}, "temperature=0.6 must be within 0.01 and 0.5"),
    ],
)
def test_what_is_out_of_range_is_named(options, words):
    with pytest.raises(SetupError, match=words):
        Config.of(options, GRIDS)


def test_numbers_of_numpy_are_taken_as_those_of_python():
    config = Config.of({"n_latent": np.int64(64), "temperature": np.float32(0.5), "symmetric_edges": np.True_}, GRIDS)
    assert config == Config(n_latent=64, temperature=0.5, symmetric_edges=True)
    assert Config.of(json.loads(json.dumps(config.to_json())), GRIDS) == config
