#!/usr/bin/env bash
# scanpy 1.11.5, on Python 3.11: after sc.pp.normalize_total, cells with the same share of a gene have different values. It
# divides by total / median in float32, so that 1 of 3 and 2 of 6 differ in the last bit. One would guess that equal shares
# stay equal. A rank test then orders cells by rounding where there is a tie, and tie_correct=True counts fewer ties. Shares
# that are computed first, and multiplied by the median after, stay equal.
# Output seen: "gene 0: 62 shares, 67 values", and 3 to 5 more values than shares for each of the six genes
# Usage: [PYTHON=python3.11] bash findings/normalize_total_parts_equal_shares.sh; the exit code is 1 once this has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "scanpy==1.11.5" "anndata==0.12.19" "numba==0.68.1"
cat > "$work/run.py" <<'PY'
from fractions import Fraction

import anndata as ad
import numpy as np
import scanpy as sc
from scipy.sparse import csr_matrix

counts = np.random.default_rng(0).poisson(2.0, (400, 6)).astype(np.float32)
counts[:, 0] += 1
adata = ad.AnnData(csr_matrix(counts), obs={"group": ["a", "b"] * 200})
totals = counts.sum(axis=1)
sc.pp.normalize_total(adata)
values = adata.X.toarray()
parted = 0
for gene in range(6):
    shares = [Fraction(int(c), int(t)) for c, t in zip(counts[:, gene], totals)]
    distinct = len(set(shares))
    kept = len(set(values[:, gene].tolist()))
    parted += kept - distinct
    print(f"gene {gene}: {distinct} shares, {kept} values")
raise SystemExit(parted <= 0)
PY
"$work/venv/bin/python" -W ignore "$work/run.py"
