from dataclasses import replace

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation, set_transformation

import sigmma_sc as sg
from sigmma_sc.pp.alignment import DEFAULTS
from sigmma_sc.registration.certificate import refusal
from sigmma_sc.registration.register import KNOWN_SCALE, UNKNOWN_SCALE, Registered
from sigmma_sc.registration.size import find_at_likely_sizes, likely_sizes, size_by_area
from sigmma_sc.tissue.frame import image_levels
from sigmma_sc.tissue.setup import resolve_slides

AXES = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}


def scanned(n_cells, step, seed=0):
    """A section with cells in µm at 0.5 µm a unit, and another scanner's image: axes swapped, pixels ``step`` times as large."""
    sdata = sg.datasets.simulate_tissue(n_cells=n_cells, seed=seed)
    (slide,) = resolve_slides(sdata, DEFAULTS)
    pixels = image_levels(sdata, "he_image")[0].to_numpy().transpose(0, 2, 1).astype(float)
    height, width = (side // step * step for side in pixels.shape[1:])
    blocks = pixels[:, :height, :width].reshape(3, height // step, step, width // step, step)
    scan = np.round(blocks.mean(axis=(2, 4))).astype(np.uint8)
    microns = {"global": Scale([2.0, 2.0], ("x", "y"))}
    index = sdata["cell_circles"].index
    return SpatialData(
        images={"he_image": Image2DModel.parse(scan, dims=("c", "y", "x"), c_coords=["r", "g", "b"])},
        shapes={
            "cell_circles": ShapesModel.parse(slide.xy / 2, geometry=0, radius=4, index=index, transformations=microns)
        },
        tables={"table": sdata["table"]},
    )


def slide_of(sdata, **setup):
    (slide,) = resolve_slides(sdata, replace(DEFAULTS, **setup), aligned=False)
    return slide


def off_by(sdata, step):
    """Largest distance in µm between where cells are on the scan and where they belong."""
    image = get_transformation(sdata["he_image"], "global").to_affine_matrix(("x", "y"), ("x", "y"))
    xy = np.column_stack([sdata["cell_circles"].geometry.x, sdata["cell_circles"].geometry.y]) * 2
    now = xy @ np.linalg.inv(image)[:2, :2].T + np.linalg.inv(image)[:2, 2]
    return np.hypot(*(now - xy[:, ::-1] / step).T).max() * step / 2


def test_an_identity_says_nothing_of_the_pixels():
    sdata = scanned(500, 1)
    assert list(likely_sizes(slide_of(sdata))) == [(0.5, UNKNOWN_SCALE)]
    assert list(likely_sizes(slide_of(sdata, microns_per_pixel=0.7))) == [(0.7, KNOWN_SCALE)]
    set_transformation(sdata["he_image"], Affine(np.diag([1.01, 1.01, 1.0]), **AXES), "global")
    assert list(likely_sizes(slide_of(sdata))) == [(pytest.approx(0.505), KNOWN_SCALE)]


@pytest.mark.parametrize("step", [1, 2, 4])
def test_sections_as_large_as_each_other_tell_the_size(step):
    slide = slide_of(scanned(800, step))
    assert size_by_area(slide) == pytest.approx(0.5 * step, rel=0.2)
    sizes = [size for size, _ in likely_sizes(slide)]
    assert sizes == ([0.5] if step == 1 else [size_by_area(slide), 0.5])


def test_a_scan_of_unknown_size_is_registered():
    sdata = scanned(1500, 2)
    found = sg.pp.register(sdata)
    assert found.written.all()
    assert off_by(sdata, 2) < 1
    sg.SIGMMA.setup_spatialdata(sdata)
    assert slide_of(sdata).microns_per_pixel == pytest.approx(1, rel=0.005)


@pytest.mark.slow
def test_a_wrong_size_by_a_transformation_is_corrected():
    """A scan turned by hand in another program, whose affine knows nothing of the size of its pixels."""
    sdata = scanned(1500, 2)
    turned = Affine(np.array([[0.0, -1.0, 900.0], [1.0, 0.0, 40.0], [0.0, 0.0, 1.0]]), **AXES)
    set_transformation(sdata["he_image"], turned, "global")
    wrong = slide_of(sdata)
    assert list(likely_sizes(wrong)) == [(0.5, KNOWN_SCALE), (pytest.approx(1, rel=0.2), UNKNOWN_SCALE)]
    (row,) = sg.pp.register(sdata).itertuples()
    assert row.written
    assert "pixels are of 0.99" in row.advice or "pixels are of 1" in row.advice
    assert "not of 0.5 µm" in row.advice
    assert off_by(sdata, 2) < 1


def test_without_a_certified_pose_the_search_at_the_size_of_the_alignment_counts(monkeypatch):
    lost = Registered(None, refusal("lost"), "expression", False, None, [])
    tried = []

    def refuse(slide, scales, seed):
        tried.append((slide.microns_per_pixel, scales))
        return replace(lost, certificate=refusal(f"at {slide.microns_per_pixel:.1f}"))

    monkeypatch.setattr("sigmma_sc.registration.size.find_pose", refuse)
    sdata = scanned(500, 2)
    about_one = pytest.approx(1, rel=0.2)
    assert find_at_likely_sizes(slide_of(sdata))[1].certificate.reason == "at 0.5"
    assert tried == [(about_one, UNKNOWN_SCALE), (0.5, UNKNOWN_SCALE)]
    tried.clear()
    set_transformation(sdata["he_image"], Affine(np.diag([-1.0, 1.0, 1.0]), **AXES), "global")
    assert find_at_likely_sizes(slide_of(sdata))[1].certificate.reason == "at 0.5"
    assert tried == [(0.5, KNOWN_SCALE), (about_one, UNKNOWN_SCALE)]


def test_a_stated_size_is_that_of_the_scan():
    sdata = scanned(1500, 3, seed=1)
    found = sg.pp.register(sdata, microns_per_pixel=1.5)
    assert found.written.all()
    assert off_by(sdata, 3) < 1


def test_who_is_refused_is_asked_for_the_size():
    sdata = scanned(600, 2)
    table = sdata["table"]
    table.X = table.X[np.random.default_rng(0).permutation(table.n_obs)]
    with pytest.warns(sg.errors.RegistrationWarning, match="Give the size of its pixels as microns_per_pixel"):
        found = sg.pp.register(sdata)
    assert not found.written.any()
    assert isinstance(get_transformation(sdata["he_image"], "global"), Identity)
