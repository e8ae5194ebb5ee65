"""Poses from landmarks, exact and marked by a hand that trembles, and landmarks that are none."""

from dataclasses import replace

import numpy as np
import pytest
from spatialdata.models import PointsModel, ShapesModel
from spatialdata.transformations import Identity

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import MissingKeyError, SetupError
from sigmma_sc.registration.landmarks import Landmarks, _error, pose_of_landmarks, read_landmarks
from sigmma_sc.registration.pose import similarity
from sigmma_sc.tissue.frame import affine_to, apply_affine
from sigmma_sc.tissue.setup import slides_of

PLACES = np.array([[200.0, 240], [1000, 300], [420, 900], [900, 1050], [620, 560]])
"""Landmarks in px of the image."""


@pytest.fixture(scope="module")
def slide():
    sdata = simulate_tissue(n_cells=900, seed=1)
    SIGMMA.setup_spatialdata(sdata)
    return slides_of(sdata)[0]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("n", [3, 5])
def test_a_similarity_is_found_exactly(n, mirrored):
    pose = similarity(2.1, 1.3, mirrored, (50.0, -20.0), (400.0, 700.0))
    cells = PLACES[:n]
    landmarks = Landmarks(apply_affine(pose, cells), cells)
    np.testing.assert_allclose(landmarks.pose, pose, atol=1e-9)
    np.testing.assert_allclose(landmarks.residuals(pose), 0, atol=1e-9)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_pose_has_the_least_squares(rng, mirrored):
    pose = similarity(0.4, 1.0, mirrored, (0.0, 0.0), (10.0, 20.0))
    landmarks = Landmarks(apply_affine(pose, PLACES) + rng.normal(0, 10, PLACES.shape), PLACES)
    best = (landmarks.residuals(landmarks.pose) ** 2).sum()
    for angle, scale, shift in [(0.01, 1, 0), (-0.01, 1, 0), (0, 1.01, 0), (0, 0.99, 0), (0, 1, 3.0), (0, 1, -3.0)]:
        nudge = similarity(angle, scale, False, (600.0, 600.0), (600.0 + shift, 600.0))
        assert (landmarks.residuals(nudge @ landmarks.pose) ** 2).sum() > best


def test_the_expected_error_is_that_of_repeated_marking(slide, rng):
    """Twice the root mean square error over the cells, by a thousand draws."""
    squares, told = [], []
    for _ in range(1000):
        landmarks = Landmarks(PLACES + rng.normal(0, 5, PLACES.shape), PLACES)
        squares.append(((apply_affine(landmarks.pose, slide.xy) - slide.xy) ** 2).sum(axis=1).mean())
        told.append(_error(landmarks, slide) ** 2)
    assert np.mean(told) == pytest.approx(4 * np.mean(squares), rel=0.1)


def test_cells_go_on_to_their_nuclei(slide, rng):
    """Landmarks are some 8 µm off, and nuclei show the rest."""
    wrong = similarity(np.pi / 2, 1.0, True, (600.0, 600.0), (660.0, 540.0))
    start = replace(slide, xy=apply_affine(np.linalg.inv(wrong), slide.xy))
    cells = apply_affine(np.linalg.inv(wrong), PLACES + rng.normal(0, 16, PLACES.shape))
    found = pose_of_landmarks(start, Landmarks(PLACES, cells), 0)
    off = np.hypot(*(apply_affine(found.matrix, start.xy) - slide.xy).T) * slide.microns_per_pixel
    assert off.max() < 1
    assert found.by == "landmarks"
    assert found.certified
    assert found.certificate.nuclei > 7
    assert "5 landmarks fit with residuals of" in found.certificate.reason
    assert found.residuals.median > 3
    shift = (PLACES - apply_affine(found.matrix, cells)) * slide.microns_per_pixel
    np.testing.assert_allclose(found.residuals.shift, shift, rtol=0.01)


def test_few_cells_stay_at_the_landmarks(slide):
    few = replace(slide, xy=slide.xy[:20], rows=slide.rows[:20])
    image = PLACES + [[4, 0], [0, 4], [-4, 0], [0, -4], [0, 0]]
    found = pose_of_landmarks(few, Landmarks(image, PLACES), 0)
    np.testing.assert_allclose(found.matrix, Landmarks(image, PLACES).pose)
    assert np.isnan(found.certificate.nuclei)
    assert 0 < found.certificate.error < 10
    expected = np.hypot(*(image - apply_affine(found.matrix, PLACES)).T)[0] * slide.microns_per_pixel
    assert f"residuals of {expected:.1f}," in found.certificate.reason


