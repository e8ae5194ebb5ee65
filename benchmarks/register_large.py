"""Memory and time of the automatic registration of a million cells on an image of 60,416 x 60,416 px.

    python benchmarks/register_large.py FOLDER
    /usr/bin/time -v python benchmarks/register_large.py FOLDER

The first call makes FOLDER/large.zarr and ends: squares of 256 µm of eight kinds, each kind with its colour, its nuclei and
its genes, in random patches. The next call registers the image from a wrong pose, and prints error, time and peak memory.
The store is not changed by it.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import anndata
import dask.array as da
import numpy as np
import spatialdata
import xarray as xr
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

import sigmma_sc as sg

MICRONS = 0.25
SIDE = 1024
"""Size of a pixel in µm, and side of a square in px."""

N_SQUARES = 59
"""Number of squares along a side of the image."""

N_KINDS = 8
N_TEXTURES = 3
"""Number of kinds of tissue, and of squares of each, which differ in their nuclei."""

N_CELLS = 288
"""Number of cells of a square: a million in all."""

N_GENES = 100
LEVELS = 6


def make(store: Path) -> None:
    """Write the section."""
    rng = np.random.default_rng(0)
    fields = [gaussian_filter(rng.normal(size=(N_SQUARES, N_SQUARES)), 1.2) for _ in range(N_KINDS)]
    kind = np.argmax(fields, axis=0)
    texture = kind * N_TEXTURES + rng.integers(N_TEXTURES, size=kind.shape)
    # A lattice, shaken, so that nuclei are 9 µm or more apart.
    lattice = np.stack(np.meshgrid(np.arange(17), np.arange(17)), axis=-1).reshape(-1, 2)[:N_CELLS]
    nuclei = [(lattice + rng.uniform(0.2, 0.8, lattice.shape)) * SIDE / 17 for _ in range(N_KINDS * N_TEXTURES)]
    colours = rng.uniform((150, 90, 140), (240, 200, 225), (N_KINDS, 3))
    pictures = [draw(xy, colours[number // N_TEXTURES], rng) for number, xy in enumerate(nuclei)]
    corner = np.stack(np.meshgrid(np.arange(N_SQUARES), np.arange(N_SQUARES)), axis=-1).reshape(-1, 1, 2) * SIDE
    xy = (corner + np.array(nuclei)[texture.ravel()]).reshape(-1, 2) * MICRONS
    types = np.repeat(kind.ravel(), N_CELLS)
    share = rng.gamma(0.3, size=(N_KINDS, N_GENES)) + 0.02
    rates = 40 * share / share.sum(axis=1, keepdims=True)
    counts = np.concatenate([rng.poisson(rates[some]).astype(np.uint16) for some in np.array_split(types, 50)])
    table = anndata.AnnData(csr_matrix(counts, dtype=np.float32))
    table.obs_names = [f"cell{number}" for number in range(len(xy))]
    table.obs["region"] = np.full(len(xy), "cells")
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs["cell"] = table.obs_names
    table = TableModel.parse(table, region="cells", region_key="region", instance_key="cell")
    to_px = {"global": Scale([1 / MICRONS, 1 / MICRONS], ("x", "y"))}
    cells = ShapesModel.parse(xy, geometry=0, radius=4, index=table.obs_names.to_numpy(), transformations=to_px)
    image = pyramid(pictures, texture)
    SpatialData(images={"he_image": image}, shapes={"cells": cells}, tables={"table": table}).write(store)


def draw(nuclei: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Picture ``(3, SIDE, SIDE)`` of a square: a colour, its noise, and dark nuclei 6 µm wide."""
    column, row = nuclei.astype(int).T
    points = np.zeros((SIDE, SIDE))
    points[row, column] = 1
    spots = gaussian_filter(points, 2.5 / MICRONS)
    stain = (spots / (0.5 * spots.max())).clip(0, 1) * 0.75
    base = colour[:, None, None] + 6 * rng.normal(size=(1, SIDE // 4, SIDE // 4)).repeat(4, axis=1).repeat(4, axis=2)
    return (base * (1 - stain) + np.array([70.0, 50, 130])[:, None, None] * stain).clip(0, 255).astype(np.uint8)


def pyramid(pictures: list[np.ndarray], texture: np.ndarray) -> xr.DataTree:
    """Image of the squares at each level, lazy: a level is that of its pictures, and none is computed from another."""
    levels = {}
    for number in range(LEVELS):
        side = SIDE >> number
        shrunk = [p.reshape(3, side, 2**number, side, 2**number).mean(axis=(2, 4)).astype(np.uint8) for p in pictures]

        def square(block_info: dict, shrunk: list = shrunk) -> np.ndarray:
            row, column = block_info[None]["chunk-location"][1:]
            return shrunk[texture[row, column]]

        chunks = ((3,), (side,) * N_SQUARES, (side,) * N_SQUARES)
        pixels = da.map_blocks(square, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
        if number:
            pixels = pixels.rechunk((3, SIDE, SIDE))
        image = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"])
        scale = Scale([2.0**number, 2.0**number], ("x", "y"))
        set_transformation(image, scale if number else Identity())
        levels[f"scale{number}"] = xr.Dataset({"image": image})
    return xr.DataTree.from_dict(levels)


def register(store: Path) -> None:
    """Register the section from a wrong pose."""
    sdata = spatialdata.read_zarr(store)
    angle = np.deg2rad(7)
    wrong = np.array([[np.cos(angle), -np.sin(angle), 3000], [np.sin(angle), np.cos(angle), -2000], [0, 0, 1]])
    set_transformation(sdata["he_image"], Affine(wrong @ np.diag([-1.0, 1, 1]), ("x", "y"), ("x", "y")), "global")
    read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.process_time()
    found = sg.pp.register(sdata)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # The image belongs where its pixels are those of the system.
    image = spatialdata.transformations.get_transformation(sdata["he_image"]).to_affine_matrix(("x", "y"), ("x", "y"))
    corners = np.array([[x, y, 1] for x in (0, SIDE * N_SQUARES) for y in (0, SIDE * N_SQUARES)])
    error = np.hypot(*((corners @ image.T)[:, :2] - corners[:, :2]).T).max() * MICRONS
    print(
        f"{sdata['table'].n_obs:,} cells, {SIDE * N_SQUARES:,} px: {found.verdict.item()}, corners off by {error:.2f} µm (stated "
        f"{found.error.item():.2f}), {seconds:.0f} CPU-s, peak memory {peak:.2f} GiB ({read:.2f} when read)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    store = parser.parse_args().folder / "large.zarr"
    if store.exists():
        register(store)
    else:
        make(store)
