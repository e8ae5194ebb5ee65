"""TIFF files of scanners: the slide among other images, its colours as they are, its channels by their names."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from spatialdata.transformations import Identity

from sigmma_sc.errors import ImageWarning, SetupError
from sigmma_sc.io.tiff import read_pyramid
from sigmma_sc.tissue.frame import raster_levels

RGB = np.array([200, 60, 150])


@pytest.fixture
def slide(rng):
    return rng.integers(150, 250, (320, 256, 3), dtype=np.uint8)


def pixels_of(path, level=0):
    return raster_levels(read_pyramid(path, Identity()))[level].to_numpy().transpose(1, 2, 0)


def write(path, *images, **options):
    with tifffile.TiffWriter(path) as file:
        for image in images:
            file.write(image, **{"tile": (64, 64), "photometric": "rgb", "metadata": None, **options})
    return path


def ycbcr(rgb):
    r, g, b = np.moveaxis(np.asarray(rgb, float), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.round(np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], -1)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "others",
    [
        pytest.param(((96, 128, 3),), id="label"),
        pytest.param(((96, 128, 3), (150, 200, 3)), id="label and macro"),
        pytest.param(((200, 300),), id="mask"),
        pytest.param(((5, 400, 400),), id="fluorescence, larger"),
    ],
)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.filterwarnings("error::sigmma_sc.errors.ImageWarning")
def test_the_slide_is_read_wherever_it_is_in_the_file(tmp_path, rng, slide, others, last):
    with tifffile.TiffWriter(tmp_path / "he.tif") as file:

        def rest():
            for shape in others:
                image = rng.integers(0, 255, shape, dtype=np.uint8)
                file.write(image, photometric="rgb" if shape[-1] == 3 else "minisblack", metadata=None)

        if last:
            rest()
        file.write(slide, tile=(64, 64), photometric="rgb", metadata=None)
        if not last:
            rest()
    np.testing.assert_array_equal(pixels_of(tmp_path / "he.tif"), slide)


def test_a_pyramid_behind_a_label_is_read_whole(tmp_path, slide):
    with tifffile.TiffWriter(tmp_path / "he.tif") as file:
        file.write(slide[:50, :60].copy(), photometric="rgb", metadata=None)
        for k in range(3):
            level = np.ascontiguousarray(slide[:: 2**k, :: 2**k])
            file.write(level, tile=(64, 64), photometric="rgb", metadata=None, subfiletype=int(k > 0))
    levels = raster_levels(read_pyramid(tmp_path / "he.tif", Identity()))
    np.testing.assert_array_equal(levels[0].to_numpy(), slide.transpose(2, 0, 1))


def test_two_sections_in_a_file_are_told(tmp_path, slide):
    path = write(tmp_path / "two.tif", slide[:280].copy(), slide)
    with pytest.warns(ImageWarning, match=r"two.tif holds 2 colour images.*\(320, 256, 3\)"):
        np.testing.assert_array_equal(pixels_of(path), slide)


J2K = {"compression": 33003, "compressionargs": {"level": 0, "mct": False}}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(J2K, id="Aperio's JPEG 2000, tagged RGB"),
        pytest.param({**J2K, "photometric": "ycbcr"}, id="the same, tagged YCbCr"),
        pytest.param({"compression": "lzw", "photometric": "ycbcr", "subsampling": (1, 1)}, id="LZW"),
        pytest.param({"photometric": "ycbcr", "subsampling": (1, 1)}, id="uncompressed"),
    ],
)
def test_ycbcr_that_no_codec_converts_is_converted(tmp_path, slide, options):
    slide[:100] = RGB
    path = write(tmp_path / "x.tif", ycbcr(slide), **options)
    found = pixels_of(path).astype(int)
    assert np.abs(found[:100] - RGB).max() <= 2
    assert np.abs(found - slide).max() <= 3
    # One channel and a part of a window are the same.
    image = raster_levels(read_pyramid(path, Identity()))[0]
    np.testing.assert_array_equal(image[1, 70:90, 30:50].to_numpy(), found[70:90, 30:50, 1])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"compression": 33003, "compressionargs": {"level": 0, "mct": True, "reversible": True}},
            id="transformed by the codec",
        ),
        pytest.param({"compression": 33005, "compressionargs": {"level": 0, "mct": False}}, id="Aperio's RGB"),
        pytest.param({"compression": "jpeg", "compressionargs": {"level": 100}}, id="JPEG"),
        pytest.param({"compression": "lzw"}, id="LZW"),
    ],
)
def test_rgb_stays_as_it_is(tmp_path, slide, options):
    slide[:] = RGB
    path = write(tmp_path / "x.tif", slide, **options)
    assert np.abs(pixels_of(path).astype(int) - RGB).max() <= 2


def test_a_missing_tile_is_black_in_the_file(tmp_path, slide):
    """A tile of no bytes, as scanners leave out."""
    tiles = [
        imagecodecs.jpeg2k_encode(ycbcr(slide[y : y + 64, x : x + 64]), level=0, mct=False)
        for y in range(0, 320, 64)
        for x in range(0, 256, 64)
    ]
    tiles[5] = b""
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(
            iter(tiles),
            shape=slide.shape,
            dtype=np.uint8,
            tile=(64, 64),
            photometric="rgb",
            compression=33003,
            metadata=None,
        )
    found = pixels_of(tmp_path / "x.tif")
    assert (found[64:128, 64:128] == 0).all()
    assert np.abs(found[:64].astype(int) - slide[:64]).max() <= 3


@pytest.mark.parametrize("photometric", ["separated", "cielab", "icclab"])
def test_other_colours_are_refused_by_name(tmp_path, slide, photometric):
    image = np.concatenate([slide, slide[..., :1]], -1) if photometric == "separated" else slide
    path = write(tmp_path / "x.tif", image, photometric=photometric)
    with pytest.raises(SetupError, match=f"(?i){photometric}.*RGB"):
        pixels_of(path)


@pytest.mark.parametrize(
    "names", [["DAPI", "CD3", "CD8"], ["Red", "Green", "Blue"], ["Channel 0", "Channel 1", "Channel 2"]]
)
def test_names_of_ome_are_kept(tmp_path, slide, names):
    planes = np.ascontiguousarray(slide.transpose(2, 0, 1))
    metadata = {"axes": "CYX", "Channel": {"Name": names}}
    tifffile.imwrite(tmp_path / "x.ome.tif", planes, ome=True, photometric="minisblack", metadata=metadata)
    image = raster_levels(read_pyramid(tmp_path / "x.ome.tif", Identity()))[0]
    assert image.coords["c"].values.tolist() == names
    np.testing.assert_array_equal(image.to_numpy(), planes)


def test_names_of_imagej_are_kept(tmp_path, slide):
    planes = np.ascontiguousarray(slide.transpose(2, 0, 1))
    names = ["DAPI", "FITC", "Cy5"]
    tifffile.imwrite(tmp_path / "x.tif", planes, imagej=True, metadata={"axes": "CYX", "Labels": names})
    assert raster_levels(read_pyramid(tmp_path / "x.tif", Identity()))[0].coords["c"].values.tolist() == names


@pytest.mark.parametrize("names", [None, ["same", "same", "same"]])
def test_planes_without_names_are_red_green_and_blue(tmp_path, slide, names):
    planes = np.ascontiguousarray(slide.transpose(2, 0, 1))
    metadata = {"axes": "CYX"} | ({"Channel": {"Name": names}} if names else {})
    tifffile.imwrite(tmp_path / "x.ome.tif", planes, ome=True, photometric="minisblack", metadata=metadata)
    assert raster_levels(read_pyramid(tmp_path / "x.ome.tif", Identity()))[0].coords["c"].values.tolist() == list("rgb")


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_in_either_order_of_bytes(tmp_path, slide, order):
    wide = slide.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "x.tif", wide, byteorder=order, photometric="rgb", tile=(64, 64), metadata=None)
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.tif"), wide)
