"""The verdict by expression: its rules by hand, and a slide whose nuclei do not show."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.registration.certificate import Certificate
from sigmma_sc.registration.check import Registration, registration
from sigmma_sc.registration.haematoxylin import Match, measure_shift
from sigmma_sc.registration.register import Registered
from sigmma_sc.registration.verdict import by_expression, judged
from sigmma_sc.tissue.setup import slides_of

NAN = float("nan")
CELLS, BINS, SPOTS = NAN, 8.0, 200.0


@pytest.fixture(scope="module")
def slide():
    sdata = simulate_tissue(n_cells=2000, seed=3)
    SIGMMA.setup_spatialdata(sdata)
    return slides_of(sdata)[0]


def evidence(verdict="cannot tell", error=NAN, r2=0.3, shuffled=0.05):
    return Certificate(verdict, "reason", error, r2, r2, shuffled, 0.0, 0.2, NAN)


def quick(verdict="cannot tell", on_image=1.0):
    curve = np.zeros((3, 3))
    match = Match(on_image, 1.0, 1.0, (0.0, 0.0), 2.0, 1.0, np.arange(-1.0, 2.0), curve, 500)
    return Registration(verdict, "advice.", match, False)


def judge(best, before, distance, pitch, start="cannot tell", on_image=1.0):
    found = Registered(np.eye(3), best, "expression", False, None, [], before)
    return judged(quick(start, on_image), found, distance, pitch)


@pytest.mark.parametrize("start", ["cannot tell", "misregistered"])
@pytest.mark.parametrize(("distance", "verdict"), [(0, "registered"), (13, "registered"), (15, "misregistered")])
def test_a_certified_pose_decides_by_its_distance(distance, verdict, start):
    """Its error, 8 µm, and the size of a nucleus, 6 µm, are allowed."""
    report = judge(evidence("registered", 8.0), evidence(), distance, BINS, start)
    assert report.verdict == verdict
    assert f"{distance} µm" in report.advice
    assert ("pp.register" in report.advice) == (verdict == "misregistered")
    assert report.distance == distance


@pytest.mark.parametrize("start", ["cannot tell", "misregistered"])
def test_without_a_certified_pose_nothing_changes_but_the_reason(start):
    report = judge(evidence(), evidence(), 500, BINS, start)
    assert report.verdict == start
    assert report.advice == "advice. Expression does not decide: reason."


@pytest.mark.parametrize(
    ("distance", "pitch", "before", "verdict"),
    [
        (99, SPOTS, evidence(), "registered"),
        (101, SPOTS, evidence(), "cannot tell"),
        (20, SPOTS, evidence(r2=0.09), "cannot tell"),
        (20, SPOTS, evidence(r2=0.2, shuffled=0.25), "cannot tell"),
    ],
)
def test_wide_spots_are_registered_if_the_search_ends_where_they_are(distance, pitch, before, verdict):
    assert judge(evidence(), before, distance, pitch).verdict == verdict


@pytest.mark.parametrize("pitch", [BINS, CELLS])
@pytest.mark.parametrize(
    ("distance", "r2", "verdict"), [(49, 0.3, "cannot tell"), (51, 0.3, "misregistered"), (49, 0.04, "misregistered")]
)
def test_cells_are_not_condemned_if_the_search_ends_where_they_are(distance, r2, verdict, pitch):
    assert judge(evidence(), evidence(r2=r2), distance, pitch, "misregistered").verdict == verdict


@pytest.mark.parametrize(
    ("error", "r2", "verdict"), [(90.0, 0.04, "misregistered"), (90.0, 0.06, "cannot tell"), (NAN, 0.04, "cannot tell")]
)
def test_an_alignment_that_explains_nothing_yields_to_one_that_does(error, r2, verdict):
    """The error is measured only of a pose that holds in squares held out and has no rival."""
    assert judge(evidence(error=error), evidence(r2=r2), 700, BINS).verdict == verdict


def test_cells_beside_the_image_are_named_and_not_condemned():
    report = judge(evidence("registered", 8.0), evidence(), 2, BINS, on_image=0.6)
    assert report.verdict == "registered"
    assert "Only 60% of the cells are under the image" in report.advice


@pytest.mark.slow
def test_a_search_tells_where_the_cells_belong(slide):
    report = by_expression(slide, quick(), seed=0)
    assert report.verdict == "registered", report.advice
    assert report.distance < 1
    assert report.found.before.r2_held_out > 0.1
    wrong = replace(slide, xy=slide.xy + (60 / slide.microns_per_pixel, 0))
    report = by_expression(wrong, registration(wrong), seed=0)
    assert report.verdict == "misregistered"
    assert report.distance == pytest.approx(60, abs=1)
    assert report.found.before.r2 < report.found.certificate.r2


def test_an_image_out_of_focus_is_not_condemned(slide):
    """Blurred by 20 µm: tissues keep their colour, and no nucleus shows."""
    level = slide.sdata.images[slide.image_key]["scale0"]["image"].to_numpy()
    pixels = gaussian_filter(level.astype(float), (0, 40, 40)).astype(np.uint8)
    image = Image2DModel.parse(pixels, ("c", "y", "x"), c_coords=["r", "g", "b"])
    blurred = replace(slide, sdata=SpatialData(images={"x": image}), image_key="x")
    assert measure_shift(blurred, blurred.xy, None, 64, 0).best_score < 7
    report = by_expression(blurred, quick("misregistered"), seed=0)
    assert report.verdict == "cannot tell", report.advice
    assert report.distance < 20


def test_no_search_where_nuclei_decide_or_counts_are_not_raw(slide, monkeypatch):
    logs = slide.table.copy()
    logs.X = logs.X.log1p()
    report = by_expression(replace(slide, adata=logs), quick(), seed=0)
    assert report.verdict == "cannot tell"
    assert "Expression was not used" in report.advice
    assert "normalised already" in report.advice
    monkeypatch.setattr("sigmma_sc.registration.verdict.find_at_likely_sizes", lambda *a, **k: pytest.fail("searched"))
    found = registration(slide)
    assert by_expression(slide, found, seed=0) is found
    bare = replace(slide, adata=slide.table[:, :0].copy())
    assert by_expression(bare, quick(), seed=0).verdict == "cannot tell"
