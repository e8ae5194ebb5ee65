"""Levels of a pyramid lie where their pixels say."""

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from scipy.ndimage import gaussian_filter, zoom
from spatialdata.models import Image2DModel
from xarray import DataArray, Dataset, DataTree

from sigmma_sc.registration.haematoxylin import Zoom
from sigmma_sc.tissue.frame import Slide
from sigmma_sc.tissue.levels import level_frames, level_scales
from sigmma_sc.tissue.mask import tissue_mask
from sigmma_sc.tissue.pixels import read_crops


def slide_of(levels):
    tree = {}
    for number, pixels in enumerate(levels):
        _, height, width = pixels.shape
        coords = {
            "c": list("rgb"),
            "y": (np.arange(height) + 0.5) * levels[0].shape[1] / height,
            "x": (np.arange(width) + 0.5) * levels[0].shape[2] / width,
        }
        tree[f"scale{number}"] = Dataset(
            {"image": DataArray(da.from_array(pixels), coords, ("c", "y", "x"), attrs={"transform": {}})}
        )
    image = DataTree.from_dict(tree)
    sd.transformations.set_transformation(image, sd.transformations.Identity(), "global")
    return slide_with(image, *levels[0].shape[1:])


def slide_with(image, height, width):
    sdata = sd.SpatialData(images={"he": Image2DModel.parse(image) if isinstance(image, DataArray) else image})
    return Slide(
        "s", sdata, "he", "global", None, 0.5, width, height, np.empty(0, int), np.empty((0, 2)), "s", None, None
    )


