#!/usr/bin/env bash
# squidpy 1.8.2, on Python 3.11: gr.spatial_neighbors(delaunay=True, radius=r) keeps every edge of the triangulation when r
# is a number. Two groups of cells 500 µm apart stay connected at r=30. With radius=(0, 30) the long edges are cut. One would
# guess that a number is a largest length, as it is without delaunay=True. Niches and contiguity across gaps of tissue,
# between cores of a TMA or between sections of one object hang on it.
# Output seen: "longest edge by radius: {'30.0': 590.3, '(0.0, 30.0)': 29.9}"
# Usage: [PYTHON=python3.11] bash findings/squidpy_delaunay_ignores_a_number.sh; the exit code is 1 once this has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "squidpy==1.8.2"
cat > "$work/run.py" <<'PY'
import anndata
import numpy as np
import squidpy as sq

rng = np.random.default_rng(0)
xy = np.concatenate([rng.uniform(0, 100, (50, 2)), rng.uniform(0, 100, (50, 2)) + [600, 0]])
longest = {}
for radius in (30.0, (0.0, 30.0)):
    cells = anndata.AnnData(np.zeros((100, 1), np.float32), obsm={"spatial": xy})
    sq.gr.spatial_neighbors(cells, coord_type="generic", delaunay=True, radius=radius)
    longest[str(radius)] = round(float(cells.obsp["spatial_distances"].max()), 1)
print("longest edge by radius:", longest)
raise SystemExit(not (longest["30.0"] > 400 and longest["(0.0, 30.0)"] <= 30))
PY
"$work/venv/bin/python" -W ignore "$work/run.py"
