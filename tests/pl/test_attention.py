import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from geopandas import GeoDataFrame
from shapely import MultiPolygon, Point, box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine, Scale

import sigmma_sc as sg
from sigmma_sc.errors import MissingKeyError, SetupError


@pytest.fixture(autouse=True)
def no_window():
    import matplotlib.pyplot as plt

    backend = mpl.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


def maps_of(n_tiles=2, n_heads=8, seed=0):
    """Maps of which later heads are the more uneven."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1, (n_tiles, 1, 4, 4)) ** (0.3 * (1 + np.arange(n_heads)))[:, None, None]
    weights = 0.9 * weights / weights.sum((2, 3), keepdims=True)
    return xr.Dataset(
        {
            "attention": (("tile", "head", "row", "column"), weights),
            "image": (("tile", "y", "x", "channel"), rng.integers(0, 256, (n_tiles, 8, 8, 3), dtype=np.uint8)),
        },
        coords={
            "tile": [f"cells_{k}" for k in range(n_tiles)],
            "image_key": ("tile", ["he"] * n_tiles),
            "coordinate_system": ("tile", ["global"] * n_tiles),
            "microns_per_pixel": ("tile", np.full(n_tiles, 0.5)),
            "x0": ("tile", 100.0 + 40 * np.arange(n_tiles)),
            "y0": ("tile", np.full(n_tiles, 60.0)),
            "side": ("tile", np.full(n_tiles, 40.0)),
        },
    )


def panels(figure, n_columns):
    """Axes by row, the last of each row a colour bar."""
    return np.array(figure.axes, dtype=object).reshape(-1, n_columns)


def drawn(ax):
    return np.asarray(ax.images[0].get_array())


def test_values_drawn_are_multiples_of_even_attention():
    maps = maps_of(n_heads=3)
    axes = panels(sg.pl.attention(maps, show=False), 5)
    assert axes.shape == (2, 5)
    for tile in range(2):
        np.testing.assert_array_equal(drawn(axes[tile, 0]), maps["image"][tile])
        limits = {ax.images[0].get_clim() for ax in axes[tile, 1:4]}
        ratios = maps["attention"].values[tile] / 0.9 * 16
        assert len(limits) == 1
        assert limits.pop() == pytest.approx((0, np.percentile(ratios, 99)))
        for head in range(3):
            np.testing.assert_allclose(drawn(axes[tile, 1 + head]), ratios[head], rtol=1e-5)
            assert drawn(axes[tile, 1 + head]).mean() == pytest.approx(1)
            assert axes[tile, 1 + head].images[0].get_cmap().name == "magma"
    assert [ax.get_title() for ax in axes[0, :4]] == ["tile", "head 1", "head 2", "head 3"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["cells_0", "cells_1"]
    assert axes[1, 0].get_xlabel() == "20 µm"


def test_first_row_is_drawn_at_the_top():
    axes = panels(sg.pl.attention(maps_of(1, 1), show=False), 3)
    for ax in axes[0, :2]:
        assert ax.yaxis_inverted()
        assert ax.images[0].origin == "upper"


def test_at_most_six_heads_the_most_uneven():
    maps = maps_of(n_heads=8).isel(head=[7, 0, 6, 1, 5, 2, 4, 3])
    axes = panels(sg.pl.attention(maps, show=False), 8)
    assert [ax.get_title() for ax in axes[0, 1:7]] == [f"head {k}" for k in (1, 3, 5, 6, 7, 8)]
    few = panels(sg.pl.attention(maps, n_heads=2, show=False), 4)
    assert [ax.get_title() for ax in few[0, 1:3]] == ["head 1", "head 3"]


def test_before_and_after_are_pairs_of_rows_on_one_scale():
    after, before = maps_of(seed=0), maps_of(seed=1)
    axes = panels(sg.pl.attention(after, before, n_heads=2, show=False), 4)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == [f"cells_{k}\n{w}" for k in (0, 1) for w in ("before", "after")]
    heads = [int(ax.get_title().split()[1]) - 1 for ax in axes[0, 1:3]]
    for row, maps in enumerate((before, after, before, after)):
        for column, head in enumerate(heads, start=1):
            expected = maps["attention"].values[row // 2, head] / 0.9 * 16
            np.testing.assert_allclose(drawn(axes[row, column]), expected, rtol=1e-5)
    for first in (0, 2):
        assert len({ax.images[0].get_clim() for ax in axes[first : first + 2, 1:3].flat}) == 1


def test_nuclei_are_outlined_where_they_lie():
    """Shapes in µm, an image turned by 90°: both come to the tile's own frame."""
    turned = Affine([[0, -1, 300], [1, 0, 0], [0, 0, 1]], ("x", "y"), ("x", "y"))
    image = Image2DModel.parse(np.zeros((3, 200, 300), np.uint8), ("c", "y", "x"), transformations={"global": turned})
    # A pixel (x, y) of the image lies at (300 - y, x) in the system; shapes are in units of 2.
    inside = box(*(np.array([300 - 75, 110, 300 - 70, 120]) / 2))  # x 110–120, y 70–75 px
    two = MultiPolygon([box(*(np.array([300 - 99, 101, 300 - 98, 102]) / 2)), inside])
    away = box(0, 0, 1, 1)
    shapes = ShapesModel.parse(
        GeoDataFrame(geometry=[two, away]), transformations={"global": Scale([2, 2], ("x", "y"))}
    )
    sdata = SpatialData(images={"he": image}, shapes={"nuclei": shapes})
    axes = panels(sg.pl.attention(maps_of(1, 1), sdata=sdata, outlines="nuclei", show=False), 3)
    rings = [line.get_xydata() for line in axes[0, 0].lines]
    assert len(rings) == 2
    np.testing.assert_allclose([r.min(0) for r in rings], [[0.5, 19.0], [5.0, 5.0]])  # µm from (100, 60) px
    np.testing.assert_allclose([r.max(0) for r in rings], [[1.0, 19.5], [10.0, 7.5]])
    assert axes[0, 0].get_xlim() == (0, 20)
    assert not axes[0, 1].lines


