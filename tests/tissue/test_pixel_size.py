"""A size of a pixel that was inferred is told once, and doubted where it should be."""

import logging
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale

from sigmma_sc.errors import PixelSizeWarning
from sigmma_sc.tissue.pixel_size import nearest_distances
from sigmma_sc.tissue.setup import Setup, checked_setup

SIDE = 900


def cells(rng, n=300, apart=9.0):
    """Places in px of the image, of cells that are not nearer than ``apart``."""
    grid = np.stack(np.meshgrid(*[np.arange(20)] * 2), -1).reshape(-1, 2)[:n] * (1.8 * apart) + apart
    return grid + rng.uniform(-0.8, 0.8, grid.shape) * apart


def lattice(pitch, hexagonal=False, n=20):
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2).astype(float)
    if hexagonal:
        grid[:, 0] += grid[:, 1] % 2 / 2
        grid[:, 1] *= np.sqrt(3) / 2
    return grid * pitch + 5


def sdata_of(xy, image_to, cells_to, unit, levels=(), **others):
    """Cells at ``xy`` px of the image, stored in units of ``unit`` px."""
    names = [f"c{k}" for k in range(len(xy))]
    obs = pd.DataFrame({"region": pd.Categorical(["cells"] * len(xy)), "key": names}, index=names)
    table = AnnData(np.ones((len(xy), 2), np.float32), obs=obs)
    image = Image2DModel.parse(
        np.full((3, SIDE, SIDE), 230, np.uint8),
        ("c", "y", "x"),
        transformations={"global": image_to},
        scale_factors=list(levels) or None,
    )
    shapes = ShapesModel.parse(xy / unit, geometry=0, radius=1.0, index=names, transformations={"global": cells_to})
    elements = {"he": image, "cells": shapes, "table": TableModel.parse(table, "cells", "region", "key"), **others}
    return SpatialData.init_from_elements(elements)


