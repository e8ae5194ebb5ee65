#!/usr/bin/env bash
# spatialdata 0.7.3 beside dask 2026.1.1, on Python 3.11 or newer: Image2DModel.parse(..., scale_factors=...) computes no level.
# Each read of a coarser level starts again from every pixel of the full resolution, even where the image was in memory.
# One would guess that parse makes the pyramid once, as writing the object does. A notebook that keeps an object in memory
# pays the whole image for each thumbnail; persisting the levels, or write and read_zarr, makes it once.
# Output seen: "source read 8 times by parse and two reads of the coarsest level, 0 times by two reads after persist"
# Usage: [PYTHON=python3.11] bash findings/parsed_pyramid_is_not_kept.sh; the exit code is 1 once the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "spatialdata==0.7.3" "dask==2026.1.1"
"$work/venv/bin/python" - <<'PY'
import warnings

warnings.simplefilter("ignore")
import dask
import dask.array as da
import numpy as np
from spatialdata.models import Image2DModel

reads = 0


def read(block):
    global reads
    reads += 1
    return block


source = da.zeros((3, 1024, 1024), chunks=(3, 512, 512), dtype=np.uint8)
with dask.config.set(scheduler="synchronous"):
    image = Image2DModel.parse(
        source.map_blocks(read, dtype=np.uint8, meta=np.zeros((0, 0, 0), np.uint8)),
        dims=("c", "y", "x"),
        scale_factors=[2, 2],
        chunks=(3, 512, 512),
    )
    coarsest = image["scale2"]["image"].data
    for _ in range(2):
        coarsest[:, :8, :8].compute()
    lazy, reads = reads, 0
    kept = coarsest.persist()
    reads = 0
    for _ in range(2):
        kept[:, :8, :8].compute()
print(f"source read {lazy} times by parse and two reads of the coarsest level, {reads} times by two reads after persist")
raise SystemExit(not (lazy >= 2 and reads == 0))
PY
