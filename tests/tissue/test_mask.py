from dataclasses import replace

import numpy as np
import pytest
import spatialdata as sd
from spatialdata.models import Image2DModel

from sigmma_sc.tissue.frame import Slide
from sigmma_sc.tissue.mask import TissueMask, tissue_mask

PINK = np.array([220, 150, 190], np.uint8)


def slide_of(pixels, microns=0.5, **kwargs):
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], **kwargs)
    height, width = pixels.shape[1:]
    sdata = sd.SpatialData(images={"he": image})
    return Slide(
        "s", sdata, "he", "global", None, microns, width, height, np.empty(0, int), np.empty((0, 2)), "s", None, None
    )


@pytest.fixture
def half(rng):
    """Tissue on the left half, glass on the right, both noisy."""
    pixels = np.full((3, 512, 1024), 243, np.int16)
    pixels[:, :, :512] = PINK[:, None, None]
    return np.clip(pixels + rng.integers(-3, 4, pixels.shape), 0, 255).astype(np.uint8)


def test_share_by_hand():
    mask = TissueMask(np.array([[1, 1, 0], [1, 0, 0]], bool), 10.0)
    origins = np.array([[0, 0], [10, 0], [20, 10], [-10, 0], [10, 10]], float)
    np.testing.assert_allclose(mask.share(origins, 20.0), [3 / 4, 1 / 4, 0, 2 / 4, 0])


def test_tissue_is_found_and_glass_is_not(half):
    mask = tissue_mask(slide_of(half))
    assert mask.scale == 16
    assert mask.mask.shape == (32, 64)
    assert mask.mask[:, :32].all()
    assert not mask.mask[:, 32:].any()


@pytest.mark.parametrize("layout", [{"scale_factors": [2, 2]}, {"chunks": (1, 100, 300)}])
def test_levels_and_chunks_do_not_matter(half, layout):
    plain, other = tissue_mask(slide_of(half)), tissue_mask(slide_of(half, **layout))
    origins = np.array([[0, 0], [400, 0], [600, 200]], float)
    np.testing.assert_allclose(plain.share(origins, 256.0), other.share(origins, 256.0), atol=0.02)


def test_a_slide_full_of_tissue_is_all_tissue():
    """A threshold between two classes would call the paler half glass."""
    pixels = np.where(np.arange(1024) < 512, PINK[:, None], np.array([150, 80, 150])[:, None])
    pixels = np.broadcast_to(pixels[:, None], (3, 512, 1024)).astype(np.uint8)
    assert tissue_mask(slide_of(pixels)).mask.all()


def test_bare_glass_holds_no_tissue():
    assert not tissue_mask(slide_of(np.full((3, 300, 300), 244, np.uint8))).mask.any()


def test_an_image_smaller_than_a_mask_pixel():
    slide = slide_of(np.broadcast_to(PINK[:, None, None], (3, 8, 8)).copy())
    assert tissue_mask(replace(slide, microns_per_pixel=0.25)).mask.all()
