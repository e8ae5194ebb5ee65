from dataclasses import replace

import numpy as np
import pytest
from geopandas import GeoDataFrame
from shapely import box
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError
from sigmma_sc.pp.alignment import DEFAULTS
from sigmma_sc.registration.certificate import refusal
from sigmma_sc.registration.place import embedded, moved, place, placed
from sigmma_sc.registration.register import Registered
from sigmma_sc.tissue.setup import resolve_slides

AXES = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}


def slide_of(sdata, **setup):
    (slide,) = resolve_slides(sdata, replace(DEFAULTS, **setup), aligned=False)
    return slide


@pytest.fixture
def sdata():
    return simulate_tissue(n_cells=300)


def certified(matrix):
    told = replace(refusal("as found"), verdict="registered", error=1.0)
    return Registered(np.array(matrix, dtype=float), told, "nuclei", False, None, [])


def test_the_image_moves_the_other_way(sdata):
    before = slide_of(sdata)
    place(before, placed(before, certified([[0, -1, 300], [1, 0, 20], [0, 0, 1]])))
    after = slide_of(sdata)
    # A quarter turn and a shift by (300, 20) px, worked out by hand.
    np.testing.assert_allclose(after.xy, np.column_stack([300 - before.xy[:, 1], 20 + before.xy[:, 0]]), atol=1e-9)


def test_the_distance_is_in_microns(sdata):
    slide = slide_of(sdata)
    assert slide.microns_per_pixel == 0.5
    assert moved(slide, certified([[1, 0, 30], [0, 1, 40], [0, 0, 1]])) == pytest.approx(25)
    assert np.isnan(moved(slide, Registered(None, refusal("glass"), "expression", False, None, [])))


def test_a_pose_that_is_not_certified_is_not_written(sdata):
    before = get_transformation(sdata["he_image"], get_all=True)
    found = Registered(np.eye(3), refusal("cannot tell: glass"), "expression", False, None, [])
    with pytest.raises(SetupError, match="not certified: cannot tell: glass"):
        placed(slide_of(sdata), found)
    assert get_transformation(sdata["he_image"], get_all=True) == before


def test_pixels_stay_square(sdata):
    with pytest.raises(SetupError, match="stretches the image by 1.050"):
        placed(slide_of(sdata), certified(np.diag([1.05, 1.0, 1.0])))


def test_tile_squares_go_with_their_image(sdata):
    first = get_transformation(sdata["he_image"])
    squares = ShapesModel.parse(GeoDataFrame(geometry=[box(0, 0, 256, 256)]), transformations={"global": first})
    sdata["sigmma_tiles_cell_circles"] = squares
    sdata["sigmma_tiles_other"] = squares.copy()
    for shift in (30.0, 50.0):
        slide = slide_of(sdata)
        place(slide, placed(slide, certified([[1, 0, shift], [0, 1, 0], [0, 0, 1]])))
        on_image = get_transformation(sdata["he_image"], get_all=True)
        assert get_transformation(sdata["sigmma_tiles_cell_circles"], get_all=True) == on_image
        assert on_image["global_unregistered"] == first
    assert get_transformation(sdata["sigmma_tiles_other"], get_all=True) == {"global": first}


def test_embeddings_of_the_cells_where_they_were_are_named(sdata):
    assert embedded(slide_of(sdata)) == []
    sdata["table"].obsm["X_sigmma_meso"] = np.zeros((300, 2))
    assert embedded(slide_of(sdata)) == ["obsm['X_sigmma_meso']"]
