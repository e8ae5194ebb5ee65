"""The check on tissue of known alignment, and its parts by hand."""

import re
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from spatialdata.transformations import Affine, Sequence, Translation, get_transformation, set_transformation

import sigmma_sc as sg
from sigmma_sc import _keys
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import MissingKeyError, RegistrationWarning, SetupError
from sigmma_sc.registration.check import Registration, checked_slides, lattice_pitch, registration, warn_unregistered
from sigmma_sc.registration.haematoxylin import Zoom, measure_shift
from sigmma_sc.registration.record import alignment
from sigmma_sc.tissue.setup import resolve_slides, stored_setup, totals_of

pytestmark = pytest.mark.filterwarnings("ignore::sigmma_sc.errors.RegistrationWarning")


@pytest.fixture(scope="module")
def simulated():
    sdata = simulate_tissue(n_cells=900, seed=1)
    sg.SIGMMA.setup_spatialdata(sdata)
    return sdata


@pytest.fixture
def slide(simulated):
    return resolve_slides(simulated, stored_setup(simulated))[0]


@pytest.fixture
def spoilt(simulated):
    """Check the slide with its cells moved by a matrix in the pixels of the image, then put the image back."""
    image = simulated["he_image"]
    right = get_transformation(image, "global")

    def check(matrix):
        inverse = Affine(np.linalg.inv(np.asarray(matrix, float)), input_axes=("x", "y"), output_axes=("x", "y"))
        set_transformation(image, Sequence([inverse, right]), "global")
        return next(checked_slides(simulated))[1]

    yield check
    set_transformation(image, right, "global")


def bins_of(slide, size, blur=0.0):
    """Bins of ``size`` µm over the image, and counts that follow haematoxylin under each, as a lattice would have them."""
    step = size / slide.microns_per_pixel
    centres = [np.arange(step / 2, extent, step) for extent in (slide.width, slide.height)]
    xy = np.stack(np.meshgrid(*centres), axis=-1).reshape(-1, 2)
    bins = replace(slide, xy=xy, rows=np.arange(len(xy)))
    zoom = Zoom.of(slide, 1.0)
    side = int(max(slide.width, slide.height) / zoom.px) + 1
    stain = zoom.stains(np.array([0, 0]), side, 1.0)[0]
    column, row = np.floor(xy / zoom.px).astype(int).T
    return bins, np.random.default_rng(0).poisson(np.exp(2 + 4 * stain[row, column])).astype(float)


def test_registered(spoilt):
    report = spoilt(np.eye(3))
    assert report.verdict == "registered"
    assert report.decided
    assert report.match.on_image == 1
    assert report.match.on_tissue > 0.95
    assert np.hypot(*report.match.best_shift) < 2
    assert report.match.agreement == 1


@pytest.mark.parametrize(
    ("told", "decided", "elsewhere", "warned"),
    [
        ({}, False, False, True),
        ({"verdict": "registered"}, False, False, False),
        ({"verdict": "cannot tell"}, False, False, True),
        ({"verdict": "registered"}, False, True, True),
        # Nuclei that fit elsewhere are believed more.
        ({"verdict": "registered"}, True, False, True),
    ],
    ids=["never registered", "certified", "refused", "moved since", "nuclei fit elsewhere"],
)
def test_setup_believes_a_certified_pose(simulated, slide, monkeypatch, told, decided, elsewhere, warned):
    """As of an image that shows no nuclei, registered by expression."""
    report = Registration("misregistered", "not there", None, decided)
    monkeypatch.setattr("sigmma_sc.registration.check.registration", lambda slide, totals: report)
    image = simulated["he_image"]
    right = get_transformation(image, "global")
    monkeypatch.setitem(simulated.attrs, _keys.REGISTRATION, {slide.region: {**told, "alignment": alignment(slide)}})
    try:
        if elsewhere:
            set_transformation(image, Sequence([right, Translation([9.0], ("x",))]), "global")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_unregistered(slide)
    finally:
        set_transformation(image, right, "global")
    assert [one.category for one in caught] == [RegistrationWarning] * warned


