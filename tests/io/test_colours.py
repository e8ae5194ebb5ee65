import numpy as np
import pytest
from PIL import Image

from sigmma_sc.io.colours import rgb_of_ycbcr


def ycbcr(rgb):
    return np.array(Image.fromarray(rgb).convert("YCbCr"))


def test_tiles_that_a_file_lacks_stay_black(rng):
    slide = rng.integers(150, 250, (320, 256, 3), dtype=np.uint8)
    stored = ycbcr(slide)
    stored[64:128, 64:128] = 0
    rgb = rgb_of_ycbcr(stored)
    assert (rgb[64:128, 64:128] == 0).all()
    assert np.abs(rgb[:64].astype(int) - slide[:64]).max() <= 4
    assert rgb_of_ycbcr(np.concatenate([stored, np.full_like(stored[..., :1], 7)], -1))[..., 3].max() == 7


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_against_pillow(rng, dtype):
    stored = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(stored, "YCbCr").convert("RGB")).astype(int)
    high = np.iinfo(dtype).max // 255
    found = rgb_of_ycbcr((stored.astype(int) * high).astype(dtype))
    # Pillow's tables are rounded, and the middle of 16 bits is not 257 times that of 8.
    assert np.abs(found / high - expected).max() <= 2.5
    assert found.dtype == dtype
