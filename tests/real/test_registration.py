"""The registration check on the development tissue. The table in docs/registration.md is its whole answer."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from spatialdata.transformations import Identity, set_transformation

from sigmma_sc import SIGMMA, pp
from sigmma_sc.errors import RegistrationWarning

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def bench():
    folder = str(Path(__file__).resolve().parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    import registration

    yield registration
    sys.path.remove(folder)


@pytest.fixture
def spoilt(real, bench):
    """Report of a data set whose cells suffer a misfit."""

    def check(name, misfit):
        sdata = real(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RegistrationWarning)
            SIGMMA.setup_spatialdata(sdata, **bench.SETUPS[name])
        bench.spoil(sdata, misfit)
        return pp.check_registration(sdata)

    return check


def test_setup_of_a_registered_slide_does_not_warn(real, bench):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegistrationWarning)
        SIGMMA.setup_spatialdata(real("lung_xenium_mini"), **bench.SETUPS["lung_xenium_mini"])


def test_a_lost_alignment_is_told_with_what_to_do(real, bench):
    sdata = real("lung_xenium_mini")
    set_transformation(sdata["he_image"], Identity(), "global")
    with pytest.warns(RegistrationWarning, match="alignment"):
        SIGMMA.setup_spatialdata(sdata, **bench.SETUPS["lung_xenium_mini"])
    assert pp.check_registration(sdata).verdict.iloc[0] == "misregistered"


@pytest.mark.parametrize("name", ["pancreas_xenium", "lung_xenium_mini", "kidney_visiumhd"])
def test_real_slides_are_registered(spoilt, name):
    report = spoilt(name, "as it is").iloc[0]
    assert report.verdict == "registered"
    assert report.on_image > 0.99
    assert report.on_tissue > 0.85


@pytest.mark.parametrize(
    ("name", "tolerance"), [("pancreas_xenium", 2.0), ("lung_xenium_mini", 4.0), ("kidney_visiumhd", 12.0)]
)
def test_a_shift_of_20_um_is_found(spoilt, name, tolerance):
    """The registration of the kidney is itself off by some 10 µm."""
    report = spoilt(name, "shifted by 20 µm").iloc[0]
    assert report.verdict == "shifted"
    assert np.hypot(report.shift_x + 20, report.shift_y) < tolerance


@pytest.mark.parametrize("misfit", ["axes swapped", "mirrored", "pixel size wrong", "turned by 90°"])
@pytest.mark.parametrize("name", ["pancreas_xenium", "lung_xenium_mini", "kidney_visiumhd"])
def test_gross_misfits_are_caught(spoilt, name, misfit):
    verdict = spoilt(name, misfit).verdict.iloc[0]
    bins = name == "kidney_visiumhd" and misfit == "pixel size wrong"
    assert verdict == ("cannot tell" if bins else "misregistered")


@pytest.mark.parametrize("misfit", ["as it is", "mirrored"])
def test_no_verdict_on_wide_spots_is_wrong(spoilt, misfit):
    """A search over all poses ends where the spots of three sections are, and elsewhere in two."""
    verdicts = spoilt("breast_st", misfit).verdict
    if misfit == "mirrored":
        assert set(verdicts) == {"misregistered"}
    else:
        assert set(verdicts) == {"registered", "cannot tell"}
