#!/usr/bin/env bash
# scikit-bio 0.7.1, on Python 3.11: stats.composition.dirmult_ttest(table, grouping) without `treatment` takes the group that
# comes first by name as treated, where one would guess the second, as in a comparison with a control named first. A niche
# that doubles from "control" to "tumour" gets a negative log fold change. dirmult_ttest(..., "tumour", "control") is positive.
# Output seen: "niche0: -0.96 without treatment, 0.96 with treatment='tumour'"
# Usage: [PYTHON=python3.11] bash findings/dirmult_test_turns_the_sign.sh; the exit code is 1 once this has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "scikit-bio==0.7.1"
cat > "$work/run.py" <<'PY'
import numpy as np
import pandas as pd
from skbio.stats.composition import dirmult_ttest

rng = np.random.default_rng(0)
shares = {"control": [0.2, 0.4, 0.4], "tumour": [0.4, 0.3, 0.3]}
rows, groups = [], []
for group, share in shares.items():
    for _ in range(6):
        rows.append(rng.multinomial(1000, share))
        groups.append(group)
names = [f"donor{k}" for k in range(12)]
table = pd.DataFrame(rows, index=names, columns=["niche0", "niche1", "niche2"])
grouping = pd.Series(groups, index=names)
unsaid = dirmult_ttest(table, grouping, seed=0)["Log2(FC)"]
said = dirmult_ttest(table, grouping, "tumour", "control", seed=0)["Log2(FC)"]
print(f"niche0: {unsaid['niche0']:.2f} without treatment, {said['niche0']:.2f} with treatment='tumour'")
raise SystemExit(not (unsaid["niche0"] < 0 < said["niche0"]))
PY
"$work/venv/bin/python" -W ignore "$work/run.py"
