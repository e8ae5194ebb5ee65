import numpy as np
import pytest
from spatialdata.models import Image2DModel

from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.decode import read_window, to_uint8


def test_beyond_the_edge_is_glass(rng):
    level = Image2DModel.parse(rng.integers(0, 100, (3, 50, 50), dtype=np.uint8), ("c", "y", "x"))
    window = read_window(level, -10, -5, 60, 50)
    assert (window[:5] == 255).all()
    assert (window[:, :10] == 255).all()
    np.testing.assert_array_equal(window[5:, 10:60], np.asarray(level.data.transpose(1, 2, 0)))


def test_other_pixel_types():
    assert to_uint8(np.array([65535, 256], np.uint16)).tolist() == [255, 1]
    assert to_uint8(np.array([0.0, 0.5, 1.0])).tolist() == [0, 128, 255]
    with pytest.raises(SetupError, match="int32"):
        to_uint8(np.array([1], np.int32))


@pytest.mark.parametrize("order", ["<u2", ">u2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("chunks", [(3, 40, 40), (1, 64, 30)])
def test_full_range_in_either_order_of_bytes_is_the_same_as_8_bits(rng, order, chunks):
    pixels = rng.integers(0, 256, (3, 130, 100), dtype=np.uint8)
    wide = (pixels.astype(np.uint16) * 257).astype(order) if order.endswith("u2") else (pixels / 255).astype(order)
    level = Image2DModel.parse(wide, ("c", "y", "x"), chunks=chunks)
    np.testing.assert_array_equal(read_window(level, 5, 7, 90, 120), pixels[:, 7:120, 5:90].transpose(1, 2, 0))


@pytest.mark.parametrize("names", [list("rgba"), [0, 1, 2, 3]])
def test_a_window_shows_glass_where_alpha_is_below_half(rng, names):
    pixels = rng.integers(0, 256, (4, 60, 60), dtype=np.uint8)
    window = read_window(Image2DModel.parse(pixels, ("c", "y", "x"), c_coords=names), 0, 0, 60, 60)
    clear = pixels[3] < 128
    assert (window[clear] == 255).all()
    np.testing.assert_array_equal(window[~clear], pixels[:3].transpose(1, 2, 0)[~clear])


def test_a_fourth_channel_of_another_name_hides_nothing(rng):
    pixels = rng.integers(0, 256, (4, 60, 60), dtype=np.uint8)
    level = Image2DModel.parse(pixels, ("c", "y", "x"), c_coords=["r", "g", "b", "depth"])
    np.testing.assert_array_equal(read_window(level, 0, 0, 60, 60), pixels[:3].transpose(1, 2, 0))
