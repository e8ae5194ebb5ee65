import threading
import tracemalloc
from collections import Counter

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
import tifffile
import zarr
from PIL import Image
from spatialdata.models import Image2DModel
from zarr.storage import FsspecStore, MemoryStore, WrapperStore

from sigmma_sc.tissue import blocks
from sigmma_sc.tissue.frame import Slide, image_levels
from sigmma_sc.tissue.pixels import read_crops


def slide_of(pixels, dims=("c", "y", "x"), **kwargs):
    image = Image2DModel.parse(pixels, dims=dims, c_coords=["r", "g", "b"], **kwargs)
    sdata = sd.SpatialData(images={"he": image})
    height, width = image_levels(sdata, "he")[0].shape[1:]
    empty = np.empty(0, np.int64)
    return Slide("s", sdata, "he", "global", None, 0.5, width, height, empty, np.empty((0, 2)), "s", None, None)


def read_all(slide, crops, size):
    """All crops in their order, each seen once."""
    out, seen = np.zeros((len(crops), size, size, 3), np.uint8), np.zeros(len(crops), int)
    for index, pixels in read_crops(slide, crops, size):
        out[index] = pixels
        seen[index] += 1
    np.testing.assert_array_equal(seen, 1)
    return out


def one_by_one(pixels, crops, size):
    """Every crop resampled from the whole image, in wide glass."""
    room = 1200
    image = Image.fromarray(
        np.pad(pixels, ((0, 0), (room, room), (room, room)), constant_values=255).transpose(1, 2, 0)
    )
    boxes = [(x + room, y + room, x + room + side, y + room + side) for x, y, side in crops]
    return np.stack([np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box)) for box in boxes])


class CountingStore(WrapperStore):
    """A zarr store that remembers which chunks were fetched."""

    def __init__(self, store):
        super().__init__(store)
        self.fetched = Counter()

    async def get(self, key, *args, **kwargs):
        self.fetched[key] += key.startswith("c/")
        return await super().get(key, *args, **kwargs)


@pytest.fixture
def crops(rng):
    """Crops of many sides at fractional places, over every edge and beyond it."""
    inside = np.column_stack([rng.uniform(-60, 880, 150), rng.uniform(-60, 680, 150), rng.uniform(20, 140, 150)])
    outside = [[-500, 20, 90.5], [2000, 20, 60], [30, -100.5, 60], [30, 760.2, 200], [-600, -600, 3], [880, 690, 40]]
    return np.concatenate([inside, outside])


@pytest.fixture
def picture(rng):
    return rng.integers(0, 255, (3, 700, 900), dtype=np.uint8)


@pytest.mark.parametrize("chunks", [(3, 64, 64), (1, 300, 500)])
def test_whole_pixels_come_back_unchanged(rng, chunks):
    pixels = rng.integers(0, 255, (3, 300, 500), dtype=np.uint8)
    slide = slide_of(pixels, chunks=chunks)
    crops = np.array([[0, 0, 32], [468, 268, 32], [100, 7, 32], [255, 130, 32]], float)
    seen = np.zeros(4, int)
    for index, out in read_crops(slide, crops, 32):
        seen[index] += 1
        for k, got in zip(index, out, strict=True):
            x, y, side = crops[k].astype(int)
            np.testing.assert_array_equal(got, pixels[:, y : y + side, x : x + side].transpose(1, 2, 0))
    np.testing.assert_array_equal(seen, 1)


def test_fractional_positions_are_not_rounded():
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 256, 256)).copy()
    slide = slide_of(ramp)
    for shift in (0.0, 0.25, 0.5):
        ((_, out),) = read_crops(slide, np.array([[100 + shift, 50.0, 64]]), 16)
        # The centre of output pixel k lies at 100 + shift + 4 (k + ½), where the ramp reads that minus ½.
        expected = 100 + shift + 4 * (np.arange(16) + 0.5) - 0.5
        np.testing.assert_allclose(out[0, 8, :, 0], expected, atol=0.51)