def test_every_form_of_landmarks_means_the_same(slide):
    """Pixels of 0.5 µm: arrays hold px and µm, and napari-spatialdata saves both layers in the coordinate system."""
    sdata = slide.sdata
    to_system = affine_to(sdata[slide.image_key], "global", "image")
    microns = apply_affine(np.linalg.inv(affine_to(sdata[slide.region], "global", "cells")) @ to_system, PLACES)
    world = apply_affine(to_system, PLACES)
    sdata.points["on_image"] = PointsModel.parse(world, transformations={"global": Identity()})
    sdata.shapes["among_cells"] = ShapesModel.parse(
        world, geometry=0, radius=5.0, transformations={"global": Identity()}
    )
    sdata.points["elsewhere"] = PointsModel.parse(world, transformations={"other": Identity()})
    for given in (
        np.stack([PLACES, microns], axis=1),
        np.stack([PLACES, microns], axis=1).tolist(),
        (PLACES, microns),
        (PLACES.tolist(), microns.tolist()),
        ("on_image", "among_cells"),
    ):
        landmarks = read_landmarks(slide, given)
        np.testing.assert_allclose(landmarks.image, PLACES)
        np.testing.assert_allclose(landmarks.cells, PLACES)
    with pytest.raises(MissingKeyError, match="'nothing'"):
        read_landmarks(slide, ("on_image", "nothing"))
    with pytest.raises(MissingKeyError, match="'elsewhere'"):
        read_landmarks(slide, ("on_image", "elsewhere"))


LINE = np.array([[0.0, 0], [100, 100], [200, 201], [300, 300]])
HOLE = np.where(np.arange(5)[:, None] == 2, np.nan, PLACES)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((PLACES[:2], PLACES[:2]), "2 pairs. At least 3"),
        ((PLACES, PLACES[:4]), "5 places on the image and 4 among the cells"),
        ((LINE, LINE), "on a line"),
        ((PLACES[:4], np.tile(PLACES[:1], (4, 1))), "among the cells are on a line"),
        ((HOLE, PLACES), r"Landmark 2 on the image is \[nan, nan\]"),
        ((PLACES, HOLE), "Landmark 2 among the cells"),
        (PLACES, r"shape \(5,\)|no pairs"),
        (np.zeros((5, 3, 2)), "no pairs"),
        ((np.zeros((5, 3)), np.zeros((5, 3))), r"shape \(5, 3\)"),
        ("on_image", "no pairs"),
        ({"a": 1}, "no pairs"),
        (3, "no pairs"),
        ([["x", "y"], [1, 2], [3, 4]], "no pairs"),
    ],
)
def test_what_are_no_landmarks_is_refused(slide, given, words):
    with pytest.raises(SetupError, match=words):
        read_landmarks(slide, given)


def test_a_swapped_or_wrong_pair_is_named(slide, rng):
    cells = apply_affine(_to_microns(slide), PLACES + rng.normal(0, 6, PLACES.shape))
    swapped = PLACES[[0, 3, 2, 1, 4]]
    with pytest.raises(SetupError, match=r"landmarks 1 and 3 \(from 0\) were swapped"):
        read_landmarks(slide, (swapped, cells))
    wrong = PLACES + [[0, 0], [0, 0], [0, 0], [0, 0], [500, -300]]
    with pytest.raises(SetupError, match=r"without landmark 4 \(from 0\)"):
        read_landmarks(slide, (wrong, cells))
    with pytest.raises(SetupError, match="do not fit together.*same place"):
        read_landmarks(slide, (rng.permutation(PLACES[::-1] ** 1.3), cells))
    with pytest.raises(SetupError, match="no element of the object"):
        read_landmarks(replace(slide, region="gone"), (PLACES, cells))


def _to_microns(slide):
    to_system = affine_to(slide.sdata[slide.image_key], "global", "image")
    return np.linalg.inv(affine_to(slide.sdata[slide.region], "global", "cells")) @ to_system
