"""Every kind of image, cells and transform, each cell found under its own pixel or refused with a typed error."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from geopandas import GeoDataFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Point, box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Image3DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, MapAxis, Scale, Sequence, Translation, set_transformation

from sigmma_sc.errors import MissingKeyError, PixelSizeError, SetupError
from sigmma_sc.tissue.decode import read_window
from sigmma_sc.tissue.frame import affine_to, image_levels
from sigmma_sc.tissue.setup import Setup, resolve_slides

pytestmark = [
    pytest.mark.filterwarnings("ignore::sigmma_sc.errors.RegistrationWarning"),
    pytest.mark.filterwarnings("ignore:The table is annotating:UserWarning"),
]

WIDTH, HEIGHT = 96, 64
XY = np.array([[10.5, 5.5], [80.5, 20.5], [30.5, 60.5], [95.5, 0.5], [50.25, 33.75]])
"""Cells in pixels of the image."""
NAMES = [f"c{k}" for k in range(len(XY))]


def affine(matrix):
    return Affine(np.asarray(matrix, float), input_axes=("x", "y"), output_axes=("x", "y"))


def dotted(c=3, dtype=np.uint8):
    """White, but for the pixel of cell ``k``, whose red is ``k``."""
    high = 255 if dtype == np.uint8 else 65535 if dtype == np.uint16 else 1.0
    image = np.full((c, HEIGHT, WIDTH), high, dtype)
    for k, (x, y) in enumerate(np.floor(XY).astype(int)):
        image[0, y, x] = k if dtype == np.uint8 else k * 256 if dtype == np.uint16 else k / 255
    return image


def table(region="cells", keys=NAMES, spatial=None):
    adata = AnnData(np.ones((len(XY), 2), np.float32), obs=pd.DataFrame(index=NAMES))
    adata.obs["region"], adata.obs["key"] = pd.Categorical([region] * len(XY)), keys
    if spatial is not None:
        adata.obsm["spatial"] = spatial
    return TableModel.parse(adata, region=region, region_key="region", instance_key="key")


def circles(xy=XY, index=NAMES, **options):
    return ShapesModel.parse(np.asarray(xy), geometry=0, radius=2.0, index=index, **options)


def tissue(image=None, cells=None, adata=None, **elements):
    image = Image2DModel.parse(dotted(), ("c", "y", "x"), c_coords=["r", "g", "b"]) if image is None else image
    elements = {"cells": circles() if cells is None else cells, **elements}
    return SpatialData.init_from_elements({"he": image, **elements, "table": table() if adata is None else adata})


def slide_of(sdata, system="global", microns_per_pixel=0.5):
    return resolve_slides(sdata, Setup("he", "table", system, None, None, None, microns_per_pixel, 128.0, (4, 2, 1)))[0]


def pixels_under(slide):
    """Red of the pixel under each cell, read as the model reads it."""
    level = image_levels(slide.sdata, "he")[0]
    return [read_window(level, x, y, x + 1, y + 1)[0, 0, 0] for x, y in np.floor(slide.xy).astype(int)]


def assert_found(slide):
    np.testing.assert_allclose(slide.xy, XY, atol=1e-6)
    assert pixels_under(slide) == list(range(len(XY)))


# Frame: the property


@st.composite
def similarities(draw):
    """Turn, mirror, scale and shift in any order of a chain of one to three, and the matrix of the chain by hand."""
    chain, matrix = [], np.eye(3)
    for _ in range(draw(st.integers(1, 3))):
        angle, scale = draw(st.floats(-np.pi, np.pi)), draw(st.floats(0.2, 5))
        mirror = draw(st.sampled_from([-1.0, 1.0]))
        c, s = scale * np.cos(angle), scale * np.sin(angle)
        shift = draw(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)))
        step = np.array([[c, -s * mirror, shift[0]], [s, c * mirror, shift[1]], [0, 0, 1]])
        chain.append(affine(step))
        matrix = step @ matrix
    return (chain[0] if len(chain) == 1 else Sequence(chain)), matrix


@pytest.fixture(scope="module")
def pyramid():
    image = Image2DModel.parse(dotted(), ("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=[2, 2])
    return tissue(image)


@settings(max_examples=60, deadline=None)
@given(similarities(), similarities())
def test_cells_are_found_under_their_pixel_through_any_transforms(pyramid, image, cells):
    (image_transform, image_matrix), (cells_transform, cells_matrix) = image, cells
    apart = XY @ image_matrix[:2, :2].T + image_matrix[:2, 2] - cells_matrix[:2, 2]
    pyramid.shapes["cells"] = circles(
        apart @ np.linalg.inv(cells_matrix[:2, :2]).T, transformations={"um": cells_transform}
    )
    set_transformation(pyramid["he"], image_transform, "um")
    slide = slide_of(pyramid, "um")
    assert np.abs(slide.xy - XY).max() < 0.5
    np.testing.assert_allclose(slide.xy, XY, atol=1e-4)
    known = np.sqrt(abs(np.linalg.det(cells_matrix[:2, :2])))
    if known > 1.001:  # cells in µm: one unit of the system measures 1 / known µm
        expected = np.sqrt(abs(np.linalg.det(image_matrix[:2, :2]))) / known
        if 0.051 < expected < 9.9:
            assert slide_of(pyramid, "um", None).microns_per_pixel == pytest.approx(expected)


def test_swapped_axes_and_scales_of_spatialdata_itself():
    turned = Sequence(
        [MapAxis({"x": "y", "y": "x"}), Scale([2.0, 2.0], ("x", "y")), Translation([3.0, 5.0], ("x", "y"))]
    )
    sdata = tissue(cells=circles(XY[:, ::-1] * 2 + (3, 5)))
    set_transformation(sdata["he"], turned, "global")
    assert_found(slide_of(sdata))


# Frame: images


def parsed(pixels, dims=("c", "y", "x"), **options):
    return Image2DModel.parse(pixels, dims, **options)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(lambda: parsed(dotted().transpose(1, 2, 0), ("y", "x", "c")), id="yxc"),
        pytest.param(lambda: parsed(dotted(), scale_factors=[2, 2]), id="pyramid"),
        pytest.param(lambda: parsed(dotted(4), c_coords=["r", "g", "b", "a"]), id="RGBA"),
        pytest.param(lambda: parsed(dotted(4), c_coords=["Red", "Green", "Blue", "Alpha"]), id="Red Green Blue Alpha"),
        pytest.param(lambda: parsed(dotted(4)), id="four channels without names"),
        pytest.param(lambda: parsed(dotted(dtype=np.uint16)), id="uint16"),
        pytest.param(lambda: parsed(dotted(dtype=np.float32)), id="float32"),
    ],
)
def test_images_of_every_form(image):
    assert_found(slide_of(tissue(image())))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (lambda: parsed(dotted(1)), "1 channels"),
        (lambda: parsed(dotted(4), c_coords=["DAPI", "CD45", "18S", "SMA"]), "DAPI.*image_key"),
        (lambda: parsed(dotted(7)), "7 channels"),
        (lambda: parsed(dotted(), c_coords=["b", "g", "r"]), "order b, g, r"),
        (lambda: parsed(dotted().astype(np.int64)), "'he'.*int64"),
        (lambda: Image3DModel.parse(dotted()[:, None], ("c", "z", "y", "x")), "three dimensions"),
    ],
)
def test_images_that_are_no_he_are_refused(image, words):
    with pytest.raises(SetupError, match=words):
        slide_of(tissue(image()))


@pytest.mark.parametrize(
    ("transform", "error", "words"),
    [
        (Scale([2.0, 2.1], ("x", "y")), PixelSizeError, r"1\.050.*square pixels"),
        (affine([[1, 0.05, 0], [0, 1, 0], [0, 0, 1]]), PixelSizeError, "stretches"),
        (affine([[1, 1, 0], [1, 1, 0], [0, 0, 1]]), SetupError, "inverted"),
        (affine([[np.nan, 0, 0], [0, 1, 0], [0, 0, 1]]), SetupError, "inverted"),
    ],
)
def test_transforms_that_do_not_fit_are_refused(transform, error, words):
    sdata = tissue()
    set_transformation(sdata["he"], transform, "global")
    with pytest.raises(error, match=words):
        slide_of(sdata)


def test_one_percent_of_stretch_passes_and_tiny_units_are_no_singularity():
    sdata = tissue(cells=circles(XY * (1e-7, 1.009e-7)))
    set_transformation(sdata["he"], Scale([1e-7, 1.009e-7], ("x", "y")), "global")
    assert_found(slide_of(sdata))


# Cells


def squares(xy=XY, index=NAMES):
    return ShapesModel.parse(GeoDataFrame({"geometry": [box(x - 2, y - 1, x + 2, y + 1) for x, y in xy]}, index=index))


@pytest.mark.parametrize("cells", [circles, squares], ids=["circles", "polygons"])
def test_cells_as_shapes_in_another_order_than_the_table(cells):
    order = [3, 1, 4, 0, 2]
    assert_found(slide_of(tissue(cells=cells(XY[order], [NAMES[k] for k in order]))))


def test_cells_as_points():
    points = PointsModel.parse(pd.DataFrame(XY, columns=["x", "y"], index=NAMES), coordinates={"x": "x", "y": "y"})
    assert_found(slide_of(tissue(cells=points)))


def test_an_index_that_repeats_is_refused():
    with pytest.raises(SetupError, match="'c0'.*two places"):
        slide_of(tissue(cells=circles(np.vstack([XY, XY[:1]]), [*NAMES, "c0"])))


def test_keys_of_another_type_are_refused():
    with pytest.raises(MissingKeyError, match="'c0'.*holds e.g. 0"):
        slide_of(tissue(cells=circles(index=range(5))))


def test_a_cell_without_geometry_is_refused():
    cells = circles()
    cells.loc["c2", "geometry"] = Point()
    with pytest.raises(SetupError, match="'c2'"):
        slide_of(tissue(cells=cells))


KEYS = np.array([7, 3, 12, 9, 4])


def labelled(transform=None):
    """A raster at twice the image's resolution, each cell a square of its key."""
    raster = np.zeros((2 * HEIGHT, 2 * WIDTH), np.uint32)
    for key, (x, y) in zip(KEYS, XY * 2, strict=True):
        raster[max(0, int(y) - 3) : int(y) + 4, max(0, int(x) - 3) : int(x) + 4] = key
    transform = Scale([0.5, 0.5], ("x", "y")) if transform is None else transform
    return Labels2DModel.parse(raster, ("y", "x"), transformations={"global": transform})