def test_a_shift_is_caught_with_its_size_and_direction(spoilt):
    """Cells 20 µm too far to the right and 8 µm too high have to move back."""
    report = spoilt([[1, 0, 40], [0, 1, -16], [0, 0, 1]])
    assert report.verdict == "shifted"
    assert report.match.best_shift == pytest.approx((-20, 8), abs=1.5)
    assert report.match.best_score > 2 * report.match.score


@pytest.mark.parametrize(
    ("misfit", "words"),
    [
        (lambda w, h: [[0, 1, 0], [1, 0, 0], [0, 0, 1]], r"were at \(y, x\)"),
        (lambda w, h: [[-1, 0, w], [0, 1, 0], [0, 0, 1]], r"were at \(\d+ − x, y\)"),
        (lambda w, h: [[0, -1, (w + h) / 2], [1, 0, (h - w) / 2], [0, 0, 1]], "not registered"),
        (lambda w, h: np.diag([0.776, 0.776, 1]), "not registered"),
        (lambda w, h: [[1, 0, 0.5 * w], [0, 1, 0.1 * h], [0, 0, 1]], "Only .*% of the cells are under the image"),
    ],
    ids=["axes swapped", "mirrored", "turned", "pixel size wrong", "half beside the image"],
)
def test_misfits_are_caught(spoilt, slide, misfit, words):
    report = spoilt(misfit(slide.width, slide.height))
    assert report.verdict == "misregistered"
    assert "set_transformation" in report.advice
    assert re.search(words, report.advice), report.advice


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_right_image_of_a_part_of_the_section_is_registered(slide, share):
    """As of one core, or of a slide scanned in part."""
    part = replace(slide, width=int(share * slide.width))
    found = registration(part)
    assert found.verdict == "registered", found.advice
    assert found.match.on_image == (slide.xy[:, 0] < part.width).mean() < 0.9
    assert f"Only {found.match.on_image:.0%} of the cells are under the image" in found.advice


def test_an_image_with_hardly_a_cell_is_no_part_of_the_section(slide, spoilt):
    third = np.sort(slide.xy[:, 0])[2]
    report = spoilt([[1, 0, slide.width - third - 1e-6], [0, 1, 0], [0, 0, 1]])
    assert report.match.on_image == 3 / len(slide.xy)
    assert report.verdict == "misregistered"
    assert "hardly any cell is under the image" in report.advice


def test_setup_warns_of_cells_beside_the_image_if_nothing_says_that_this_is_right(simulated, spoilt, slide):
    """Some forty cells are under the image: too few for a peak, or for the lack of one."""
    spoilt([[1, 0, 0.82 * slide.width], [0, 1, 0], [0, 0, 1]])
    with pytest.warns(RegistrationWarning, match="too few.*Only .* are under the image.*pp.register"):
        sg.SIGMMA.setup_spatialdata(simulated)


