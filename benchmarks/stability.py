"""Seams, and agreement of the niches of two seeds of one model, on a section of one's own.

    python benchmarks/stability.py STORE [--window X0 Y0 X1 Y1] [--setup microns_per_pixel=2.006] [--options radius=12]

STORE is a SpatialData store with one image; it is only read. Both models train with the package's own encoder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from typing import Any

import numpy as np
import spatialdata
from anndata import AnnData

import sigmma_sc as sg
from sigmma_sc import SIGMMA
from sigmma_sc.metrics import niche_agreement, seam_ratio
from sigmma_sc.tissue.graph import spatial_graph

OFFSETS = (1, 16)
CONTROL = 1 / 16  # as in seams.py


def section(arguments: argparse.Namespace) -> spatialdata.SpatialData:
    """The section, or a window of it, set up."""
    sdata = spatialdata.read_zarr(arguments.store)
    if arguments.window:
        corners = np.reshape(arguments.window, (2, 2))
        sdata = sdata.query.bounding_box(
            axes=("x", "y"), min_coordinate=corners[0], max_coordinate=corners[1], target_coordinate_system="global"
        )
    SIGMMA.setup_spatialdata(sdata, **options(arguments.setup))
    return sdata


def options(given: list[str]) -> dict[str, Any]:
    """Options written as name=value, values as in JSON."""
    return {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in given)}


def seams(model: SIGMMA, n_offsets: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Embeddings of the cells, and ratio of the distances of neighbours across and beside tiles' borders, by scale."""
    (slide,) = model.resolve()
    near = spatial_graph(slide.xy * slide.microns_per_pixel)
    scales = model.setup.scales
    matrix = model.get_latent_representation(scale="all", n_offsets=n_offsets)
    parts = dict(zip(scales, np.split(matrix, len(scales), axis=1), strict=True))
    return parts, {
        scale: seam_ratio(part[slide.rows], slide.xy, slide.side, near, CONTROL)["ratio"]
        for scale, part in parts.items()
    }


def niches_of(parts: dict[str, np.ndarray], resolution: float | str) -> AnnData:
    """Niches of every scale of the cells that have an embedding, the same cells for every seed."""
    covered = ~np.isnan(next(iter(parts.values()))).any(axis=1)
    cells = AnnData(
        obsm={f"X_sigmma_{scale}": part[covered] for scale, part in parts.items()}, shape=(covered.sum(), 0)
    )
    sg.tl.niches(cells, resolution=resolution)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--window", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"))
    parser.add_argument("--setup", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    sdata = section(arguments)
    found: dict[float | str, list[AnnData]] = {"auto": [], 0.5: []}
    for seed in range(arguments.seeds):
        model = SIGMMA(sdata, seed=seed, **options(arguments.options))
        model.train(max_epochs=arguments.epochs, split="none", enable_progress_bar=False)
        for n_offsets in OFFSETS:
            start = time.process_time()
            parts, ratios = seams(model, n_offsets)
            seconds = time.process_time() - start
            told = ", ".join(f"{scale} {ratio:.3f}" for scale, ratio in ratios.items())
            print(f"seed {seed}, {n_offsets} offsets: seam ratios {told}; {seconds:.0f} CPU-s", flush=True)
        for resolution, cells in found.items():
            start = time.process_time()
            cells.append(niches_of(parts, resolution))
            seconds = time.process_time() - start
            columns = [f"sigmma_niche_{scale}" for scale in model.setup.scales]
            told = ", ".join(f"{c} {cells[-1].obs[c].nunique()}" for c in columns)
            print(f"seed {seed}, resolution {resolution}: niches {told}; {seconds:.0f} CPU-s", flush=True)
    for resolution, cells in found.items():
        for scale in model.setup.scales:
            labels = [one.obs[f"sigmma_niche_{scale}"].to_numpy() for one in cells]
            pairs = itertools.combinations(labels, 2)
            agreement = [niche_agreement(first, second)["ari"] for first, second in pairs]
            print(f"resolution {resolution}, {scale}: ARI of two seeds {np.mean(agreement):.3f}", flush=True)


if __name__ == "__main__":
    main()