def label_tissue(spatial=None, cell_id=None, **elements):
    adata = table("labels", KEYS, spatial)
    if cell_id is not None:
        adata.obs["cell_id"] = cell_id
    image = Image2DModel.parse(dotted(), ("c", "y", "x"))
    return SpatialData.init_from_elements({"he": image, "labels": labelled(), **elements, "table": adata})


@pytest.fixture
def unread(monkeypatch):
    """Reading a raster of labels as a whole fails."""
    import spatialdata

    def refuse(*_):
        raise AssertionError("the raster was read")

    monkeypatch.setattr(spatialdata, "get_centroids", refuse)
    monkeypatch.setattr(spatialdata, "to_polygons", refuse)
    monkeypatch.setattr(spatialdata, "to_circles", refuse)


def test_labels_take_the_shapes_of_the_same_cells(unread):
    assert_found(slide_of(label_tissue(cell_id=NAMES, boundaries=squares())))
    assert_found(slide_of(label_tissue(boundaries=squares(index=KEYS))))


def test_shapes_that_merely_share_the_numbers_are_not_taken_for_the_cells(unread):
    """Patches, fields of view and the like are numbered too; the labels under them tell."""
    patches = circles(np.random.default_rng(0).uniform(0, 60, (20, 2)), range(20))
    with pytest.raises(SetupError, match=r"'patches' \(0%"):
        slide_of(label_tissue(patches=patches))
    assert_found(slide_of(label_tissue(patches=patches, right=squares(index=KEYS))))