def halved(pixels, drop_first):
    """Means of 2 × 2 px, without the first or the last row and column of an odd side."""
    height, width = np.array(pixels.shape[1:]) // 2 * 2
    y, x = np.array(pixels.shape[1:]) % 2 * drop_first
    part = pixels[:, y : y + height, x : x + width].astype(float)
    return part.reshape(3, height // 2, 2, width // 2, 2).mean((2, 4)).round().astype(np.uint8)


def stretched(pixels):
    """The whole picture on half of the pixels, rounded down."""
    size = np.array(pixels.shape[1:])
    smooth = gaussian_filter(pixels.astype(float), (0, 0.6, 0.6))
    return (
        np.stack([zoom(c, (size // 2) / size, order=1, grid_mode=True, mode="nearest") for c in smooth])
        .round()
        .astype(np.uint8)
    )


@pytest.fixture(scope="module")
def picture():
    """Blobs of the size of nuclei; both sides are odd three times."""
    rng = np.random.default_rng(0)
    smooth = np.stack([gaussian_filter(rng.random((503, 719)), 3) for _ in range(3)])
    return ((smooth - smooth.min()) / np.ptp(smooth) * 225 + 20).astype(np.uint8)


def pyramid(picture, half):
    levels = [picture]
    for _ in range(3):
        levels.append(half(levels[-1]))
    return levels


@pytest.mark.parametrize(
    ("half", "origin"),
    [
        pytest.param(lambda p: halved(p, True), 1.0, id="drops the first"),
        pytest.param(lambda p: halved(p, False), 0.0, id="drops the last"),
        pytest.param(stretched, 0.5, id="stretches"),
    ],
)
def test_origin_is_found_by_content(picture, half, origin):
    frames = level_frames(slide_of(pyramid(picture, half)))
    np.testing.assert_array_equal(frames.scales, [1, 2, 4, 8])
    odd = np.array([[719 % 2, 503 % 2], [359 % 2, 251 % 2], [179 % 2, 125 % 2]])
    expected = np.vstack([[0, 0], np.cumsum(odd * origin * np.array([[1], [2], [4]]), axis=0)])
    np.testing.assert_allclose(frames.origins, expected)


def test_pyramids_of_spatialdata_itself(picture):
    """They drop the first pixel of an odd side, in the versions known; what matters is that crops agree with level 0."""
    slide = slide_with(
        Image2DModel.parse(picture, ("c", "y", "x"), c_coords=list("rgb"), scale_factors=[2, 2, 2]), 503, 719
    )
    plain = slide_with(Image2DModel.parse(picture, ("c", "y", "x"), c_coords=list("rgb")), 503, 719)
    for side in (64.0, 128.0, 256.0):
        crops = np.array([[40.0, 60.0, side], [300.0, 100.0, side], [200.3, 20.7, side]])
        expected = next(read_crops(plain, crops, 32))[1].astype(int)
        off = np.abs(next(read_crops(slide, crops, 32))[1] - expected).mean()
        # Half a pixel of the level away, the crops are much less alike.
        crops[:, :2] += side / 64
        away = np.abs(next(read_crops(plain, crops, 32))[1] - expected).mean()
        assert off < away / 2


@pytest.mark.parametrize("drop_first", [True, False])
def test_a_dot_is_where_it_is_at_every_level(drop_first):
    """Crops, mask and windows of the registration place a dark square of known position within a tenth of a coarse pixel."""
    rng = np.random.default_rng(1)
    pixels = np.full((3, 503, 719), 240, np.int64) + rng.integers(-3, 4, (3, 503, 719))
    middle = np.array([399.0, 263.0])
    pixels[:, 247:279, 383:415] = 120
    slide = slide_of(pyramid(pixels.astype(np.uint8), lambda p: halved(p, drop_first)))
    for side in (64, 128, 256):
        ((_, out),) = read_crops(slide, np.array([[*(middle - side / 2), side]]), 32)
        dark = 240.0 - out[0].mean(axis=-1)
        dark[dark < 10] = 0
        grid = (np.arange(32) + 0.5) * side / 32 - side / 2
        centre = np.array([(dark.sum(0) * grid).sum(), (dark.sum(1) * grid).sum()]) / dark.sum()
        np.testing.assert_allclose(centre, 0, atol=0.1 * side / 32)
    for microns in (0.5, 1.0, 2.0, 4.0):
        view = Zoom.of(slide, microns)
        dark = 240.0 - view.pixels(np.zeros(2, int), int(500 / view.px)).mean(axis=-1)
        dark[dark < 10] = 0
        grid = np.arange(len(dark)) + 0.5
        centre = np.array([(dark.sum(0) * grid).sum(), (dark.sum(1) * grid).sum()]) / dark.sum()
        np.testing.assert_allclose(centre, view.place(middle), atol=0.1)
    mask = tissue_mask(slide)
    assert mask.share(np.array([[383.0, 247.0]]), 32)[0] > 0.7


def test_flat_pictures_keep_their_first_pixel():
    frames = level_frames(slide_of(pyramid(np.full((3, 103, 51), 240, np.uint8), lambda p: halved(p, True))))
    np.testing.assert_array_equal(frames.origins, 0)


def test_a_pyramid_of_even_sides_is_not_read(monkeypatch, picture):
    from sigmma_sc.tissue import levels

    monkeypatch.setattr(levels, "read_window", None)
    even = picture[:, :496, :704]
    np.testing.assert_array_equal(level_frames(slide_of(pyramid(even, lambda p: halved(p, False)))).origins, 0)


def test_pyramids_that_drop_the_last_row_keep_their_scale():
    def levels(*shapes):
        return [DataArray(da.zeros((3, h, w), dtype=np.uint8), dims=("c", "y", "x")) for w, h in shapes]

    # 1,001 px halve to 500, which are 2 px each: a ratio of 2.002 would be 30 px off at the lower end.
    np.testing.assert_array_equal(level_scales(levels((1001, 60000), (500, 30000), (125, 7500))), [1, 2, 8])
    np.testing.assert_array_equal(level_scales(levels((5371, 17079), (2686, 8540), (1343, 4270))), [1, 2, 4])
    np.testing.assert_allclose(level_scales(levels((1000, 900), (700, 630))), [1, 10 / 7])