def test_a_coarser_level_gives_the_same_picture(rng):
    from scipy.ndimage import gaussian_filter

    smooth = np.stack([gaussian_filter(rng.random((1024, 1024)), 12) for _ in range(3)])
    pixels = ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)
    crop = np.array([[100.3, 200.7, 512.0]])
    ((_, single),) = read_crops(slide_of(pixels), crop, 64)
    ((_, pyramid),) = read_crops(slide_of(pixels, scale_factors=[2, 2]), crop, 64)
    assert np.abs(single.astype(int) - pyramid.astype(int)).max() <= 3


@pytest.mark.parametrize("block", [1, 150, 2048])
@pytest.mark.parametrize("chunks", [(3, 64, 64), (3, 97, 113), (1, 700, 900), (1, 256, 300), (3, 1, 900), (3, 700, 8)])
def test_pixels_do_not_depend_on_chunks_blocks_or_neighbours(monkeypatch, picture, crops, chunks, block):
    monkeypatch.setattr(blocks, "BLOCK", block)
    got = read_all(slide_of(picture, chunks=chunks), crops, 40)
    expected = one_by_one(picture, crops, 40)
    # Pillow's fixed-point kernel differs in the last bit with the place of the box.
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1
    np.testing.assert_array_equal(got, read_all(slide_of(picture), crops, 40))
    alone = [read_all(slide_of(picture), crop[None], 40) for crop in crops[::15]]
    np.testing.assert_array_equal(got[::15], np.concatenate(alone))


