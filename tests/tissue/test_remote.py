"""Slides read from where they are: in the processes of a Dask cluster, and over the network."""

import functools
import http.server
import threading

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
import zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale, get_transformation, set_transformation
from xarray import DataArray, Dataset, DataTree
from zarr.storage import FsspecStore

from sigmma_sc.tissue.frame import Slide, image_levels
from sigmma_sc.tissue.pixels import read_crops


def slide_of(sdata):
    height, width = image_levels(sdata, "he")[0].shape[1:]
    return Slide(
        "s", sdata, "he", "global", None, 0.5, width, height, np.empty(0, np.int64), np.empty((0, 2)), "s", None, None
    )


def read_all(slide, crops, size=40):
    out = np.zeros((len(crops), size, size, 3), np.uint8)
    for index, pixels in read_crops(slide, crops, size):
        out[index] = pixels
    return out


@pytest.fixture(scope="module")
def crops():
    rng = np.random.default_rng(1)
    return np.column_stack([rng.uniform(-60, 880, 90), rng.uniform(-60, 680, 90), rng.uniform(20, 140, 90)])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A slide with a pyramid in a SpatialData store."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, 700, 900), dtype=np.uint8)
    image = Image2DModel.parse(
        pixels, ("c", "y", "x"), c_coords=["r", "g", "b"], chunks=(3, 128, 128), scale_factors=[2]
    )
    path = tmp_path_factory.mktemp("remote") / "slide.zarr"
    sd.SpatialData(images={"he": image}).write(path)
    return path


@pytest.fixture(scope="module")
def expected(store, crops):
    return read_all(slide_of(sd.read_zarr(store)), crops)


@pytest.fixture(scope="module")
def worker():
    """A process with a single thread, which the reading task holds: asking the cluster to decode would wait for ever."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_in_the_process_of_a_worker_by_path(worker, store, crops, expected):
    def read(path, crops, size):
        # What a user's task holds; the worker knows nothing of this file.
        import os

        import numpy as np
        import spatialdata as sd

        from sigmma_sc.tissue.frame import Slide, image_levels
        from sigmma_sc.tissue.pixels import read_crops

        sdata = sd.read_zarr(path)
        _, height, width = image_levels(sdata, "he")[0].shape
        slide = Slide(
            "s", sdata, "he", "global", None, 0.5, width, height, np.empty(0, int), np.empty((0, 2)), "s", None, None
        )
        out = np.zeros((len(crops), size, size, 3), np.uint8)
        for index, pixels in read_crops(slide, crops, size):
            out[index] = pixels
        return os.getpid(), out

    process, found = worker.submit(read, str(store), crops, 40).result(timeout=120)
    assert process in worker.run(__import__("os").getpid).values()
    np.testing.assert_array_equal(found, expected)


def test_in_the_process_of_a_worker_by_the_slide_itself(worker, store, crops, expected):
    def read(slide, crops, size):
        import numpy as np

        from sigmma_sc.tissue.pixels import read_crops

        out = np.zeros((len(crops), size, size, 3), np.uint8)
        for index, pixels in read_crops(slide, crops, size):
            out[index] = pixels
        return out

    slide = slide_of(sd.read_zarr(store))
    np.testing.assert_array_equal(worker.submit(read, slide, crops, 40).result(timeout=120), expected)


def remote_image(url, transformation):
    """The recipe of the documentation: every stored level of an image in a remote SpatialData store, lazy."""
    group = zarr.open_group(FsspecStore.from_url(url, read_only=True), mode="r")
    names = sorted((name for name, _ in group.arrays()), key=lambda name: int(name.lstrip("s")))
    levels = [da.from_zarr(group[name]) for name in names]
    _, height, width = levels[0].shape
    tree = {}
    for number, level in enumerate(levels):
        _, h, w = level.shape
        where = {"c": list("rgb"), "y": (np.arange(h) + 0.5) * height / h, "x": (np.arange(w) + 0.5) * width / w}
        tree[f"scale{number}"] = Dataset({"image": DataArray(level, where, ("c", "y", "x"), attrs={"transform": {}})})
    image = DataTree.from_dict(tree)
    set_transformation(image, transformation, "global")
    return image


@pytest.fixture
def server(store):
    """The folder of the store over HTTP, and what was asked for."""
    pytest.importorskip("aiohttp", reason="fsspec reads HTTP with aiohttp")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=store.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/{store.name}", asked
        running.shutdown()
        thread.join()


def test_over_http(server, crops, expected):
    url, asked = server
    image = remote_image(f"{url}/images/he", Scale([2.0, 2.0], ("x", "y")))
    sdata = sd.SpatialData(images={"he": image})
    assert get_transformation(sdata["he"]).scale.tolist() == [2, 2]
    asked.clear()
    np.testing.assert_array_equal(read_all(slide_of(sdata), crops), expected)
    chunks = [path.split("/images/he/")[1] for path in asked if "/c/" in path]
    assert len(chunks) == len(set(chunks))  # each once
    assert {path.split("/")[0] for path in chunks} == {"s0", "s1"}
