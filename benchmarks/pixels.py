"""Tiles a second from one synthetic H&E image in three chunkings: our reader and what else reads tiles of such a store.

Every tile of 256 px is read at native resolution. "Sequential decode" asks for each stored chunk once, one after the other,
and cuts nothing: what the disk and the codec give. Readers that take minutes read a random part of the tiles. Every reader's
first tiles are checked against the stored pixels. Files are in the page cache: they were just written.

    python benchmarks/pixels.py

LazySlide is measured where it is installed (`pip install lazyslide`).
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import dask
import dask.array as da
import geopandas
import numpy as np
import spatialdata
import zarr
from scipy.ndimage import gaussian_filter
from shapely.geometry import Point, box
from spatialdata.models import Image2DModel, ShapesModel

from sigmma_sc.tissue.frame import Slide
from sigmma_sc.tissue.pixels import read_crops

Reader = Callable[[], Iterable]
TILE = 256
CHUNKS = ((3, 512, 512), (3, 1024, 1024), (1, 4096, 4096))
NUCLEUS, STROMA, WHITE = np.array([88, 60, 140.0]), np.array([225, 160, 195.0]), np.array([243, 241, 244.0])


def texture(side: int, rng: np.random.Generator) -> np.ndarray:
    """A patch ``(3, side, side)`` float of eosin of varying depth, glass, and dark nuclei about 16 px across."""
    noise = [gaussian_filter(rng.random((side, side)), sigma, mode="wrap") for sigma in (40, 8)]
    depth, fibres = ((n - n.min()) / np.ptp(n) for n in noise)
    tissue = np.clip(3 * (depth - 0.35), 0, 1)[None]
    spots = np.zeros((side, side))
    spots[tuple(rng.integers(0, side, (2, side**2 // 900)))] = 1
    nuclei = np.clip(gaussian_filter(spots, 5, mode="wrap") * 250, 0, 1)[None] * tissue
    eosin = STROMA[:, None, None] - 50 * (fibres[None] - 0.5)
    picture = WHITE[:, None, None] * (1 - tissue) + eosin * tissue
    return picture * (1 - nuclei) + NUCLEUS[:, None, None] * nuclei


def slide_image(size: int) -> da.Array:
    """H&E-like image ``(3, size, size)`` uint8, lazy: the texture in ever new lightness, with a camera's noise."""
    patch = texture(1024, np.random.default_rng(0))

    def chunk(block_id):
        rng = np.random.default_rng(block_id[1:])
        noise = np.float32(2) * rng.standard_normal(patch.shape, dtype=np.float32)
        return np.clip(patch * rng.uniform(0.9, 1.03) + noise, 0, 255).astype(np.uint8)

    blocks = -(-size // 1024)
    whole = da.map_blocks(chunk, chunks=((3,), (1024,) * blocks, (1024,) * blocks), dtype=np.uint8)
    return whole[:, :size, :size]


def write_store(path: Path, image: da.Array, chunks: tuple[int, int, int]) -> None:
    """A SpatialData store with the image, and the tiles as squares and as circles."""
    corners = tile_corners(image.shape[1])
    squares = geopandas.GeoDataFrame(geometry=[box(x, y, x + TILE, y + TILE) for x, y in corners])
    circles = geopandas.GeoDataFrame(geometry=[Point(x + TILE / 2, y + TILE / 2) for x, y in corners])
    circles["radius"] = TILE / 2
    element = Image2DModel.parse(image.rechunk(chunks), dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    shapes = {"tiles": ShapesModel.parse(squares), "circles": ShapesModel.parse(circles)}
    spatialdata.SpatialData(images={"he": element}, shapes=shapes).write(path)


def tile_corners(size: int) -> np.ndarray:
    """Corners (x, y) of all whole tiles, row by row."""
    at = np.arange(0, size - TILE + 1, TILE)
    return np.stack([a.ravel() for a in np.meshgrid(at, at)], axis=1)


def array_of(path: Path) -> zarr.Array:
    return next(a for _, a in zarr.open_group(path / "images" / "he", mode="r").arrays())


# A reader is opened, then called for (corner, pixels) of its tiles; opening is not timed.


def ours(sdata: spatialdata.SpatialData, size: int = TILE) -> Reader:
    _, height, width = sdata["he"].shape
    corners = tile_corners(height)
    nobody = np.empty(0, np.int64)
    slide = Slide("he", sdata, "he", "global", None, 0.5, width, height, nobody, np.empty((0, 2)), "he", None, None)
    crops = np.column_stack([corners, np.full(len(corners), TILE)]).astype(float)

    def read():
        for index, pixels in read_crops(slide, crops, size):
            yield from zip(corners[index], pixels, strict=True)

    return read


def image_tiles_dataset(sdata: spatialdata.SpatialData, n: int) -> Reader:
    from spatialdata.dataloader import ImageTilesDataset

    tiles = ImageTilesDataset(sdata, {"circles": "he"}, {"circles": "global"}, tile_dim_in_units=TILE)
    corners = tile_corners(sdata["he"].shape[1])
    return lambda: ((corners[i], tiles[i]["he"].data.compute().transpose(1, 2, 0)) for i in some(len(tiles), n))


def lazyslide(sdata: spatialdata.SpatialData, n: int) -> Reader:
    from wsidata import open_wsi

    tiles = open_wsi(sdata, image_key="he").ds.tile_images("tiles", image_size=TILE)
    return lambda: (((tile["x"], tile["y"]), tile["image"]) for tile in (tiles[i] for i in some(len(tiles), n)))


def sequential_decode(array: zarr.Array) -> Reader:
    grid = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
    chunks = [
        tuple(slice(i * c, (i + 1) * c) for i, c in zip(at, array.chunks, strict=True)) for at in np.ndindex(*grid)
    ]
    return lambda: (array[chunk] for chunk in chunks)


def threaded_decode(sdata: spatialdata.SpatialData) -> Reader:
    corner = sdata["he"].data.map_blocks(lambda chunk: chunk[:1, :1, :1])
    return lambda: [corner.compute(scheduler="threads")]


def some(of: int, n: int) -> list[int]:
    return np.random.default_rng(0).choice(of, min(n, of), replace=False).tolist()


def check(array: zarr.Array, read: Reader) -> None:
    """The first tiles are the stored pixels."""
    for (x, y), pixels in itertools.islice(read(), 3):
        np.testing.assert_array_equal(pixels, array[:, y : y + TILE, x : x + TILE].transpose(1, 2, 0))


def rates(readers: dict[str, tuple[Reader, int]], repeat: int) -> dict[str, float]:
    """Tiles a second, the best of some runs; the readers take turns, so that a busy machine slows all alike."""
    best = dict.fromkeys(readers, 0.0)
    for _ in range(repeat):
        for name, (read, n) in readers.items():
            start = time.perf_counter()
            collections.deque(read(), maxlen=0)
            best[name] = max(best[name], n / (time.perf_counter() - start))
    return best


def measure(path: Path, n_some: int) -> dict[str, float | str]:
    """Tiles a second of every reader, or why it did not run."""
    sdata, array = spatialdata.read_zarr(path), array_of(path)
    n_all = len(tile_corners(array.shape[1]))
    whole = {
        "ours": ours(sdata),
        "sequential decode": sequential_decode(array),
        "decode in Dask's threads": threaded_decode(sdata),
    }
    part, missing = {"ImageTilesDataset": image_tiles_dataset(sdata, n_some)}, {}
    try:
        part["LazySlide"] = lazyslide(sdata, n_some)
    except ImportError as error:
        missing["LazySlide"] = f"not run: {error}"
    for read in (whole["ours"], *part.values()):
        check(array, read)
    return {
        **rates({name: (read, n_all) for name, read in whole.items()}, 5),
        **rates({"ours, resampled to 224 px": (ours(sdata, 224), n_all)}, 1),
        **rates({name: (read, n_some) for name, read in part.items()}, 1),
        **missing,
    }


def table(results: dict[tuple[int, int, int], dict[str, float | str]]) -> str:
    """Markdown: a row a reader, a column a chunking, tiles a second and how many times faster ours is."""
    lines = [
        "| tiles/s (ours is × times as fast) | " + " | ".join(map(str, results)) + " |",
        "|---|" + "---:|" * len(results),
    ]
    for name in next(iter(results.values())):
        cells = []
        for rates in results.values():
            value = rates[name]
            if isinstance(value, str):
                cells.append(value)
            else:
                ratio = "" if name.startswith("ours") else f" (× {rates['ours'] / value:.2f})"
                cells.append(f"{value:,.{0 if value > 100 else 1}f}{ratio}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=12288, help="side of the image in px")
    parser.add_argument("--some", type=int, default=100, help="tiles that slow readers read")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        image = slide_image(arguments.size)
        for chunks in CHUNKS:
            path = Path(folder) / f"{'_'.join(map(str, chunks))}.zarr"
            write_store(path, image, chunks)
            image = spatialdata.read_zarr(path)["he"].data  # the same pixels in every chunking, drawn once
            results[chunks] = measure(path, arguments.some)
        array = array_of(path)
        print(
            f"{arguments.size:,} × {arguments.size:,} px, {array.nbytes / array.nbytes_stored():.1f}-fold compressed "
            f"({array.compressors[0].__class__.__name__}), {os.cpu_count()} cores, dask {dask.__version__}, "
            f"zarr {zarr.__version__}, spatialdata {spatialdata.__version__}\n"
        )
    print(table(results))


if __name__ == "__main__":
    main()