@pytest.mark.parametrize("chunks", [(3, 64, 64), (1, 128, 128), (3, 200, 900)])
@pytest.mark.parametrize("block", [1, 300])
@pytest.mark.parametrize("through_dask", [False, True])
def test_each_chunk_is_fetched_once_and_only_if_needed(monkeypatch, picture, crops, chunks, block, through_dask):
    monkeypatch.setattr(blocks, "BLOCK", block)
    store = CountingStore(MemoryStore())
    array = zarr.create_array(store, shape=picture.shape, chunks=chunks, dtype=np.uint8)
    array[:] = picture
    lazy = da.from_zarr(array)
    slide = slide_of(lazy.map_blocks(np.positive) if through_dask else lazy)
    store.fetched.clear()
    lattice = np.array([(x, y, 48.3) for x in range(-5, 900, 30) for y in range(-5, 700, 30)], float)
    read_all(slide, np.concatenate([crops, lattice]), 32)
    shape = [-(-n // c) for n, c in zip(picture.shape, chunks, strict=True)]
    expected = {"c/" + "/".join(map(str, at)) for at in np.ndindex(*shape)}
    assert {k: n for k, n in store.fetched.items() if n} == dict.fromkeys(expected, 1)
    store.fetched.clear()
    read_all(slide, np.array([[10.0, 10, 32], [20, 5, 32]]), 32)  # within (0, 0) of every chunking
    assert {k.split("/")[2:] == ["0", "0"] for k, n in store.fetched.items() if n} == {True}


def test_remote_store_and_lazy_tiff(tmp_path, picture, crops):
    expected = read_all(slide_of(picture), crops, 40)
    remote = FsspecStore.from_url("memory://slide.zarr")
    array = zarr.create_array(remote, shape=picture.shape, chunks=(3, 128, 128), dtype=np.uint8)
    array[:] = picture
    np.testing.assert_array_equal(read_all(slide_of(da.from_zarr(array)), crops, 40), expected)
    path = tmp_path / "slide.tiff"
    tifffile.imwrite(path, picture.transpose(1, 2, 0), tile=(128, 128), photometric="rgb")
    with tifffile.imread(path, aszarr=True) as tiff:
        lazy = da.from_zarr(zarr.open_array(tiff, mode="r"))
        np.testing.assert_array_equal(read_all(slide_of(lazy, ("y", "x", "c")), crops, 40), expected)


def test_what_dask_computes_on_a_store_is_not_skipped(picture, crops):
    lazy = da.from_zarr(zarr.array(picture, chunks=(3, 128, 128)))
    np.testing.assert_array_equal(read_all(slide_of(lazy), crops, 40), read_all(slide_of(picture), crops, 40))
    inverted = read_all(slide_of(255 - lazy), crops, 40)
    np.testing.assert_array_equal(inverted, read_all(slide_of(255 - picture), crops, 40))
    part = slide_of(lazy[:, 100:500, 50:450])
    np.testing.assert_array_equal(read_all(part, crops, 40), read_all(slide_of(picture[:, 100:500, 50:450]), crops, 40))


@pytest.mark.parametrize("through_dask", [False, True])
def test_within_dask_tasks(tmp_path, picture, crops, through_dask):
    distributed = pytest.importorskip("distributed")
    path = tmp_path / "slide.zarr"
    slide_of(picture, chunks=(3, 128, 128)).sdata.write(path)
    lazy = sd.read_zarr(path)["he"].data
    slide = slide_of(lazy.map_blocks(np.positive) if through_dask else lazy)
    expected = read_all(slide, crops, 40)
    # One thread, which the reading task holds: a reader that asked the cluster to decode would wait for ever.
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        got = client.submit(read_all, slide, crops, 40).result(timeout=60)
    np.testing.assert_array_equal(got, expected)


def test_groups_are_full(picture):
    lattice = np.array([(x, y, 32.0) for x in range(0, 860, 40) for y in range(0, 660, 40)])
    sizes = [len(index) for index, _ in read_crops(slide_of(picture, chunks=(3, 64, 64)), lattice, 32)]
    assert sizes == [128, 128, 118]
    assert list(read_crops(slide_of(picture), np.empty((0, 3)), 32)) == []


def test_abandoned_and_failing_reads_leave_no_threads(monkeypatch, picture, crops):
    monkeypatch.setattr(blocks, "BLOCK", 64)
    before = threading.active_count()
    reading = read_crops(slide_of(picture, chunks=(3, 64, 64)), crops, 32)
    next(reading)
    reading.close()

    def broken(chunk, block_info):
        if block_info[0]["chunk-location"] == (0, 5, 5):
            raise OSError("chunk c/0/5/5 is damaged")
        return chunk

    damaged = da.from_array(picture, chunks=(3, 64, 64)).map_blocks(
        broken, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    with pytest.raises(OSError, match="damaged"):
        read_all(slide_of(damaged), crops, 32)
    assert threading.active_count() == before


def test_memory_does_not_grow_with_the_slide(monkeypatch):
    # A block has 3 MB. Threads and Dask keep up to 4 MB of small objects, more or less of them from run to run.
    monkeypatch.setattr(blocks, "BLOCK", 1024)

    def peak(height):
        slide = slide_of(da.full((3, height, 2048), 200, dtype=np.uint8, chunks=(3, 1024, 1024)))
        crops = np.array([(x, y, 256.0) for x in range(0, 1800, 256) for y in range(0, height - 256, 256)])
        tracemalloc.start()
        for _ in read_crops(slide, crops, 16):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small, large = peak(4096), peak(40960)
    assert large < 1.5 * small
    assert large < 0.25 * 3 * 40960 * 2048


def test_the_level_read_is_the_coarsest_with_a_pixel_for_every_pixel(picture):
    slide = slide_of(picture, scale_factors=[2, 2])
    levels = [np.asarray(node.image.data) for node in slide.sdata["he"].children.values()]
    for number, side in enumerate((32, 64, 128)):
        ((_, out),) = read_crops(slide, np.array([[128.0, 256.0, side]]), 32)
        y, x = 256 // 2**number, 128 // 2**number
        np.testing.assert_array_equal(out[0], levels[number][:, y : y + 32, x : x + 32].transpose(1, 2, 0))
    # One output pixel is 1.97 px of level 0: level 1 would have to be upsampled.
    crop = np.array([[100.0, 100.0, 63.0]])
    ((_, out),) = read_crops(slide, crop, 32)
    np.testing.assert_allclose(out.astype(int), one_by_one(picture, crop, 32).astype(int), atol=1)
