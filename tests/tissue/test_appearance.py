"""Images that are no H&E, dark, black in part, or of fewer bits than their type: refused or warned of."""

import warnings

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from sigmma_sc import SIGMMA
from sigmma_sc.errors import ImageWarning, SetupError

SIDE = 400


@pytest.fixture(scope="module")
def he():
    """Pink with dark nuclei and some glass."""
    rng = np.random.default_rng(0)
    pixels = np.array([225, 170, 200])[:, None, None] + rng.integers(-15, 16, (3, SIDE, SIDE))
    for y, x in rng.integers(0, SIDE - 12, (300, 2)):
        pixels[:, y : y + 12, x : x + 12] = np.array([90, 60, 150])[:, None, None]
    pixels[:, :, 320:] = 243
    return np.clip(pixels, 0, 255).astype(np.uint8)


def set_up(pixels, names=None, **options):
    """Warnings of a setup, as text."""
    sdata = SpatialData.init_from_elements(
        {"he": Image2DModel.parse(pixels, ("c", "y", "x"), c_coords=names, **options)}
    )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        SIGMMA.setup_spatialdata(sdata, "he", table_key=None, microns_per_pixel=0.5, tile_size=64)
    return [str(one.message) for one in seen if issubclass(one.category, ImageWarning)]


@pytest.mark.parametrize(
    "names",
    [
        None,
        ["r", "g", "b"],
        ["Red", "Green", "Blue"],
        ["c0", "c1", "c2"],
        ["Channel:0:0", "Channel:0:1", "Channel:0:2"],
    ],
)
@pytest.mark.parametrize("options", [{}, {"scale_factors": [2, 2]}])
def test_he_is_quiet(he, names, options):
    assert set_up(he, names, **options) == []


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["DAPI", "CD3", "CD8"], "fluorescence"),
        (["CD45", "18S", "DAPI"], "fluorescence"),
        (["Hoechst 33342", "FITC", "Cy5"], "fluorescence"),
        (["Alexa Fluor 488", "x1", "x2"], "fluorescence"),
        (["PanCK", "foo", "bar"], "fluorescence"),
        (["Hematoxylin", "Eosin", "Residual"], "stain"),
        (["H", "E", "DAB"], "stain"),
        (["Haematoxylin", "DAB", "background"], "stain"),
        (["C", "M", "Y", "K"], "CMYK"),
        (["cyan", "magenta", "yellow", "black"], "CMYK"),
        (["L*", "a*", "b*"], "colour space"),
        (["Y", "Cb", "Cr"], "CMYK|colour space"),
    ],
)
def test_channels_of_other_images_are_refused_by_name(he, names, kind):
    pixels = np.concatenate([he, he[:1]])[: len(names)]
    with pytest.raises(SetupError, match=f"{names[0].replace('*', '.')}.*({kind}).*image_key"):
        set_up(pixels, names)


@pytest.mark.parametrize(
    "names", [["r", "g", "nir"], ["one", "two", "three"], ["Brightfield 1", "Brightfield 2", "rest"]]
)
def test_unknown_names_are_warned_of(he, names):
    (told,) = set_up(he, names)
    assert ", ".join(names) in told
    assert "read as red, green and blue" in told


def cmyk(he):
    """Ink of a picture: the fourth plane is what the three have in common."""
    ink = 255 - he.astype(int)
    key = ink.min(axis=0)
    return np.concatenate([ink - key, key[None]]).astype(np.uint8)


def cmyk_without_black(he):
    """As Pillow converts: no black at all."""
    return np.concatenate([255 - he, np.zeros_like(he[:1])])


def fluorescence(he):
    rng = np.random.default_rng(1)
    return np.concatenate([255 - he, rng.exponential(20, (1, SIDE, SIDE)).clip(0, 255)]).astype(np.uint8)


@pytest.mark.parametrize("four", [cmyk, cmyk_without_black, fluorescence])
@pytest.mark.parametrize("high", [1, 257])
def test_four_channels_without_names_are_refused_unless_the_last_is_alpha(he, four, high):
    with pytest.raises(SetupError, match="'he'.*four channels without names.*r, g, b, a"):
        set_up(
            four(he).astype(np.uint16 if high > 1 else np.uint8) * np.array(high, np.uint16 if high > 1 else np.uint8)
        )


def test_four_channels_with_alpha_are_taken(he):
    alpha = np.full_like(he[:1], 255)
    assert set_up(np.concatenate([he, alpha])) == []
    alpha[:, :100] = 0
    (told,) = set_up(np.concatenate([he, alpha]))
    assert "25% of it is black or transparent" in told


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("options", [{}, {"scale_factors": [2]}])
def test_the_share_of_black_is_told(he, share, options):
    pixels = he.copy()
    pixels[:, : round(share * SIDE)] = 0
    told = set_up(pixels, **options)
    assert f"{share:.0%} of it is black" in told[0]
    assert len(told) == 1


def test_of_a_large_level_windows_are_looked_at(he, monkeypatch):
    from sigmma_sc.tissue import appearance

    monkeypatch.setattr(appearance, "WHOLE", 1000)
    monkeypatch.setattr(appearance, "WINDOW", 40)
    pixels = he.copy()
    pixels[:, :200] = 0
    (told,) = set_up(pixels)
    share = int(told.split("% of it")[0].split()[-1])
    assert 40 <= share <= 60


@pytest.mark.parametrize(
    "dark",
    [
        pytest.param(lambda he: 255 - he, id="inverted"),
        pytest.param(lambda he: he // 4, id="a quarter of the brightness"),
        pytest.param(lambda he: he.astype(np.float32) / 255 / 8, id="floats up to an eighth"),
    ],
)
def test_a_dark_image_is_warned_of(he, dark):
    (told,) = set_up(dark(he))
    assert "median brightness" in told
    assert "fluorescence" in told


def with_a_black_middle(he):
    out = he.copy()
    out[:, 60:340, 60:340] = 0
    return out


def with_wide_padding(he):
    return np.pad(he, ((0, 0), (0, 0), (0, 3 * SIDE)), constant_values=0)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("shape", [np.array, with_a_black_middle, with_wide_padding])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_fewer_bits_than_the_type_are_refused_wherever_the_tissue_is(he, bits, shape, order):
    wide = (shape(he).astype(np.uint32) * (2**bits - 1) // 255).astype(order)
    with pytest.raises(SetupError, match="'he'.*16-bit.*65535"):
        set_up(wide)
    wide[:, :20] = 65535  # white padding says nothing
    with pytest.raises(SetupError, match="'he'.*16-bit.*65535"):
        set_up(wide)


def test_a_float_image_beyond_one_is_refused_wherever_it_is(he):
    pixels = he.astype(np.float32) / 255
    pixels[:, 3, 5] = 200
    with pytest.raises(SetupError, match=r"200.*\[0, 1\]"):
        set_up(pixels)
