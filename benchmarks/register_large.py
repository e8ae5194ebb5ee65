"""Memory of the automatic registration of a million cells on an image of 71,000 x 71,000 px.

    python benchmarks/register_large.py FOLDER

makes FOLDER/large.zarr in a process of its own, if it is not there: 250,000 simulated cells, each four times at places
3 µm apart, and their image with each pixel four times as wide and high, in a pyramid. The image is then mirrored, turned
by 7° and shifted, and registered. Nothing else is written.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from dataclasses import replace
from pathlib import Path

import anndata
import dask.array as da
import numpy as np
import spatialdata
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, set_transformation

import sigmma_sc as sg
from sigmma_sc.pp.alignment import DEFAULTS
from sigmma_sc.tissue.frame import image_levels
from sigmma_sc.tissue.setup import resolve_slides

N_CELLS = 250_000
COPIES = 4
WIDER = 4
CHUNK = 2048
MICRONS = 0.5 / WIDER
"""Size of a pixel of the large image in µm."""


def make(store: Path) -> None:
    """Write the section."""
    sdata = sg.datasets.simulate_tissue(n_cells=N_CELLS, seed=0)
    (slide,) = resolve_slides(sdata, DEFAULTS)
    small = da.asarray(image_levels(sdata, "he_image")[0].data)
    large = small.repeat(WIDER, axis=1).repeat(WIDER, axis=2).rechunk((3, CHUNK, CHUNK))
    image = Image2DModel.parse(large, dims=("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=[2, 2, 2, 2, 2])
    rng = np.random.default_rng(0)
    xy = np.concatenate([slide.xy * WIDER + rng.normal(0, 3 / MICRONS, slide.xy.shape) for _ in range(COPIES)])
    table = anndata.concat([sdata["table"]] * COPIES)
    table.obs_names = [f"cell{number}" for number in range(len(xy))]
    table.obs = table.obs[[]].assign(region="cells", cell=table.obs_names)
    table.obs["region"] = table.obs["region"].astype("category")
    table = TableModel.parse(table, region="cells", region_key="region", instance_key="cell")
    cells = ShapesModel.parse(xy, geometry=0, radius=4 / MICRONS, index=table.obs_names)
    SpatialData(images={"he_image": image}, shapes={"cells": cells}, tables={"table": table}).write(store)


def register(store: Path) -> None:
    """Register the section from a wrong pose."""
    sdata = spatialdata.read_zarr(store)
    angle = np.deg2rad(7)
    wrong = np.array([[np.cos(angle), -np.sin(angle), 3000], [np.sin(angle), np.cos(angle), -2000], [0, 0, 1]])
    wrong = wrong @ np.diag([-1.0, 1, 1])
    set_transformation(sdata["he_image"], Affine(wrong, ("x", "y"), ("x", "y")), "global")
    height, width = image_levels(sdata, "he_image")[0].shape[1:]
    read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.process_time()
    found = sg.pp.register(sdata, microns_per_pixel=MICRONS)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    setup = replace(DEFAULTS, microns_per_pixel=MICRONS)
    (slide,) = resolve_slides(sdata, setup, aligned=False)
    (right,) = resolve_slides(spatialdata.read_zarr(store), setup)
    error = np.median(np.hypot(*(slide.xy - right.xy).T)) * MICRONS
    print(
        f"{len(slide.xy):,} cells, {width:,} x {height:,} px: {found.verdict.item()}, median error {error:.2f} µm (stated "
        f"{found.error.item():.2f}), {seconds:.0f} CPU-s, peak memory {peak:.1f} GiB ({read:.1f} before)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    store = parser.parse_args().folder / "large.zarr"
    if not store.exists():
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(store,))
        maker.start()
        maker.join()
    register(store)
