import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from sigmma_sc.registration.colour import ColourMap, ColourRaster, read_colours
from sigmma_sc.tissue.setup import slides_of


def test_density_is_the_mean_over_blocks_of_8_microns(tiny):
    (slide,) = slides_of(tiny)
    raster = read_colours(slide)
    assert raster.microns == pytest.approx(8)
    # The level of 2 µm per pixel, in blocks of four.
    level = tiny["he_image"]["scale2"]["image"].to_numpy().transpose(1, 2, 0)
    block = level[40:44, 80:84].reshape(-1, 3)
    density = -np.log10((block + 1.0) / 256)
    np.testing.assert_allclose(raster.density[10, 20], density.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(raster.square[10, 20], (density**2).mean(axis=0), rtol=1e-5)


def test_strips_do_not_matter(tiny, monkeypatch):
    (slide,) = slides_of(tiny)
    whole = read_colours(slide)
    monkeypatch.setattr("sigmma_sc.registration.colour.STRIP", 3000)
    np.testing.assert_array_equal(read_colours(slide).density, whole.density)


def test_glass_is_no_tissue_and_adds_no_colour():
    """Squares at the edge of tissue have the colour of the tissue, not of its mixture with glass."""
    density = np.zeros((40, 40, 3), np.float32)
    density[:, 20:] = (0.3, 0.5, 0.2)
    density[:, 30:] += 0.1
    raster = ColourRaster(density, density**2, density[..., 0] > 0.1, 8.0)
    colours = raster.smoothed(64.0)
    assert colours.tissue[20, 5] == pytest.approx(0, abs=1e-3)
    np.testing.assert_allclose(colours.colours[20, 20, :3], colours.colours[20, 21, :3], atol=1e-3)
    assert colours.colours[20, 29, 0] > colours.colours[20, 22, 0]


def test_places_are_interpolated_between_the_centres_of_pixels():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    colours = ColourMap(values[..., None], np.ones((3, 4), np.float32), 10.0, 10.0)
    found, tissue = colours.at(np.array([[15.0, 5.0], [20.0, 10.0], [-1.0, 5.0], [36.0, 5.0]]))
    np.testing.assert_allclose(found[:2, 0], [1, 3.5])
    np.testing.assert_allclose(tissue, [1, 1, 0, 0])


def test_sixteen_bits_read_as_eight(tiny):
    from dataclasses import replace

    (slide,) = slides_of(tiny)
    pixels = tiny["he_image"]["scale0"]["image"].to_numpy()
    rasters = []
    for image in (pixels, pixels.astype(np.uint16) * 257):
        model = Image2DModel.parse(image, ("c", "y", "x"), c_coords=["r", "g", "b"])
        rasters.append(read_colours(replace(slide, sdata=SpatialData(images={"a": model}), image_key="a")))
    np.testing.assert_allclose(rasters[0].density, rasters[1].density, atol=1e-6)
