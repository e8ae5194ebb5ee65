import numpy as np
import pytest
from spatialdata.models import Image2DModel
from xarray import DataArray

from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.channels import channel_names, has_alpha, is_numbered, kind_of, require_colours


def level(names):
    return Image2DModel.parse(np.zeros((len(names), 8, 8), np.uint8), ("c", "y", "x"), c_coords=names)


def test_names_of_colours_are_one_letter_and_those_of_others_stay():
    assert channel_names(level(["Red", " green", "B", "Alpha"])) == ["r", "g", "b", "alpha"]
    assert channel_names(DataArray(np.zeros((3, 2, 2)), dims=("c", "y", "x"))) == ["0", "1", "2"]


@pytest.mark.parametrize(
    "names", [[0, 1, 2], ["c0", "c1", "c2"], ["Channel:0:0", "Channel:0:1"], ["ch_1", "ch_2"], ["S1", "S2"]]
)
def test_numbers_are_no_names(names):
    assert is_numbered([str(name).lower() for name in names])


@pytest.mark.parametrize("name", ["cd3", "18s", "he_1x", "red", "c", "h&e"])
def test_names_are_no_numbers(name):
    assert not is_numbered([name])


@pytest.mark.parametrize(
    ("names", "alpha"),
    [
        (list("rgba"), True),
        (["red", "green", "blue", "alpha"], True),
        ([0, 1, 2, 3], True),
        (["r", "g", "b", "nir"], False),
        (list("cmyk"), False),
        (list("rgb"), False),
        ([0, 1, 2, 3, 4], False),
    ],
)
def test_alpha_by_name_or_by_number(names, alpha):
    assert has_alpha(level(names)) == alpha


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dapi", "fluorescence"),
        ("hoechst 33342", "fluorescence"),
        ("alexa fluor 647", "fluorescence"),
        ("cd8a", "fluorescence"),
        ("ck19", "fluorescence"),
        ("pan-cytokeratin", "fluorescence"),
        ("dab", "stain"),
        ("haematoxylin", "stain"),
        ("cyan", "CMYK"),
        ("cb", "colour space"),
        ("he_red", None),
        ("brightfield", None),
        ("transmitted light", None),
        ("image", None),
    ],
)
def test_kind_of_a_channel(name, kind):
    found = kind_of(["first", name, "third"])
    assert (found is None) == (kind is None)
    assert kind is None or kind in found


@pytest.mark.parametrize("order", ["bgr", "grb", "rbg"])
def test_another_order_is_refused(order):
    with pytest.raises(SetupError, match=f"order {', '.join(order)}"):
        require_colours(level(list(order)))
