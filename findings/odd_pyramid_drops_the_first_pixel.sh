#!/usr/bin/env bash
# spatialdata 0.7.3, xarray 2026.9.0, on Python 3.11: Image2DModel.parse(..., scale_factors=[2]) of an
# image with an odd side drops the FIRST pixel of that side in the coarser level (xarray's coarsen with side="right").
# One would guess that the last pixel is dropped, or that the level's transformation tells. It holds a scale of the ratio
# of sizes alone (9 px to 4: 2.25) and no shift, so pixel k is placed at 2.25 (k + 0.5) where it shows 2 k + 2.
# Each further odd level adds to it. Who registers or cuts crops at a coarse level is off by up to a pixel of that level.
# Output seen: "8 px: level 1 is [0.5, 2.5, 4.5, 6.5], scale 2.0; 9 px: level 1 is [1.5, 3.5, 5.5, 7.5], scale 2.25"
# Usage: [PYTHON=python3.11] bash findings/odd_pyramid_drops_the_first_pixel.sh; the exit code is 1 once this has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "spatialdata==0.7.3" "xarray==2026.9.0"
cat > "$work/run.py" <<'PY'
import numpy as np
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

seen = {}
for side in (8, 9):
    ramp = np.tile(np.arange(side, dtype=np.float32), (1, side, 1))  # each pixel holds its own column
    level = Image2DModel.parse(ramp, dims=("c", "y", "x"), scale_factors=[2])["scale1"]["image"]
    matrix = get_transformation(level).to_affine_matrix(("x", "y"), ("x", "y"))
    seen[side] = level.values[0, 0].tolist(), float(matrix[0, 0]), float(matrix[0, 2])
print("; ".join(f"{side} px: level 1 is {row}, scale {scale}" for side, (row, scale, _) in seen.items()))
even = seen[8] == ([0.5, 2.5, 4.5, 6.5], 2.0, 0.0)
odd = seen[9] == ([1.5, 3.5, 5.5, 7.5], 2.25, 0.0)
raise SystemExit(not (even and odd))
PY
"$work/venv/bin/python" -W ignore "$work/run.py"