def test_spots_beside_an_image_of_a_part_of_the_section_are_not_condemned(slide):
    bins, counts = bins_of(slide, 55.0)
    found = registration(replace(bins, width=bins.width // 2), lambda cells: counts[cells])
    assert found.verdict == "cannot tell"
    assert "under the image" in found.advice


def test_shifts_that_differ_from_place_to_place_are_no_registration(slide):
    """As under a pixel size that is a little wrong: here both thirds at the sides lie 16 µm off, in opposite directions."""
    third = np.floor(3 * slide.xy[:, 0] / slide.width) - 1
    found = registration(replace(slide, xy=slide.xy + np.outer(third, (32, 0))))
    assert found.match.agreement == pytest.approx(2 / 3, abs=0.08)
    assert found.verdict == "misregistered"
    assert "pixel size" in found.advice


def test_bins_tell_by_their_counts(slide):
    bins, counts = bins_of(slide, 8.0)
    assert lattice_pitch(bins.xy) * slide.microns_per_pixel == pytest.approx(8)
    assert registration(bins, lambda cells: counts[cells]).verdict == "registered"
    moved = replace(bins, xy=bins.xy - (40, 0))  # 20 µm
    found = registration(moved, lambda cells: counts[cells])
    assert found.verdict == "shifted", found.advice
    assert found.match.best_shift == pytest.approx((20, 0), abs=4)
    shuffled = np.random.default_rng(1).permutation(counts)
    assert registration(bins, lambda cells: shuffled[cells], n_windows=3).verdict == "cannot tell"
    assert registration(bins, None, n_windows=3).verdict == "cannot tell"


def test_wide_spots_never_count_as_registered(slide):
    bins, counts = bins_of(slide, 55.0)
    found = registration(bins, lambda cells: counts[cells])
    assert found.verdict == "cannot tell"
    assert np.isnan(found.match.score)


def test_few_cells_cannot_tell(slide):
    """Nor can they where they lie right: a few cells peak somewhere by chance."""
    for moved in (0.0, 30.0):
        few = replace(slide, xy=slide.xy[:12] + moved, rows=np.arange(12))
        assert registration(few).verdict == "cannot tell"


def test_each_cell_counts_once_and_the_seed_decides(slide):
    one, two, other = (measure_shift(slide, slide.xy, None, 64, seed) for seed in (0, 0, 1))
    assert one.n_cells <= len(slide.xy)
    np.testing.assert_array_equal(one.curve, two.curve)
    assert one.score == two.score != other.score


def test_counts_are_read_of_the_windows_alone(simulated, slide):
    counts = np.asarray(simulated["table"].X.sum(axis=1)).ravel()
    np.testing.assert_allclose(totals_of(slide)(np.array([3, 8])), counts[[3, 8]])


def test_setup_warns_of_a_shift(simulated, spoilt):
    spoilt([[1, 0, 40], [0, 1, 0], [0, 0, 1]])
    with pytest.warns(RegistrationWarning, match="shifted.*move by"):
        sg.SIGMMA.setup_spatialdata(simulated)


def test_objects_by_name_and_objects_without_setup(simulated):
    report = sg.pp.check_registration({"a": simulated})
    assert list(report.index) == ["a/cell_circles"]
    with pytest.raises(SetupError, match="setup_spatialdata"):
        sg.pp.check_registration(simulate_tissue(n_cells=100, seed=0))


def test_figure(simulated, tmp_path):
    import matplotlib.pyplot as plt

    axes = sg.pl.registration(simulated, n_windows=2, show=False)
    assert len(axes) == 3
    assert axes[0].get_title() == "cell_circles: registered"
    drawn = axes[0].collections[0].get_offsets()
    assert len(drawn) > 3
    assert (drawn >= 0).all()
    assert (drawn <= 100.5).all()
    plt.close(axes[0].figure)
    given = list(plt.subplots(1, 2)[1])
    assert sg.pl.registration(simulated, "cell_circles", n_windows=1, ax=given, save=tmp_path / "f.png") == given
    assert (tmp_path / "f.png").stat().st_size > 10_000
    with pytest.raises(MissingKeyError, match="'other'"):
        sg.pl.registration(simulated, "other")
    with pytest.raises(SetupError, match="need 3"):
        sg.pl.registration(simulated, n_windows=2, ax=given)


def test_the_figure_has_the_verdict_of_the_whole_check(simulated, monkeypatch):
    """Where nuclei do not decide, the search does, in the figure as in the table."""
    searched = []

    def by_expression(slide, by_nuclei, seed):
        searched.append((slide.name, by_nuclei.verdict, seed))
        return replace(by_nuclei, verdict="misregistered")

    # The name in the package is the function, not its module.
    monkeypatch.setattr(sys.modules["sigmma_sc.pl.registration"], "by_expression", by_expression)
    axes = sg.pl.registration(simulated, n_windows=1, seed=3, show=False)
    assert axes[0].get_title() == "cell_circles: misregistered"
    assert searched == [("cell_circles", "registered", 3)]
