#!/usr/bin/env bash
# statsmodels 0.15.0, on Python 3.11: one NaN among the p-values of multipletests(method="fdr_bh") makes every corrected one
# NaN, while `reject` still says True for some. One would guess that NaN stays NaN and the rest is corrected, or an error.
# A gene that is constant within a niche has a NaN from a rank or t test, so a table of markers meets this often. Who reads
# `reject` sees discoveries, who reads the corrected values sees none.
# Output seen: "with a NaN: [True, True, False, False, False] [nan, nan, nan, nan, nan] without: [True, True, ...] [4e-06, 2e-05, ...]"
# Usage: [PYTHON=python3.11] bash findings/one_nan_undoes_the_fdr.sh; the exit code is 1 once this has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "statsmodels==0.15.0" "numpy==2.3.5"
cat > "$work/run.py" <<'PY'
import numpy as np
from statsmodels.stats.multitest import multipletests

p = np.array([1e-6, 1e-5, 0.2, 0.5, np.nan])
reject, corrected, _, _ = multipletests(p, method="fdr_bh")
finite = multipletests(p[:4], method="fdr_bh")
print("with a NaN:", reject.tolist(), corrected.tolist(), "without:", finite[0].tolist(), np.round(finite[1], 6).tolist())
raise SystemExit(not (np.isnan(corrected).all() and reject.any() and np.isfinite(finite[1]).all()))
PY
"$work/venv/bin/python" -W ignore "$work/run.py"
