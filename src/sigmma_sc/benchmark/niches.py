"""Niches of the cells that a method embeds."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from sigmma_sc import _keys
from sigmma_sc.benchmark.config import DataSpec, NicheSpec
from sigmma_sc.benchmark.methods import Method
from sigmma_sc.benchmark.trial import Niches
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.frame import Slide


def niches_of(method: Method, slides: Sequence[Slide], data: DataSpec, spec: NicheSpec) -> Niches:
    """Cluster a part of the cells at each scale; :class:`SetupError` for a method that embeds no cells."""
    from sigmma_sc import tl

    embedded = method.embed_cells()
    if embedded is None:
        raise SetupError(f"niches.methods={spec.methods!r} names a method that embeds no cells. Leave it out.")
    covered = np.flatnonzero(np.isfinite(next(iter(embedded.values()))).all(axis=1))
    # The same cells for every seed and method: labels of two runs can be compared.
    chosen = np.sort(np.random.default_rng(0).permutation(covered)[: spec.n_cells])
    table = AnnData(obs=pd.DataFrame(index=chosen.astype(str)))
    for scale, z in embedded.items():
        table.obsm[_keys.obsm_cells(scale)] = z[chosen]
    tl.niches(table, tuple(embedded), spec.resolution)
    labels = {scale: table.obs[f"sigmma_niche_{scale}"].astype(int).to_numpy() for scale in embedded}
    slide = np.concatenate([np.full(len(one.rows), number) for number, one in enumerate(slides)])
    xy = np.concatenate([one.xy * one.microns_per_pixel for one in slides])
    reference = None if data.reference is None else _reference(slides, data.reference)[chosen]
    return Niches(labels, slide[chosen], xy[chosen], reference)


def _reference(slides: Sequence[Slide], column: str) -> NDArray[np.str_]:
    """A column of ``obs`` of all cells as text, empty where a cell has no value."""
    parts = [slide.table.obs[column].iloc[slide.rows].astype(object) for slide in slides]
    values = pd.concat(parts, ignore_index=True)
    return np.where(values.isna(), "", values.astype(str)).astype(str)
