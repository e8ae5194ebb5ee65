from types import SimpleNamespace

import numpy as np
import pytest
from anndata import AnnData

from sigmma_sc.store.write import microns_per_unit


def slide(table, rows, xy, microns_per_pixel):
    return SimpleNamespace(
        slide=SimpleNamespace(table=table, rows=rows, xy=np.asarray(xy, float), microns_per_pixel=microns_per_pixel)
    )


@pytest.mark.parametrize(("second", "expected"), [(0.5, 0.25), (0.502, 0.2505), (0.6, None)])
def test_the_unit_of_the_positions_comes_from_the_image(second, expected):
    table = AnnData(np.zeros((8, 1), np.float32))
    square = np.array([[0, 0], [4, 0], [4, 2], [0, 2]])
    table.obsm["spatial"] = np.vstack([square, square + 100])
    turned = np.array([[0, 0], [0, 2], [-1, 2], [-1, 0]]) + 50  # half the size in pixels, a quarter turn
    slides = [slide(table, np.arange(4), turned, 0.5), slide(table, np.arange(4, 8), turned, second)]
    assert microns_per_unit(slides) == (None if expected is None else pytest.approx(expected))
    del table.obsm["spatial"]
    assert microns_per_unit(slides) is None