def said(sdata, microns=None):
    """Lines of the log and warnings of a setup."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("sigmma_sc")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            checked_setup(sdata, Setup("he", "table", "global", None, None, None, microns, 64.0, (4, 2, 1)))
    finally:
        logger.removeHandler(handler)
    return lines, [str(one.message) for one in seen if one.category is PixelSizeWarning]


def test_an_inferred_size_and_its_source_are_logged_once(rng):
    sdata = sdata_of(cells(rng), Scale([1.5, 1.5], ("x", "y")), Scale([4.0, 4.0], ("x", "y")), 4 / 1.5)
    lines, doubts = said(sdata)
    assert len(lines) == 1
    assert "0.375 µm per pixel" in lines[0]
    assert "scale 4 of the cells of 'cells' to 'global'" in lines[0]
    assert "microns_per_pixel" in lines[0]
    assert doubts == []
    assert said(sdata, 0.375) == ([], [])


TURN = Affine([[0, -2.0, 900], [2.0, 0, 0], [0, 0, 1]], ("x", "y"), ("x", "y"))


@pytest.mark.parametrize(
    ("image_to", "cells_to", "unit", "levels", "doubted"),
    [
        pytest.param(Identity(), Scale([2.0, 2.0], ("x", "y")), 2, (2, 2), "level 1", id="half size"),
        pytest.param(Identity(), Scale([4.0, 4.0], ("x", "y")), 4, (2, 2), "level 2", id="quarter"),
        pytest.param(
            Scale([2.0, 2.0], ("x", "y")), Scale([4.0, 4.0], ("x", "y")), 2, (2,), "level 1", id="other system"
        ),
        pytest.param(Scale([2.0, 2.0], ("x", "y")), Scale([2.0, 2.0], ("x", "y")), 1, (), "level 0", id="pixels"),
        pytest.param(Identity(), Scale([3.0, 3.0], ("x", "y")), 3, (2, 2), None, id="no level has it"),
        pytest.param(Identity(), Scale([2.0, 2.0], ("x", "y")), 2, (), None, id="no pyramid"),
        pytest.param(TURN, Scale([4.0, 4.0], ("x", "y")), None, (2, 2), None, id="turned, as by a registration"),
    ],
)
def test_a_scale_that_is_that_of_a_level_is_doubted(rng, image_to, cells_to, unit, levels, doubted):
    xy = cells(rng, apart=14)
    if unit is None:
        stored = np.c_[900 - 2 * xy[:, 1], 2 * xy[:, 0]] / 4
        sdata = sdata_of(stored, image_to, cells_to, 1, levels)
    else:
        sdata = sdata_of(xy, image_to, cells_to, unit, levels)
    lines, doubts = said(sdata)
    assert len(lines) == 1
    assert len(doubts) == (doubted is not None)
    if doubted:
        assert doubted in doubts[0]
        assert "microns_per_pixel" in doubts[0]


@pytest.mark.parametrize("scale", [1.7, 4.7, 10.0])
def test_another_element_that_contradicts_is_named(rng, scale):
    nuclei = ShapesModel.parse(
        np.ones((3, 2)), geometry=0, radius=1.0, transformations={"global": Scale([scale] * 2, ("x", "y"))}
    )
    lines, doubts = said(sdata_of(cells(rng), Identity(), Scale([3.0, 3.0], ("x", "y")), 3, nuclei=nuclei))
    (doubt,) = doubts
    assert f"'nuclei' has a scale of {scale:.4g}" in doubt
    assert f"{1 / scale:.4g} µm" in doubt


@pytest.mark.parametrize("transform", [Identity(), Scale([3.01, 3.01], ("x", "y")), Scale([3.0, 9.0], ("x", "y"))])
def test_elements_that_agree_or_say_nothing_are_quiet(rng, transform):
    other = ShapesModel.parse(np.ones((3, 2)), geometry=0, radius=1.0, transformations={"global": transform})
    assert said(sdata_of(cells(rng), Identity(), Scale([3.0, 3.0], ("x", "y")), 3, other=other))[1] == []


@pytest.mark.parametrize("pitch", [2.0, 8.0, 16.0, 55.0, 100.0, 200.0])
@pytest.mark.parametrize("hexagonal", [False, True])
def test_lattices_of_known_assays_are_quiet_and_others_are_not(rng, pitch, hexagonal):
    px = 12.0
    xy = lattice(px, hexagonal) + rng.normal(0, 0.02 * px, (400, 2))
    sdata = sdata_of(xy, Identity(), Identity(), 1)
    microns = pitch / px
    right = said(sdata, microns)[1] if microns <= 10 else []
    assert right == []
    for factor in (0.1, 0.4, 1.35):
        if 0.05 <= factor * microns <= 10:
            (doubt,) = said(sdata, factor * microns)[1]
            assert "µm apart" in doubt


@pytest.mark.parametrize(("factor", "doubted"), [(0.1, True), (0.4, False), (1, False), (3, False), (15, True)])
def test_cells_too_near_or_too_far_are_doubted(rng, factor, doubted):
    sdata = sdata_of(cells(rng), Identity(), Identity(), 1)
    doubts = said(sdata, 0.5 * factor)[1]
    assert len(doubts) == doubted
    if doubted:
        assert "nearest cells" in doubts[0]


def test_few_cells_say_nothing(rng):
    assert said(sdata_of(cells(rng, 20), Identity(), Identity(), 1), 0.05)[1] == []


@pytest.mark.parametrize("n", [50, 300, 3000])
def test_nearest_distances_are_those_of_all_cells(rng, n):
    from scipy.spatial import cKDTree

    xy = rng.uniform(0, 1000, (n, 2))
    everywhere = cKDTree(xy).query(xy, k=5)[0][:, 1:]
    found = nearest_distances(xy)
    assert np.isin(found.round(9), everywhere.round(9)).mean() > 0.98
    np.testing.assert_allclose(np.median(found, axis=0), np.median(everywhere, axis=0), rtol=0.1)


@pytest.mark.parametrize("n_cells", [100, 300])
def test_simulated_cells_are_no_lattice(n_cells):
    """They keep a distance, so that the nearest is about as far everywhere."""
    from sigmma_sc.datasets import simulate_tissue

    sdata = simulate_tissue(n_cells=n_cells)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PixelSizeWarning)
        checked_setup(sdata, Setup("he_image", "table", "global", None, None, None, None, 64.0, (4, 2, 1)))
