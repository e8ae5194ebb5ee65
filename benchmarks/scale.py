"""Time and memory of all that is done to a slide but the networks, on slides of any size.

Without arguments, two synthetic slides of one density are written chunk by chunk as spatialdata-io would write them: 60,000 ×
60,000 px with 1,000,000 cells, and a tenth of that. Each is then set up, tiled and graphed, and every crop that training or
embedding asks for is read once, in a process of its own. Goal: less than 3 GB at the peak, and a time per cell within 1.3 times
that of the small slide. Given stores of one's own, their set-up and tiling are measured.

    python benchmarks/scale.py                         # some 25 minutes on two cores, and 11 GB of the folder for temporary files
    python benchmarks/scale.py --only-setup            # without reading the crops
    python benchmarks/scale.py pancreas.zarr kidney.zarr=2.006      # µm per pixel where the transforms do not say
    python benchmarks/scale.py --niches                # tl.niches of three scales of as many cells, in a process of its own each
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# This process imports nothing large: a child's peak memory counts from its parent's.

SIZES = {"small": (18_974, 100_000), "large": (60_000, 1_000_000)}
"""Side in px and number of cells."""

MICRONS, MORPHOLOGY = 0.5, 0.25
"""µm per pixel of the H&E, and of the picture that gives the coordinate system its unit."""

PATCH, NUCLEI = 1024, 300
"""Side of the patch that is repeated, and its nuclei: a few more than the cells wanted."""

CHUNKS, PYRAMID = (1, 4096, 4096), [2, 2, 2, 2]  # spatialdata-io's own
GENES, COUNTS = 300, 60
LIMIT_GB, LIMIT_RATIO = 3.0, 1.3

WIDTH, CLASSES = 128, {"micro": 40, "meso": 20, "macro": 12}
"""Of the embeddings whose niches are timed, and the classes of cells in them."""
NICHES_GB, NICHES_RATIO = 24.0, 12.0


def build(path: Path, side: int, n_cells: int) -> None:
    """Write a slide whose cells lie on its nuclei."""
    import numpy as np
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel
    from spatialdata.transformations import Scale

    rng = np.random.default_rng(0)
    nuclei = rng.uniform(0, PATCH, (NUCLEI, 2))
    n = -(-side // PATCH)
    shifts = rng.integers(0, PATCH, (n, n, 2))  # (x, y) of the patch in each place, so that no two places are alike
    corners = np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1)[:, :, None] * PATCH
    xy = ((nuclei + shifts[:, :, None]) % PATCH + corners).reshape(-1, 2)
    xy = xy[(xy < side).all(axis=1)]
    xy = xy[np.sort(rng.choice(len(xy), n_cells, replace=False))] * MICRONS
    names = [f"cell{k}" for k in range(n_cells)]
    image = Image2DModel.parse(
        picture(nuclei, shifts)[:, :side, :side],
        ("c", "y", "x"),
        c_coords=["r", "g", "b"],
        chunks=CHUNKS,
        scale_factors=PYRAMID,
        transformations={"global": Scale([MICRONS / MORPHOLOGY] * 2, ("x", "y"))},
    )
    to_system = {"global": Scale([1 / MORPHOLOGY] * 2, ("x", "y"))}
    cells = ShapesModel.parse(xy, geometry=0, radius=5.0, index=names, transformations=to_system)
    SpatialData(images={"he_image": image}, shapes={"cells": cells}, tables={"table": table(names, rng)}).write(path)


def picture(nuclei: Any, shifts: Any) -> Any:
    """A lazy image ``(3, y, x)`` of one patch in ever new places, lightness and noise."""
    import dask.array as da
    import numpy as np
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(1)
    spots, fibres = np.zeros((PATCH, PATCH)), gaussian_filter(rng.standard_normal((PATCH, PATCH)), 8, mode="wrap")
    spots[tuple(nuclei[:, ::-1].astype(int).T)] = 1
    stained = np.clip(gaussian_filter(spots, 4, mode="wrap") * 160, 0, 1)
    eosin = np.array([225, 160, 195.0])[:, None, None] + 15 * fibres / fibres.std()
    patch = (eosin + (np.array([88, 60, 140.0])[:, None, None] - eosin) * stained).clip(10, 240).astype(np.uint8)
    noise = rng.normal(0, 2, patch.shape).round().astype(np.int8).view(np.uint8)  # wraps around, as the sum then does

    def place(block_id: tuple[int, int, int]) -> np.ndarray:
        x, y = shifts[block_id[1], block_id[2]]
        light = (np.arange(256) * (0.94 + 0.1 * ((x + y) % 64) / 64)).round().clip(8, 247).astype(np.uint8)
        return light[np.roll(patch, (y, x), (1, 2))] + np.roll(noise, (x, y), (1, 2))

    sides = (PATCH,) * len(shifts)
    return da.map_blocks(place, chunks=((3,), sides, sides), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))


def table(names: list[str], rng: Any) -> Any:
    """Counts of some genes, few of them common, as a sparse matrix."""
    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_matrix, vstack
    from spatialdata.models import TableModel

    share = 1 / np.arange(5, GENES + 5)
    drawn = [
        csr_matrix(rng.poisson(COUNTS * share / share.sum(), (some, GENES)).astype(np.float32))
        for some in np.diff([*range(0, len(names), 20_000), len(names)])
    ]
    obs = pd.DataFrame({"region": pd.Categorical(["cells"] * len(names)), "cell_id": names}, index=names)
    adata = AnnData(vstack(drawn, format="csr"), obs=obs)
    return TableModel.parse(adata, region="cells", region_key="region", instance_key="cell_id")


def measure(path: str, only_setup: bool) -> dict[str, Any]:
    """Seconds and peak memory so far of each stage, GB, on the first slide of a store given as PATH or PATH=MICRONS."""
    import spatialdata

    from sigmma_sc.tissue.graph import spatial_graph
    from sigmma_sc.tissue.mask import tissue_mask
    from sigmma_sc.tissue.setup import Setup
    from sigmma_sc.tissue.tiling import covering_tiles, crops_of_tiles, lattice_tiles

    stages: dict[str, tuple[float, float]] = {}

    def stage(name: str, run: Callable, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = run(*arguments)
        stages[name] = time.perf_counter() - start, peak_gb()
        return result

    path, _, microns = path.partition("=")
    sdata = stage("open", spatialdata.read_zarr, path)
    stated = float(microns) if microns else None
    setup = Setup("he_image", "table", "global", None, None, None, stated, 128.0, (4, 2, 1))
    slide = stage("setup_spatialdata", set_up, sdata, setup)
    side = setup.tile_size / slide.microns_per_pixel
    where = slide.xy, slide.width, slide.height, side
    covering, _ = stage("covering tiles", covering_tiles, *where)
    lattice = stage("tiles of training", lattice_tiles, *where, side / setup.grids[0])
    mask = stage("tissue mask", tissue_mask, slide)
    stage("tissue of tiles", mask.share, lattice.origins, side)
    crops = stage("distinct crops", crops_of_tiles, lattice, setup.grids)[0]
    adjacency = stage("spatial graph", spatial_graph, slide.xy * slide.microns_per_pixel)
    stage("edges in blocks", block_edges, slide, covering, adjacency, setup.grids[0])
    stage("node features", node_features, slide)
    if not only_setup:
        stage("read crops", read_all, slide, crops)
    return {"n_cells": len(slide.xy), "n_tiles": len(lattice), "n_crops": len(crops), "stages": stages}


def block_edges(slide: Any, tiles: Any, adjacency: Any, grid: int) -> int:
    """Edges inside micro blocks, some tiles at a time as the model asks for them."""
    import numpy as np

    from sigmma_sc.tissue.graph import edges_within
    from sigmma_sc.tissue.tiling import block_of

    n = 0
    for start in range(0, len(tiles), 64):
        some = tiles.take(np.arange(start, min(start + 64, len(tiles))))
        tile = np.repeat(np.arange(len(some)), some.n_cells)
        block = block_of(slide.xy[some.cells] - some.origins[tile], some.side, grid)
        n += len(edges_within(adjacency, some.cells, tile * grid**2 + block)[0])
    return n


def set_up(sdata: Any, setup: Any) -> Any:
    """The first slide, set up and checked as by setup_spatialdata."""
    from sigmma_sc.registration.check import warn_unregistered
    from sigmma_sc.tissue.setup import checked_setup, store_setup

    checked = checked_setup(sdata, setup)
    store_setup(sdata, {name: own for name, (own, _) in checked.items()})
    slides = [slide for _, own in checked.values() for slide in own]
    for slide in slides:
        warn_unregistered(slide)
    return slides[0]


def node_features(slide: Any) -> Any:
    """The default features of every cell, fitted on all tiles."""
    import numpy as np

    from sigmma_sc.features.counts_pca import CountsPCA

    features = CountsPCA()
    features.fit([(slide, np.arange(len(slide.tiles)))])
    return features.transform(slide, slide.tiles)


def read_all(slide: Any, crops: Any) -> int:
    """Read every crop once, at the input size of the default encoder."""
    from sigmma_sc.encoders.registry import REGISTRY
    from sigmma_sc.tissue.pixels import read_crops

    return sum(len(index) for index, _ in read_crops(slide, crops, REGISTRY["stain-stats"].input_size))


def embedding(n_cells: int, n_classes: int, seed: int) -> Any:
    """Classes of cells and, for two cells of five, what lies between two of them: unit vectors ``(n_cells, WIDTH)``."""
    import numpy as np

    rng = np.random.default_rng(seed)
    spread = (1 / np.sqrt(np.arange(1, WIDTH + 1))).astype(np.float32)
    centres = rng.standard_normal((n_classes, WIDTH), np.float32) * spread
    first, second = rng.integers(0, n_classes, (2, n_cells))
    share = np.where(rng.random(n_cells) < 0.4, rng.random(n_cells), 0).astype(np.float32)[:, None]
    cells = rng.standard_normal((n_cells, WIDTH), np.float32)
    cells *= 0.5 * spread
    cells += centres[first]
    cells += share * (centres[second] - centres[first])
    cells /= np.linalg.norm(cells, axis=1, keepdims=True)
    return cells


def measure_niches(n_cells: int) -> dict[str, Any]:
    """Processor seconds of the call and of the process, peak memory and numbers of niches."""
    from anndata import AnnData

    import sigmma_sc as sg

    adata = AnnData(shape=(n_cells, 0))
    for seed, (scale, n_classes) in enumerate(CLASSES.items()):
        adata.obsm[f"X_sigmma_{scale}"] = embedding(n_cells, n_classes, seed)
    start = time.process_time()
    sg.tl.niches(adata)
    end = time.process_time()
    n_niches = {scale: int(adata.obs[f"sigmma_niche_{scale}"].nunique()) for scale in CLASSES}
    return {"seconds": end - start, "process": end, "peak": peak_gb(), "n_niches": n_niches}


def time_niches(sizes: list[int]) -> None:
    """Markdown: a row a number of cells, the first against the last."""
    print(
        "| cells | tl.niches, CPU s | whole process, CPU s | peak, GB | niches |\n|---:|---:|---:|---:|---|", flush=True
    )
    found = []
    for n_cells in sizes:
        one = child("--measure-niches", n_cells)
        found.append(one)
        told = ", ".join(f"{scale} {n}" for scale, n in one["n_niches"].items())
        print(f"| {n_cells:,} | {one['seconds']:.0f} | {one['process']:.0f} | {one['peak']:.1f} | {told} |", flush=True)
    ratio = found[-1]["seconds"] / found[0]["seconds"]
    met = {True: "met", False: "MISSED"}
    print(f"\nPeak below {NICHES_GB:g} GB: {met[found[-1]['peak'] < NICHES_GB]}.")
    print(f"Time within {NICHES_RATIO:g} × of the first: {ratio:.1f} ×, {met[ratio <= NICHES_RATIO]}.")


def peak_gb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def child(*arguments: Any) -> Any:
    """Run a part of this file in a process of its own; its last line is its result."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(small: dict[str, Any], large: dict[str, Any]) -> str:
    """Markdown: a row a stage, with seconds and µs a cell of both slides and their ratio."""
    lines = [
        "| stage | small, s | µs a cell | large, s | µs a cell | ratio | peak so far, GB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    totals = [sum(s for s, _ in found["stages"].values()) for found in (small, large)]
    peaks = max(gb for _, gb in large["stages"].values())
    rows = [(name, s, *large["stages"][name]) for name, (s, _) in small["stages"].items()]
    for name, a, b, gb in [*rows, ("**all**", *totals, peaks)]:
        per_cell = a / small["n_cells"] * 1e6, b / large["n_cells"] * 1e6
        lines.append(
            f"| {name} | {a:.2f} | {per_cell[0]:.1f} | {b:.2f} | {per_cell[1]:.1f} | {per_cell[1] / per_cell[0]:.2f} | {gb:.2f} |"
        )
    ratio = totals[1] / large["n_cells"] / (totals[0] / small["n_cells"])
    met = {True: "met", False: "MISSED"}
    lines += ["", f"Peak below {LIMIT_GB:g} GB: {met[peaks < LIMIT_GB]}."]
    lines += [f"Time per cell within {LIMIT_RATIO:g} × of the small slide: {met[ratio <= LIMIT_RATIO]}."]
    return "\n".join(lines)


def synthetic(only_setup: bool) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (side, n_cells) in SIZES.items():
            path = Path(folder) / f"{name}.zarr"
            seconds = child("--build", path, side, n_cells)
            gb = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e9
            print(
                f"{name}: {side:,} × {side:,} px, {n_cells:,} cells, {gb:.1f} GB written in {seconds:.0f} s", flush=True
            )
        for name in SIZES:
            found[name] = child("--measure", Path(folder) / f"{name}.zarr", *["--only-setup"] * only_setup)
            print(f"{name}: {found[name]['n_tiles']:,} tiles, {found[name]['n_crops']:,} distinct crops", flush=True)
    print(f"\n{os.cpu_count()} cores\n\n{compare(found['small'], found['large'])}")


def given(stores: list[str]) -> None:
    print(
        f"{os.cpu_count()} cores\n\n| store | cells | tiles | set-up, s | tiling, s | all but the crops, s | peak, GB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for store in stores:
        found = child("--measure", store, "--only-setup")
        seconds = {name: s for name, (s, _) in found["stages"].items()}
        tiling = seconds["covering tiles"] + seconds["tiles of training"]
        print(
            f"| {Path(store.partition('=')[0]).stem} | {found['n_cells']:,} | {found['n_tiles']:,} | {seconds['setup_spatialdata']:.1f} | {tiling:.1f} | "
            f"{sum(seconds.values()):.1f} | {max(gb for _, gb in found['stages'].values()):.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", help="SpatialData stores with he_image and table, as PATH or PATH=MICRONS")
    parser.add_argument("--only-setup", action="store_true", help="do not read the crops")
    parser.add_argument("--niches", nargs="*", type=int, metavar="CELLS", help="time tl.niches of so many cells")
    parser.add_argument("--measure-niches", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--build", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.build:
        start = time.perf_counter()
        build(Path(arguments.build[0]), *map(int, arguments.build[1:]))
        print(f"\n{time.perf_counter() - start}")
    elif arguments.measure_niches:
        print(f"\n{json.dumps(measure_niches(arguments.measure_niches))}")
    elif arguments.niches is not None:
        time_niches(arguments.niches or [n_cells for _, n_cells in SIZES.values()])
    elif arguments.measure:
        print(f"\n{json.dumps(measure(arguments.measure, arguments.only_setup))}")
    elif arguments.stores:
        given(arguments.stores)
    else:
        synthetic(arguments.only_setup)


if __name__ == "__main__":
    main()
