"""Black padding, whatever it comes from, is told apart from dark tissue."""

import numpy as np
import pytest
import spatialdata as sd
from scipy.ndimage import maximum_filter, minimum_filter, rotate
from spatialdata.models import Image2DModel

from sigmma_sc.tissue.blank import black_padding, padding_width, without_padding
from sigmma_sc.tissue.frame import Slide
from sigmma_sc.tissue.mask import tissue_mask
from sigmma_sc.tissue.pixels import read_crops

PINK = np.array([220, 150, 190])
SIDE = 512


def slide_of(pixels, names=("r", "g", "b"), microns=0.5, **options):
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=list(names), **options)
    height, width = pixels.shape[1:]
    sdata = sd.SpatialData(images={"he": image})
    return Slide(
        "s", sdata, "he", "global", None, microns, width, height, np.empty(0, int), np.empty((0, 2)), "s", None, None
    )


@pytest.fixture
def tissue(rng):
    noise = rng.integers(-20, 21, (3, SIDE, SIDE))
    return np.clip(PINK[:, None, None] + noise, 0, 255).astype(np.uint8)


def turned(tissue, rng):
    """A picture that is turned has black corners."""
    angle = {"reshape": False, "order": 0}
    hole = rotate(np.zeros((SIDE, SIDE), bool), 30, cval=1, output=np.uint8, **angle).astype(bool)
    return rotate(tissue, 30, axes=(2, 1), cval=0, **angle), hole


def missing_tiles(tissue, rng):
    hole = np.zeros((SIDE, SIDE), bool)
    hole[128:256, 128:256] = hole[384:, 256:384] = True
    return np.where(hole, 0, tissue).astype(np.uint8), hole


def noisy_padding(tissue, rng):
    hole = np.zeros((SIDE, SIDE), bool)
    hole[:, 300:] = True
    return np.where(hole, rng.integers(0, 4, tissue.shape), tissue).astype(np.uint8), hole


def field_in_the_middle(tissue, rng):
    hole = np.zeros((SIDE, SIDE), bool)
    hole[150:300, 150:350] = True
    return np.where(hole, rng.integers(0, 2, tissue.shape), tissue).astype(np.uint8), hole


BLACK = [turned, missing_tiles, noisy_padding, field_in_the_middle]


def inside(hole, by=16):
    """What is further than ``by`` px from the border of a hole, in it and outside of it."""
    far = 2 * by + 1
    return minimum_filter(hole, far, mode="constant", cval=1), ~maximum_filter(hole, far, mode="constant", cval=0)


@pytest.mark.parametrize("black", BLACK)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float32])
def test_black_is_no_tissue_and_what_is_beside_it_stays(tissue, rng, black, dtype):
    pixels, hole = black(tissue, rng)
    high = {np.uint8: 1, np.float32: 1 / 255}.get(dtype, 257)
    mask = tissue_mask(slide_of((pixels.astype(float) * high).astype(dtype))).mask
    deep, far = (part[8::16, 8::16] for part in inside(hole))
    assert deep.sum() > 20
    assert far.sum() > 100
    assert not mask[deep].any()
    assert mask[far].all()


@pytest.mark.parametrize("black", BLACK)
def test_crops_show_glass_in_its_place(tissue, rng, black):
    pixels, hole = black(tissue, rng)
    deep, far = inside(hole)
    crops = np.array([(x, y, 64.0) for y in range(0, SIDE, 64) for x in range(0, SIDE, 64)])
    seen = 0
    for index, out in read_crops(slide_of(pixels), crops, 64):
        for (x, y, _), crop in zip(crops[index].astype(int), out, strict=True):
            window = np.s_[y : y + 64, x : x + 64]
            assert (crop[deep[window]] == 255).all()
            there = far[window]
            np.testing.assert_array_equal(crop[there], pixels[:, *window].transpose(1, 2, 0)[there])
            seen += deep[window].sum()
    assert seen == deep.sum()


@pytest.mark.parametrize("shape", [(1, 1), (7, 40), (61, 33), (90, 90)])
@pytest.mark.parametrize("width", [1, 3, 9, 17])
def test_padding_against_filters(rng, shape, width):
    pixels = rng.integers(4, 255, (*shape, 3), dtype=np.uint8)
    for _ in range(6):
        y, x = rng.integers(0, shape)
        pixels[y : y + rng.integers(1, 40), x : x + rng.integers(1, 40)] = rng.integers(0, 4)
    black = (pixels <= 3).all(axis=-1)
    centres = minimum_filter(black, width, mode="constant", cval=1)
    expected = black & maximum_filter(centres, 2 * width + 1, mode="constant", cval=0)
    found = black_padding(pixels, width)
    assert (found is None) == (not expected.any())
    if found is not None:
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(without_padding(pixels, width), np.where(expected[..., None], 255, pixels))


def disc(pixels, colour, radius=60):
    y, x = np.ogrid[:SIDE, :SIDE]
    return np.where((y - 256) ** 2 + (x - 256) ** 2 < radius**2, np.array(colour)[:, None, None], pixels).astype(
        np.uint8
    )


@pytest.mark.parametrize(
    "colour",
    [
        pytest.param((12, 10, 14), id="black ink"),
        pytest.param((70, 0, 2), id="blood"),
        pytest.param((4, 4, 4), id="pigment"),
        pytest.param((2, 0, 60), id="crowded nuclei"),
    ],
)
def test_dark_tissue_and_ink_are_not_padding(tissue, colour):
    pixels = disc(tissue, colour)
    slide = slide_of(pixels)
    assert tissue_mask(slide).mask.all()
    ((_, out),) = read_crops(slide, np.array([[200.0, 200.0, 112.0]]), 112)
    np.testing.assert_array_equal(out[0], pixels[:, 200:312, 200:312].transpose(1, 2, 0))


def test_a_nucleus_that_is_black_throughout_is_not_padding(tissue):
    """A square of 8 µm does not fit into a nucleus of 8 µm."""
    pixels = disc(tissue, (0, 0, 0), radius=8)
    ((_, out),) = read_crops(slide_of(pixels), np.array([[200.0, 200.0, 112.0]]), 112)
    np.testing.assert_array_equal(out[0], pixels[:, 200:312, 200:312].transpose(1, 2, 0))


@pytest.mark.parametrize("names", ["rgba", ["Red", "Green", "Blue", "Alpha"], [0, 1, 2, 3]])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparent_pixels_are_glass_whatever_their_colour(tissue, names, dtype):
    hole = np.zeros((SIDE, SIDE), bool)
    hole[:, :200] = True
    alpha = np.where(hole, 0, 255)[None]
    pixels = np.concatenate([np.where(hole, 90, tissue), alpha]).astype(dtype) * (257 if dtype == np.uint16 else 1)
    slide = slide_of(pixels.astype(dtype), names, scale_factors=[2])
    mask = tissue_mask(slide).mask
    assert not mask[:, :12].any()
    assert mask[:, 13:].all()
    ((_, out),) = read_crops(slide, np.array([[150.0, 100.0, 100.0]]), 100)
    assert (out[0, :, :50] == 255).all()
    np.testing.assert_array_equal(out[0, :, 50:], tissue[:, 100:200, 200:250].transpose(1, 2, 0))


@pytest.mark.parametrize(("microns", "width"), [(0.25, 33), (0.5, 17), (4.0, 3), (8.0, 1), (10.0, 1)])
def test_width_is_odd_and_measures_eight_microns(microns, width):
    assert padding_width(microns) == width
