import numpy as np
import pytest

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.tissue.pixels import read_crops
from sigmma_sc.tissue.setup import resolve_slides, stored_setup
from sigmma_sc.tissue.tilepixels import TilePixels


@pytest.fixture(scope="module")
def slide():
    sdata = simulate_tissue(n_cells=800, seed=0)
    SIGMMA.setup_spatialdata(sdata)
    return resolve_slides(sdata, stored_setup(sdata))[0]


def by_reader(slide, origins, side, size):
    out = np.empty((len(origins), size, size, 3), np.uint8)
    for index, pixels in read_crops(slide, np.column_stack([origins, np.full(len(origins), side)]).astype(float), size):
        out[index] = pixels
    return out.transpose(0, 3, 1, 2)


def test_tiles_are_the_readers(slide, rng):
    side = 128 / slide.microns_per_pixel
    origins = rng.uniform(0, [slide.width - side, slide.height - side], (9, 2))
    pixels = TilePixels(slide, origins, side, (4, 2, 1))
    assert pixels.factor == 1
    assert pixels.side % 4 == 0
    assert abs(pixels.side - side) <= 2
    np.testing.assert_array_equal(pixels(origins), by_reader(slide, np.round(origins), pixels.side, pixels.side))


def test_fine_slides_are_read_at_a_whole_fraction(slide):
    from dataclasses import replace

    fine = replace(slide, microns_per_pixel=0.24)
    origins = np.array([[0.0, 0.0], [100.0, 60.0]])
    pixels = TilePixels(fine, origins, 128 / 0.24, (4, 2, 1))
    assert pixels.factor == 2
    assert pixels.side == 268  # 266.7, to a multiple of four
    np.testing.assert_array_equal(pixels(origins), by_reader(fine, origins, 2 * 268, 268))


def test_tiles_larger_than_a_square_are_whole(slide):
    side = min(slide.width, slide.height) * 1.0
    pixels = TilePixels(slide, np.zeros((1, 2)), side, (1,))
    whole = by_reader(slide, np.zeros((1, 2)), pixels.side, pixels.side)
    np.testing.assert_array_equal(pixels(np.zeros((1, 2))), whole)