def test_circles_are_outlined_too_and_those_that_only_reach_in():
    image = Image2DModel.parse(np.zeros((3, 200, 300), np.uint8), ("c", "y", "x"), transformations={"global": Scale([1, 1], ("x", "y"))})  # fmt: skip
    frame = GeoDataFrame({"radius": [4.0, 6.0, 6.0]}, geometry=[Point(120, 80), Point(95, 80), Point(80, 80)])
    shapes = ShapesModel.parse(frame, transformations={"global": Scale([1, 1], ("x", "y"))})
    sdata = SpatialData(images={"he": image}, shapes={"cells": shapes})
    axes = panels(sg.pl.attention(maps_of(1, 1), sdata=sdata, outlines="cells", show=False), 3)
    spans = sorted([*line.get_xydata().min(0), *line.get_xydata().max(0)] for line in axes[0, 0].lines)
    np.testing.assert_allclose(spans, [[-5.5, 7, 0.5, 13], [8, 8, 12, 12]], atol=1e-6)


def test_saved_to_a_file_and_closed(tmp_path):
    import matplotlib.pyplot as plt

    figure = sg.pl.attention(maps_of(), save=tmp_path / "attention.png")
    assert plt.imread(tmp_path / "attention.png").shape[2] == 4
    assert not plt.fignum_exists(figure.number)


def test_refusals():
    maps = maps_of()
    sdata = SpatialData()
    with pytest.raises(SetupError, match="before holds other tiles or heads"):
        sg.pl.attention(maps, maps_of(n_tiles=3), show=False)
    with pytest.raises(SetupError, match="before holds other tiles or heads"):
        sg.pl.attention(maps, maps_of(n_heads=2), show=False)
    with pytest.raises(SetupError, match="both sdata and outlines"):
        sg.pl.attention(maps, sdata=sdata, show=False)
    with pytest.raises(MissingKeyError, match="outlines='nuclei' does not exist"):
        sg.pl.attention(maps, sdata=sdata, outlines="nuclei", show=False)
    with pytest.raises(SetupError, match="n_heads=0"):
        sg.pl.attention(maps, n_heads=0, show=False)
