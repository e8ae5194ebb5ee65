#!/usr/bin/env bash
# scikit-image 0.26.0, on Python 3.11: the error that registration.phase_cross_correlation returns says nothing by default.
# An image against itself, moved by 5 rows and 3 columns, has an error of 1.0, and so has an unrelated image. One would
# guess 0 for the first, for the docstring calls it the error between the images. With normalization=None it is 0.0 and
# near 1. Phase normalisation also loses smooth images: moved copies of blurred noise, as an H&E at low power, are found
# in none of 20 trials, and with normalization=None in most.
# Output seen: "moved, phase: 1.00; unrelated, phase: 1.00; moved, None: 0.00; unrelated, None: 0.65 ; smooth, found of 20: {'phase': 0, None: 20}"
# Usage: [PYTHON=python3.11] bash findings/phase_correlation_error_is_always_one.sh; the exit code is 1 once this has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "scikit-image==0.26.0" "scipy==1.16.3" "numpy==2.3.5"
cat > "$work/run.py" <<'PY'
import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.registration import phase_cross_correlation

rng = np.random.default_rng(0)
image, other = rng.random((2, 64, 64))
moved = np.roll(image, (5, 3), (0, 1))
errors = {}
for normalization in ("phase", None):
    for name, one in (("moved", moved), ("unrelated", other)):
        errors[name, normalization] = float(phase_cross_correlation(image, one, normalization=normalization)[1])
found = {"phase": 0, None: 0}
for trial in range(20):
    large = gaussian_filter(rng.random((200, 200)), 6)
    shift = rng.integers(-15, 16, 2)
    here = large[40:160, 40:160]
    there = large[40 + shift[0] : 160 + shift[0], 40 + shift[1] : 160 + shift[1]]
    for normalization in found:
        seen = phase_cross_correlation(here, there, normalization=normalization)[0]
        found[normalization] += bool(np.abs(seen - shift).max() <= 2)
print("; ".join(f"{name}, {n}: {e:.2f}" for (name, n), e in errors.items()), "; smooth, found of 20:", found)
constant = abs(errors["moved", "phase"] - 1) < 1e-3 and abs(errors["unrelated", "phase"] - 1) < 1e-3
told = errors["moved", None] < 1e-3 < 0.1 < errors["unrelated", None]
raise SystemExit(not (constant and told and found["phase"] < 5 < found[None]))
PY
"$work/venv/bin/python" -W ignore "$work/run.py"
