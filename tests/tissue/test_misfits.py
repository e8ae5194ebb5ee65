"""What would otherwise cost memory or fail in silence: whole slides of labels, several slides in one table, values out of range."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale

from sigmma_sc.errors import MissingKeyError, SetupError
from sigmma_sc.tissue.setup import Setup, resolve_slides

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def setup_of(image_key="he", system="global", microns_per_pixel=0.5):
    return Setup(image_key, "table", system, None, None, None, microns_per_pixel, 128.0, (4, 2, 1))


def table_of(regions, keys, **obsm):
    adata = AnnData(np.ones((len(keys), 1), np.float32), obs=pd.DataFrame(index=[f"cell{k}" for k in range(len(keys))]))
    adata.obs["region"], adata.obs["key"] = pd.Categorical(regions), keys
    adata.obsm.update(obsm)
    known = sorted(set(regions))
    return TableModel.parse(
        adata, region=known if len(known) > 1 else known[0], region_key="region", instance_key="key"
    )


# Labels of a whole slide

SIDE, SQUARE, CHUNK = 40_000, 100, 1000


@pytest.mark.parametrize("pyramid", [None, [4]])
def test_labels_of_a_whole_slide_are_read_at_a_few_cells_only(rng, pyramid):
    computed = []

    def squares(block_id):
        """Labels numbered by squares of 100 px, row by row over the slide."""
        computed.append(block_id)
        y, x = (block_id[axis] * (CHUNK // SQUARE) + np.arange(CHUNK) // SQUARE for axis in (0, 1))
        return (1 + y[:, None] * (SIDE // SQUARE) + x[None]).astype(np.uint32)

    chunks = ((CHUNK,) * (SIDE // CHUNK),) * 2
    raster = da.map_blocks(squares, chunks=chunks, dtype=np.uint32, meta=np.empty((0, 0), np.uint32))
    labels = Labels2DModel.parse(raster, ("y", "x"), scale_factors=pyramid)
    place = rng.choice((SIDE // SQUARE) ** 2, 20_000, replace=False)
    xy = np.column_stack([place % (SIDE // SQUARE), place // (SIDE // SQUARE)]) * SQUARE + SQUARE / 2
    image = Image2DModel.parse(da.zeros((3, SIDE, SIDE), dtype=np.uint8, chunks=(3, CHUNK, CHUNK)), ("c", "y", "x"))
    table = table_of(["labels"] * len(xy), place + 1, spatial=xy * 0.5)
    sdata = SpatialData.init_from_elements({"he": image, "labels": labels, "table": table})
    computed.clear()
    slide = resolve_slides(sdata, setup_of())[0]
    np.testing.assert_allclose(slide.xy, xy)
    assert 0 < len(set(computed)) <= 9  # of 1,600


# Several slides in one table


def test_regions_with_images_and_systems_of_their_own(rng):
    """One table, its rows mixed, over slides of other pixel sizes, one mirrored, one turned."""
    matrices = {
        "a": np.array([[0, -2, 300], [2, 0, 0], [0, 0, 1.0]]),
        "b": np.array([[-0.5, 0, 90], [0, 0.5, 7], [0, 0, 1.0]]),
    }
    xy = {name: rng.uniform(0, 150, (20, 2)) for name in matrices}
    elements = {}
    for name, matrix in matrices.items():
        affine = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
        pixels = np.zeros((3, 150, 150), np.uint8)
        elements[f"he_{name}"] = Image2DModel.parse(pixels, ("c", "y", "x"), transformations={name: affine})
        cells = (xy[name] @ matrix[:2, :2].T + matrix[:2, 2]) / 4  # µm, four units of the system each
        elements[f"cells_{name}"] = ShapesModel.parse(
            cells[::-1],
            geometry=0,
            radius=1.0,
            index=np.arange(20)[::-1],
            transformations={name: Scale([4, 4], ("x", "y"))},
        )
    order = rng.permutation(40)
    elements["table"] = table_of(np.repeat(["cells_a", "cells_b"], 20)[order], np.tile(np.arange(20), 2)[order])
    sdata = SpatialData.init_from_elements(elements)
    regions = {"cells_a": "a", "cells_b": "b"}
    setup = setup_of({r: f"he_{n}" for r, n in regions.items()}, regions, None)
    for slide, name, microns in zip(resolve_slides(sdata, setup), regions.values(), (0.5, 0.125), strict=True):
        assert slide.microns_per_pixel == pytest.approx(microns)
        np.testing.assert_allclose(slide.xy, xy[name][sdata["table"].obs["key"].to_numpy()[slide.rows]], atol=1e-9)
        assert (np.diff(slide.rows) > 0).all()
    with pytest.raises(MissingKeyError, match="coordinate_system.*'cells_b'"):
        resolve_slides(sdata, setup_of(setup.image_key, {"cells_a": "a"}, None))


# Values


def slide_with(pixels):
    cells = ShapesModel.parse(np.array([[5.0, 5.0]]), geometry=0, radius=1.0, index=[0])
    image = Image2DModel.parse(pixels, ("c", "y", "x"), transformations={"global": Identity()})
    sdata = SpatialData.init_from_elements({"he": image, "cells": cells, "table": table_of(["cells"], [0])})
    return resolve_slides(sdata, setup_of())[0]


@pytest.mark.parametrize(
    ("dtype", "most", "words"),
    [
        (np.uint16, 255, "255.*astype"),
        (np.uint16, 4095, "4095.*65535"),
        (np.float32, 255, r"255.*\[0, 1\]"),
        (np.float64, np.nan, "nan"),
    ],
)
def test_values_that_do_not_fill_their_type_are_refused(rng, dtype, most, words):
    """Scaled as they are, such an image would be all black or all white."""
    pixels = (rng.uniform(0.3, 1, (3, 40, 40)) * most).astype(dtype)
    pixels[:, 20, 20] = most
    with pytest.raises(SetupError, match=f"'he'.*{words}"):
        slide_with(pixels)


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((3, 40, 40), 60_000, np.uint16),
        np.full((3, 40, 40), 0.9, np.float32),
        np.zeros((3, 40, 40), np.uint16),  # says nothing
    ],
)
def test_values_that_do_are_taken(pixels):
    assert slide_with(pixels).width == 40
