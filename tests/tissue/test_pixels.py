import numpy as np
import pytest
import spatialdata as sd
from spatialdata.models import Image2DModel

from sigmma_sc._checks import SetupError
from sigmma_sc.tissue.frame import Slide
from sigmma_sc.tissue.pixels import read_crops, read_window, to_uint8


def slide_of(pixels, **kwargs):
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], **kwargs)
    sdata = sd.SpatialData(images={"he": image})
    height, width = pixels.shape[1:]
    empty = np.empty(0, np.int64)
    return Slide("s", sdata, "he", "global", None, 0.5, width, height, empty, np.empty((0, 2)), "s")


@pytest.mark.parametrize("chunks", [(3, 64, 64), (1, 300, 500)])
def test_whole_pixels_come_back_unchanged(rng, chunks):
    pixels = rng.integers(0, 255, (3, 300, 500), dtype=np.uint8)
    slide = slide_of(pixels, chunks=chunks)
    crops = np.array([[0, 0, 32], [468, 268, 32], [100, 7, 32], [255, 130, 32]], float)
    seen = np.zeros(4, int)
    for index, out in read_crops(slide, crops, 32):
        seen[index] += 1
        for k, got in zip(index, out, strict=True):
            x, y, side = crops[k].astype(int)
            np.testing.assert_array_equal(got, pixels[:, y : y + side, x : x + side].transpose(1, 2, 0))
    np.testing.assert_array_equal(seen, 1)


def test_fractional_positions_are_not_rounded():
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 256, 256)).copy()
    slide = slide_of(ramp)
    for shift in (0.0, 0.25, 0.5):
        ((_, out),) = read_crops(slide, np.array([[100 + shift, 50.0, 64]]), 16)
        # The centre of output pixel k lies at 100 + shift + 4 (k + ½), where the ramp reads that minus ½.
        expected = 100 + shift + 4 * (np.arange(16) + 0.5) - 0.5
        np.testing.assert_allclose(out[0, 8, :, 0], expected, atol=0.51)


def test_a_coarser_level_gives_the_same_picture(rng):
    from scipy.ndimage import gaussian_filter

    smooth = np.stack([gaussian_filter(rng.random((1024, 1024)), 12) for _ in range(3)])
    pixels = ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)
    crop = np.array([[100.3, 200.7, 512.0]])
    ((_, single),) = read_crops(slide_of(pixels), crop, 64)
    ((_, pyramid),) = read_crops(slide_of(pixels, scale_factors=[2, 2]), crop, 64)
    assert np.abs(single.astype(int) - pyramid.astype(int)).max() <= 3


def test_beyond_the_edge_is_glass(rng):
    slide = slide_of(rng.integers(0, 100, (3, 50, 50), dtype=np.uint8))
    level = slide.sdata.images["he"]
    window = read_window(level, -10, -5, 60, 50)
    assert (window[:5] == 255).all()
    assert (window[:, :10] == 255).all()
    np.testing.assert_array_equal(window[5:, 10:60], np.asarray(level.data.transpose(1, 2, 0)))


def test_other_pixel_types():
    assert to_uint8(np.array([65535, 256], np.uint16)).tolist() == [255, 1]
    assert to_uint8(np.array([0.0, 0.5, 1.0])).tolist() == [0, 128, 255]
    with pytest.raises(SetupError, match="int32"):
        to_uint8(np.array([1], np.int32))
