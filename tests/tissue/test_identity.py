from dataclasses import replace

import numpy as np
import pytest
import spatialdata as sd
from anndata import AnnData
from spatialdata.models import Image2DModel

from sigmma_sc.tissue import identity
from sigmma_sc.tissue.frame import Slide
from sigmma_sc.tissue.identity import cells_identity, image_identity
from sigmma_sc.tissue.setup import Setup


def slide_of(pixels, scale_factors=None, store=None):
    image = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=scale_factors, chunks=(3, 64, 64)
    )
    sdata = sd.SpatialData(images={"he": image})
    if store is not None:
        sdata.write(store)
        sdata = sd.read_zarr(store)
    height, width = pixels.shape[1:]
    nowhere = {"rows": np.empty(0, int), "xy": np.empty((0, 2)), "sample": "s", "setup": None, "adata": None}
    return Slide("s", sdata, "he", "global", None, 0.5, width, height, **nowhere)


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 255, (3, 150, 200), dtype=np.uint8)


def test_one_pixel_makes_another_image(pixels):
    before = image_identity(slide_of(pixels))
    assert image_identity(slide_of(pixels.copy())) == before
    for where in [(0, 0, 0), (2, 149, 199), (1, 75, 13)]:
        other = pixels.copy()
        other[where] ^= 1
        assert image_identity(slide_of(other)) != before


def test_size_type_and_levels_count(pixels):
    images = [pixels, pixels[:, :, :-1], pixels.astype(np.uint16) << 8]
    assert len({image_identity(slide_of(image)) for image in images}) == 3
    assert image_identity(slide_of(pixels, [2])) != image_identity(slide_of(pixels))


def test_an_image_is_the_same_in_memory_and_in_any_store(pixels, tmp_path):
    stored = [image_identity(slide_of(pixels, [2], tmp_path / name)) for name in ("a.zarr", "b.zarr")]
    assert {image_identity(slide_of(pixels, [2])), *stored} == {stored[0]}


def test_of_a_large_image_a_level_is_read_whole_and_windows_of_the_finest(pixels, monkeypatch):
    monkeypatch.setattr(identity, "WHOLE_PIXELS", 100 * 75)
    monkeypatch.setattr(identity, "WINDOW", 4)
    read = []

    def window(level, x0, y0, x1, y1):
        read.append((x1 - x0) * (y1 - y0))
        return read_window(level, x0, y0, x1, y1)

    read_window = identity.read_window
    monkeypatch.setattr(identity, "read_window", window)
    before = image_identity(slide_of(pixels, [2]))
    assert sum(read) == 100 * 75 + 36 * 16
    other = pixels.copy()
    other[:, 40:60, 100:120] = 0  # carried into the pyramid when the image is parsed
    assert image_identity(slide_of(other, [2])) != before


def test_cells_are_told_apart_by_place_gene_and_count(rng):
    n, setup = 30, Setup("he", "t", "global", None, None, None, None, 128.0, (4, 2, 1))
    table = AnnData(rng.poisson(3, (n, 5)).astype(np.float32))
    table.uns["spatialdata_attrs"] = {"region": "s"}
    table.obsm["mine"] = rng.normal(size=(n, 2)).astype(np.float32)
    slide = slide_of(np.zeros((3, 8, 8), np.uint8))

    def of(table, xy, setup=setup):
        return cells_identity(replace(slide, setup=setup, adata=table, xy=xy, rows=np.arange(n)))

    xy = rng.uniform(0, 8, (n, 2))
    moved, counted, renamed = xy.copy(), table.copy(), table.copy()
    moved[3, 0] += 0.01
    counted.X[7, 2] += 1
    renamed.var_names = [*renamed.var_names[:-1], "other"]
    before = of(table, xy)
    assert of(table.copy(), xy + 1e-9) == before
    assert len({before, of(table, moved), of(counted, xy), of(renamed, xy)}) == 4
    mine = replace(setup, features_key="mine")
    other = table.copy()
    other.obsm["mine"][0, 0] += 1
    assert of(table, xy, mine) == of(counted, xy, mine) != of(other, xy, mine)