@pytest.mark.parametrize(
    "spatial",
    [
        pytest.param(XY * 0.5, id="µm, by the stated pixel size"),
        pytest.param(XY, id="units of the system"),
        pytest.param(XY * 2, id="pixels of the labels"),
    ],
)
def test_labels_take_obsm_spatial_in_the_units_that_hit_the_labels(spatial, unread):
    assert_found(slide_of(label_tissue(spatial)))


def test_labels_learn_the_unit_from_other_elements(unread):
    """Transcripts in µm with a scale that magnifies, as spatialdata-io leaves them."""
    where = {"coordinates": {"x": "x", "y": "y"}, "transformations": {"global": Scale([2.5, 2.5], ("x", "y"))}}
    transcripts = PointsModel.parse(pd.DataFrame(XY / 2.5, columns=["x", "y"]), **where)
    slide = slide_of(label_tissue(XY / 2.5, transcripts=transcripts), microns_per_pixel=None)
    assert_found(slide)
    assert slide.microns_per_pixel == pytest.approx(1 / 2.5)


def test_labels_alone_are_refused_with_the_fix(unread):
    with pytest.raises(SetupError, match="ShapesModel|sdata.shapes"):
        slide_of(label_tissue())
    with pytest.raises(SetupError, match=r"obsm\['spatial'\] in µm, 0.5 .*0%"):
        slide_of(label_tissue(XY[::-1] * 0.5))
    with pytest.raises(PixelSizeError, match="microns_per_pixel"):
        slide_of(label_tissue(XY), microns_per_pixel=None)


def test_a_region_that_is_no_element():
    """Shapes that hold the names of the cells stand in; numbers do not."""
    adata = table("gone", KEYS, XY)
    adata.obs["cell_id"] = NAMES
    assert_found(slide_of(tissue(adata=adata)))
    with pytest.raises(MissingKeyError, match=r"'gone'.*ShapesModel\.parse"):
        slide_of(tissue(adata=table("gone", KEYS, XY), cells=circles(index=range(5))))


def test_a_named_system_that_the_image_lacks():
    sdata = tissue(cells=circles(transformations={"aligned": Identity()}))
    with pytest.raises(MissingKeyError, match="'aligned'.*global.*image 'he'"):
        slide_of(sdata, "aligned")


def test_how_far_an_element_lies_from_the_origin_does_not_matter():
    """Stage coordinates in nm, say; only the axes tell whether a transform can be inverted."""
    image = Image2DModel.parse(np.zeros((3, 4, 4), np.uint8), dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    set_transformation(image, Translation([3e9, -2e9], axes=("x", "y")), "global")
    np.testing.assert_array_equal(affine_to(image, "global", "image"), [[1, 0, 3e9], [0, 1, -2e9], [0, 0, 1]])
    set_transformation(image, Scale([1e7, 1.0], axes=("x", "y")), "global")
    with pytest.raises(SetupError, match="The transform of image to 'global' cannot be inverted"):
        affine_to(image, "global", "image")
