import json

import numpy as np
import pytest
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import MissingKeyError, PixelSizeError, RegistrationWarning, SetupError
from sigmma_sc.tissue.setup import Setup, stored_setup


@pytest.fixture
def sdata():
    return simulate_tissue(n_cells=400, seed=1)


def affine(matrix):
    return Affine(np.asarray(matrix, float), input_axes=("x", "y"), output_axes=("x", "y"))


def test_missing_alignment_warns_and_says_what_to_do(sdata):
    set_transformation(sdata["he_image"], Identity(), "global")
    with pytest.warns(RegistrationWarning, match="set_transformation"):
        SIGMMA.setup_spatialdata(sdata)


def test_setup_is_stored_as_json(sdata):
    SIGMMA.setup_spatialdata(sdata, tile_size=100.0)
    stored = json.loads(json.dumps(sdata.attrs["sigmma"]))
    assert Setup.from_json(stored) == stored_setup(sdata)
    assert stored_setup(sdata).tile_size == 100.0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"image_key": "he"}, MissingKeyError, "'he'.*he_image"),
        ({"table_key": "cells"}, MissingKeyError, "'cells'.*table"),
        ({"coordinate_system": "um"}, MissingKeyError, "'um'.*global"),
        ({"layer": "counts"}, MissingKeyError, "'counts'"),
        ({"features_key": "X_scVI"}, MissingKeyError, "X_scVI"),
        ({"sample_key": "patient"}, MissingKeyError, "patient"),
        ({"tile_size": -1}, SetupError, "tile_size=-1"),
        ({"grids": (1, 2)}, SetupError, "fine to coarse"),
        ({"grids": (4, 3, 1)}, SetupError, "multiple"),
        ({"microns_per_pixel": 50.0}, PixelSizeError, "50"),
        ({"image_key": {"cell_cirles": "he_image"}}, MissingKeyError, "cell_cirles"),
    ],
)
def test_bad_arguments_name_value_and_fix(sdata, options, error, words):
    with pytest.raises(error, match=words):
        SIGMMA.setup_spatialdata(sdata, **options)
    assert "sigmma" not in sdata.attrs


def test_pixel_size_must_be_known(sdata):
    set_transformation(sdata["cell_circles"], Identity(), "global")
    with pytest.raises(PixelSizeError, match="microns_per_pixel"):
        SIGMMA.setup_spatialdata(sdata)


def test_anisotropic_images_are_refused(sdata):
    set_transformation(sdata["he_image"], Scale([2.0, 2.1], axes=("x", "y")), "global")
    with pytest.raises(PixelSizeError, match=r"1\.050"):
        SIGMMA.setup_spatialdata(sdata)


def test_no_cell_under_the_image(sdata):
    set_transformation(sdata["he_image"], affine([[2, 0, 1e6], [0, 2, 0], [0, 0, 1]]), "global")
    with pytest.raises(SetupError, match="No cell of region"):
        SIGMMA.setup_spatialdata(sdata)


def test_cells_missing_from_the_shapes(sdata):
    sdata["table"].obs["cell_id"] = [f"other{k}" for k in range(400)]
    with pytest.raises(MissingKeyError, match="other0"):
        SIGMMA.setup_spatialdata(sdata)
