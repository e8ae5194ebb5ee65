#!/usr/bin/env bash
# pybanksy 1.3.5, numpy 2.4.6, on Python 3.11: generate_banksy_matrix(..., variance_balance=) sets whether the gradient
# is centred, and never balances variances: it hands variance_balance over by position, where create_nbr_matrix has center.
# One would guess that the default gives the gradient of the README (v1.2.1: "corrected to align with R version"), which
# takes the mean of the neighbours off, and that variance_balance=True scales each neighbour matrix. By default a constant
# added to a gene changes its "gradient" instead, and the neighbour means are the same with variance_balance as without.
# Until mended, variance_balance=True gives the centred gradient.
# Output seen: "constant gene: gradient up to 0.91 by default, 0.00 with variance_balance=True; neighbour means equal: True"
# Usage: [PYTHON=python3.11] bash findings/banksy_variance_balance_is_centring.sh; the exit code is 1 once this has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "pybanksy==1.3.5" "numpy==2.4.6" "scanpy==1.11.5" "anndata==0.12.19"
cat > "$work/run.py" <<'PY'
import contextlib
import io

import numpy as np
from anndata import AnnData
from banksy.embed_banksy import generate_banksy_matrix
from banksy.initialize_banksy import initialize_banksy

rng = np.random.default_rng(0)
expression = rng.gamma(2.0, 1.0, (300, 30))
expression[:, 0] = 1.0  # the same in every cell: its gradient is zero
cells = AnnData(expression, obsm={"spatial": rng.uniform(0, 100, (300, 2))})
matrices = {}
for balance in (False, True):
    with contextlib.redirect_stdout(io.StringIO()):
        graphs = initialize_banksy(
            cells, ("x", "y", "spatial"), num_neighbours=10, plt_edge_hist=False, plt_nbr_weights=False, plt_theta=False
        )
        generate_banksy_matrix(cells, graphs, [0.8], max_m=1, variance_balance=balance, verbose=False)
    matrices[balance] = np.split(graphs["scaled_gaussian"]["norm_counts_concatenated"], 3, axis=1)
default, balanced = matrices[False][2][:, 0].max(), matrices[True][2][:, 0].max()
equal = np.array_equal(matrices[False][1], matrices[True][1])
print(
    f"constant gene: gradient up to {default:.2f} by default, {balanced:.2f} with variance_balance=True; "
    f"neighbour means equal: {equal}"
)
raise SystemExit(not (default > 0.1 and balanced < 1e-6 and equal))
PY
"$work/venv/bin/python" -W ignore "$work/run.py"
