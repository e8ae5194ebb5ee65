#!/usr/bin/env bash
# safetensors 0.8.0, on Python 3.11: safetensors.numpy.save_file writes an array that is not C-contiguous as its memory lies.
# A transposed (genes × cells) matrix comes back with the right shape and other values, without an error. One would guess
# that it is made contiguous, as numpy.save does, or refused, as safetensors.torch refuses such tensors.
# Loadings of a PCA are often transposed, and a column-major matrix is what many linear algebra routines return.
# Output seen: "read as written: {'transposed': False, 'column_major': False, 'copied': True}"
# Usage: [PYTHON=python3.11] bash findings/safetensors_numpy_saves_memory_order.sh; the exit code is 1 once this has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "safetensors==0.8.0" "numpy==2.3.5"
cat > "$work/run.py" <<'PY'
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

loadings = np.arange(6, dtype=np.float32).reshape(2, 3)
file = Path(tempfile.mkdtemp()) / "x.safetensors"
save_file({"transposed": loadings.T, "column_major": np.asfortranarray(loadings), "copied": loadings.T.copy()}, file)
read = load_file(file)
same = {
    "transposed": np.array_equal(read["transposed"], loadings.T),
    "column_major": np.array_equal(read["column_major"], loadings),
    "copied": np.array_equal(read["copied"], loadings.T),
}
print("read as written:", same)
raise SystemExit(same != {"transposed": False, "column_major": False, "copied": True})
PY
"$work/venv/bin/python" -W ignore "$work/run.py"
