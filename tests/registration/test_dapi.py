"""A DAPI image rendered from the cells' centroids, at right and wrong poses of the H&E."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, Identity, set_transformation

import sigmma_sc as sg
from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.registration.certificate import refusal
from sigmma_sc.registration.dapi import Dapi, dapi_shifts, witnessed
from sigmma_sc.registration.pose import similarity
from sigmma_sc.registration.register import Registered
from sigmma_sc.tissue.frame import affine_to, apply_affine
from sigmma_sc.tissue.setup import slides_of

PIXEL = 0.2125
"""Size of a pixel of the DAPI image and unit of the coordinate system, µm."""


def add_dapi(sdata):
    """A morphology image with nuclei of some 7 µm at the centroids, in its second channel."""
    to_system = affine_to(sdata["cell_circles"], "global", "cells")
    centres = sdata["cell_circles"].geometry
    xy = apply_affine(to_system, np.column_stack([centres.x, centres.y]))
    width, height = np.ceil(xy.max(axis=0) + 300).astype(int)
    nuclei = np.zeros((height, width), np.float32)
    column, row = np.floor(xy).astype(int).T
    nuclei[row, column] = 1
    nuclei = gaussian_filter(nuclei, 3.0 / PIXEL, truncate=2)
    pixels = np.stack([np.zeros_like(nuclei), 60000 * nuclei / nuclei.max()]).astype(np.uint16)
    sdata.images["morphology_focus"] = Image2DModel.parse(pixels, ("c", "y", "x"), c_coords=["18S", "DAPI"])


@pytest.fixture(scope="module")
def slide():
    sdata = simulate_tissue(n_cells=900, seed=1)
    add_dapi(sdata)
    SIGMMA.setup_spatialdata(sdata)
    return slides_of(sdata)[0]


def test_nuclei_of_both_images_agree_at_the_right_pose(slide):
    found = dapi_shifts(slide, np.eye(3), seed=0)
    assert len(found.shift) >= 5
    assert found.median < 1


@pytest.mark.parametrize("shift", [(20.0, 0.0), (-6.0, 14.0)])
def test_a_shift_is_measured_with_its_direction(slide, shift):
    """The pose is wrong by ``shift`` µm, which the cells must go back."""
    pose = similarity(0.0, 1.0, False, (0.0, 0.0), np.array(shift) / slide.microns_per_pixel)
    found = dapi_shifts(slide, pose, seed=0)
    np.testing.assert_allclose(np.median(found.shift, axis=0), -np.array(shift), atol=1)


def test_the_pose_of_a_turned_and_mirrored_image_is_followed(slide):
    """Cells start elsewhere, and the pose puts them back: the DAPI image goes with them."""
    wrong = similarity(1.9, 1.0, True, (500.0, 500.0), (600.0, 450.0))
    image = slide.sdata[slide.image_key]
    right = affine_to(image, "global", "image")
    try:
        moved = Affine(right @ np.linalg.inv(wrong), input_axes=("x", "y"), output_axes=("x", "y"))
        set_transformation(image, moved, "global")
        start = replace(slide, xy=apply_affine(wrong, slide.xy))
        assert dapi_shifts(start, np.linalg.inv(wrong), seed=0).median < 1
    finally:
        set_transformation(image, Affine(right, input_axes=("x", "y"), output_axes=("x", "y")), "global")


def test_which_image_is_dapi():
    sdata = simulate_tissue(n_cells=300, seed=1)
    SIGMMA.setup_spatialdata(sdata)
    (one,) = slides_of(sdata)
    assert Dapi.of(one) is None
    assert dapi_shifts(one, np.eye(3), seed=0) is None
    pixels = np.zeros((2, 8, 8), np.uint16)
    pixels[1] = 7
    sdata.images["stains"] = Image2DModel.parse(pixels, ("c", "y", "x"), c_coords=["18S", "CD45"])
    assert Dapi.of(one) is None
    sdata.images["codex"] = Image2DModel.parse(pixels, ("c", "y", "x"), c_coords=["CD3", "DAPI-01"])
    assert (Dapi.of(one).level.to_numpy() == 7).all()
    set_transformation(sdata.images["codex"], {"other": Identity()}, set_all=True)
    assert Dapi.of(one) is None
    sdata.images["morphology_mip"] = Image2DModel.parse(pixels[:1], ("c", "y", "x"))
    assert (Dapi.of(one).level.to_numpy() == 0).all()
    assert dapi_shifts(one, np.eye(3), seed=0) is None  # no window is under it
    pyramid = Image2DModel.parse(pixels.repeat(8, 1).repeat(8, 2), ("c", "y", "x"), scale_factors=[2, 2, 2])
    sdata.images["morphology_mip"] = pyramid
    assert Dapi.of(one).factor == 4  # 0.85 µm


@pytest.mark.filterwarnings("ignore::sigmma_sc.errors.RegistrationWarning")
def test_a_pose_that_dapi_contradicts_is_not_written(slide):
    certificate = replace(refusal("fits"), verdict="registered", error=3.0)
    right = Registered(np.eye(3), certificate, "landmarks", False, None, [])
    found = witnessed(slide, right, seed=0)
    assert found.certified
    assert found.certificate.dapi < 1
    # A fluorescence image that is 30 µm beside its cells, as one of another section.
    sdata = slide.sdata
    shift = np.array([[1, 0, 30 / PIXEL], [0, 1, 0], [0, 0, 1]])
    try:
        moved = Affine(shift, input_axes=("x", "y"), output_axes=("x", "y"))
        set_transformation(sdata.images["morphology_focus"], moved, "global")
        places = np.array([[200.0, 240], [1000, 300], [420, 900], [900, 1050]])
        to_microns = np.linalg.inv(affine_to(sdata["cell_circles"], "global", "cells"))
        marked = apply_affine(to_microns @ affine_to(sdata["he_image"], "global", "image"), places)
        row = sg.pp.register(sdata, landmarks=(places, marked)).iloc[0]
    finally:
        set_transformation(sdata.images["morphology_focus"], Identity(), "global")
    assert row.verdict == "cannot tell"
    assert row.dapi == pytest.approx(30, abs=2)
    assert not row.written
    assert "DAPI" in row.advice


def test_what_is_not_certified_is_not_measured(slide, monkeypatch):
    monkeypatch.setattr("sigmma_sc.registration.dapi.dapi_shifts", lambda *a, **k: pytest.fail("measured"))
    refused = Registered(None, refusal("glass"), "expression", False, None, [])
    assert witnessed(slide, refused, seed=0) is refused
