"""Covariates of a cell beside its profile."""

import numpy as np
from numpy.typing import NDArray

from sigmma_sc.tissue.pixel_size import on_lattice

DENSITY_NEIGHBOURS = 8
"""Nearest cells whose mean distance measures how dense a cell's surroundings are."""


def log_distance(xy: NDArray[np.float64], even_lattices: bool = True) -> NDArray[np.float32]:
    """log1p of each cell's mean distance to its nearest cells, ``(n,)``, from positions ``(n, 2)`` in µm.

    Bins and spots on a lattice all have the median distance. Theirs says nothing of the tissue, but is larger at edges and
    holes, which would become niches; ``even_lattices=False`` keeps it, as models did that were saved before.
    """
    from scipy.spatial import cKDTree

    n = min(DENSITY_NEIGHBOURS, len(xy) - 1)
    if n < 1:
        return np.zeros(len(xy), np.float32)
    distance, _ = cKDTree(xy).query(xy, n + 1)
    logs = np.log1p(distance[:, 1:].mean(axis=1)).astype(np.float32)
    if even_lattices and on_lattice(xy):
        logs[:] = np.median(logs)
    return logs
