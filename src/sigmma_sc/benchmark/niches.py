"""Niches of the cells that a method embeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sigmma_sc.benchmark.config import DataSpec, NicheSpec
    from sigmma_sc.benchmark.methods import Method
    from sigmma_sc.tissue.frame import Slide


def niche_labels(method: Method, slides: Sequence[Slide], data: DataSpec, spec: NicheSpec) -> dict[str, NDArray]:
    """Cluster a part of the cells at each scale.

    Returns
    -------
    ``niche|<scale>``, Leiden labels ``(n,)``; ``cell|slide`` and ``cell|xy``, number of the slide and place in µm; and
    ``reference``, known niches as text, empty where a cell has none.
    """
    from anndata import AnnData

    from sigmma_sc import tl

    found = method.embed_cells()
    if found is None:
        raise SetupError(f"niches.methods={spec.methods!r} names a method that embeds no cells. Leave it out.")
    known = np.flatnonzero(np.isfinite(next(iter(found.values()))).all(axis=1))
    # The same cells for every seed and method: labels of two runs can be compared.
    some = np.sort(np.random.default_rng(0).permutation(known)[: spec.n_cells])
    table = AnnData(obs=pd.DataFrame(index=some.astype(str)))
    for scale, z in found.items():
        table.obsm[_keys.obsm_cells(scale)] = z[some]
    tl.niches(table, tuple(found), spec.resolution)
    out = {f"niche|{scale}": table.obs[f"sigmma_niche_{scale}"].astype(int).to_numpy() for scale in found}
    out["cell|slide"] = np.concatenate([np.full(len(s.rows), k) for k, s in enumerate(slides)])[some]
    out["cell|xy"] = np.concatenate([s.xy * s.microns_per_pixel for s in slides])[some]
    if data.reference is not None:
        columns = [s.table.obs[data.reference].iloc[s.rows] for s in slides]
        labels = pd.concat([column.astype(object) for column in columns], ignore_index=True)
        out["reference"] = np.where(labels.isna(), "", labels.astype(str)).astype(str)[some]
    return out
