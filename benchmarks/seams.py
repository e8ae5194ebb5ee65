"""How much farther apart neighbours are embedded across a tile's border than beside it, over one grid of tiles and more.

    python benchmarks/seams.py STORE MODEL

STORE is a SpatialData store, MODEL the folder of a model trained on it. Only cells are embedded, no image is read.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import spatialdata

from sigmma_sc import SIGMMA
from sigmma_sc.metrics import seam_ratio
from sigmma_sc.tissue.graph import spatial_graph

OFFSETS = (1, 4, 16, 64)
CONTROL = 1 / 16  # 8 µm into the smallest blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("model")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    sdata = spatialdata.read_zarr(arguments.store)
    model = SIGMMA.load(arguments.model, sdata)
    (slide,) = model.resolve(sdata)
    near = spatial_graph(slide.xy * slide.microns_per_pixel)
    scales = model.setup.scales
    print(f"| `n_offsets` | {' | '.join(scales)} | s |\n|---|{'---:|' * (len(scales) + 1)}")
    for n_offsets in OFFSETS:
        start = time.perf_counter()
        matrix = model.get_latent_representation(scale="all", n_offsets=n_offsets)[slide.rows]
        seconds = time.perf_counter() - start
        ratios = [
            seam_ratio(part, slide.xy, slide.side, near, CONTROL)["ratio"]
            for part in np.split(matrix, len(scales), axis=1)
        ]
        print(f"| {n_offsets} | {' | '.join(f'{r:.3f}' for r in ratios)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
