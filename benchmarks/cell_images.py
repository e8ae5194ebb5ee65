"""Image embeddings of cells: crops shared through a lattice against a crop for each cell, in time, memory and likeness.

    python benchmarks/cell_images.py [--n-cells 100000] [--scales micro meso macro]

The tissue is simulated, with the encoder of stain and texture statistics and a model of one epoch. Time is of the CPU.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings

import numpy as np

import sigmma_sc as sg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-cells", type=int, default=100_000)
    parser.add_argument("--scales", nargs="+", default=["micro", "meso", "macro"])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    small = sg.datasets.simulate_tissue(n_cells=2000, seed=1)
    sg.SIGMMA.setup_spatialdata(small)
    model = sg.SIGMMA(small, n_latent=64)
    model.train(max_epochs=1, split="none", stride=128.0, batch_size=8, enable_progress_bar=False)
    tissue = sg.datasets.simulate_tissue(n_cells=given.n_cells, seed=0)
    sg.SIGMMA.setup_spatialdata(tissue)
    model.get_tile_representation(tissue)  # the slide's mean and standard deviation are known from here on
    for scale in given.scales:
        taken = {}
        found = {}
        for step in (0.5, None):
            start = time.process_time()
            found[step] = model.get_cell_image_representation(tissue, scale, step)
            taken[step] = time.process_time() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{scale}, step {step}: {taken[step]:.1f} s, peak memory {peak:.2f} GiB", flush=True)
        a, b = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in found.values())
        print(
            f"{scale}: {taken[None] / taken[0.5]:.1f} times faster, mean cosine {np.nanmean((a * b).sum(axis=1)):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
