import json

import numpy as np
import pytest
from spatialdata.transformations import Affine, Identity, Scale, get_transformation, set_transformation

from sigmma_sc import SIGMMA, pp
from sigmma_sc._checks import MissingKeyError, PixelSizeError, RegistrationWarning, SetupError
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.tissue.setup import Setup, resolve_slides, stored_setup


@pytest.fixture
def sdata():
    return simulate_tissue(n_cells=400, seed=1)


def affine(matrix):
    return Affine(np.asarray(matrix, float), input_axes=("x", "y"), output_axes=("x", "y"))


def slide_of(sdata):
    return resolve_slides(sdata, stored_setup(sdata))[0]


def test_cells_come_through_every_transform(sdata, rng):
    """A rotated, mirrored, scaled image: the pixel of each cell maps back onto the cell."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([1.7, -1.7])
    matrix = np.eye(3)
    # The middle of the image comes to lie on the middle of the cells, whatever the turn.
    middle = sdata["table"].obsm["spatial"].mean(0) / 0.2125
    height, width = sdata["he_image"]["scale0"]["image"].shape[1:]
    matrix[:2, :2], matrix[:2, 2] = turn, middle - turn @ (width / 2, height / 2)
    set_transformation(sdata["he_image"], affine(matrix), "global")
    cells = sdata["table"].obsm["spatial"] / 0.2125
    expected = (cells - matrix[:2, 2]) @ np.linalg.inv(turn).T
    setup = Setup("he_image", "table", "global", None, None, None, None, 128.0, (4, 2, 1))
    slide = resolve_slides(sdata, setup)[0]
    np.testing.assert_allclose(slide.xy, expected, atol=0.5)
    assert slide.microns_per_pixel == pytest.approx(1.7 * 0.2125)


def test_simulated_slide_is_registered_and_shifts_are_caught(sdata):
    SIGMMA.setup_spatialdata(sdata)
    report = pp.check_registration(sdata).iloc[0]
    assert report.verdict == "registered"
    matrix = get_transformation(sdata["he_image"], "global").to_affine_matrix(("x", "y"), ("x", "y"))
    shifted = matrix.copy()
    shifted[:2, 2] += (20 / 0.2125, 0)  # 20 µm along the x axis of the cells
    set_transformation(sdata["he_image"], affine(shifted), "global")
    report = pp.check_registration(sdata).iloc[0]
    assert report.verdict == "shifted"
    assert np.hypot(report.shift_x, report.shift_y) == pytest.approx(20, abs=4)
    back = np.linalg.inv(matrix)[:2, :2] @ (20 / 0.2125, 0) * slide_of(sdata).microns_per_pixel
    np.testing.assert_allclose([report.shift_x, report.shift_y], back, atol=4)


def test_missing_alignment_warns_and_says_what_to_do(sdata):
    set_transformation(sdata["he_image"], Identity(), "global")
    with pytest.warns(RegistrationWarning, match="set_transformation"):
        SIGMMA.setup_spatialdata(sdata)


def test_setup_is_stored_as_json(sdata):
    SIGMMA.setup_spatialdata(sdata, tile_size=100.0)
    stored = json.loads(json.dumps(sdata.attrs["sigmma"]))
    assert Setup.from_json(stored) == stored_setup(sdata)
    assert stored_setup(sdata).tile_size == 100.0


def test_labels_find_the_shapes_of_the_same_cells(sdata):
    """Newer readers annotate a raster of labels: the circles stand in for it."""
    table = sdata["table"]
    before = resolve_slides(sdata, Setup("he_image", "table", "global", None, None, None, None, 128.0, (4, 2, 1)))[0]
    table.obs["region"] = table.obs["region"].astype(str).replace({"cell_circles": "cell_labels"}).astype("category")
    table.uns["spatialdata_attrs"]["region"] = "cell_labels"
    after = resolve_slides(sdata, Setup("he_image", "table", "global", None, None, None, None, 128.0, (4, 2, 1)))[0]
    np.testing.assert_array_equal(before.xy, after.xy)


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
