"""Cores of a tissue microarray: groups of cells with empty glass between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS_PER_GAP = 8
"""Bins in the width of the least gap: distances between cells are known to about an eighth of it."""

MOST_BINS = 2**27
"""Bins of a grid: distances of more would not fit into the memory of a workstation. A slide of 25 × 75 mm at a gap of 100 µm
has a tenth of them."""


def find_cores(xy: NDArray[np.float64], gap: float, min_cells: int) -> NDArray[np.int64]:
    """Number of the core of each cell, ``(n,)``, row by row from the upper left; -1 for cells of no core.

    Cells less than about ``gap`` apart are of one group, and so are all that a chain of such cells joins. A group of
    ``min_cells`` or more is a core. ``xy`` ``(n, 2)`` has y pointing down.
    """
    from scipy.ndimage import distance_transform_edt, label

    if not len(xy):
        return np.empty(0, np.int64)
    side = gap / BINS_PER_GAP
    extent = np.ptp(xy, axis=0)
    if np.prod(extent / side + 1) > MOST_BINS:
        raise SetupError(
            f"gap={gap:g} is too small for cells that lie {extent[0]:.0f} × {extent[1]:.0f} apart. Give the width of the glass between "
            "cores, or leave out cells far from all others."
        )
    column, row = (np.floor((xy - xy.min(axis=0)) / side).astype(np.int64) + BINS_PER_GAP).T
    empty = np.ones((row.max() + BINS_PER_GAP + 1, column.max() + BINS_PER_GAP + 1), bool)
    empty[row, column] = False
    near = distance_transform_edt(empty) < BINS_PER_GAP / 2
    groups, n_groups = label(near, np.ones((3, 3)))
    group = groups[row, column] - 1
    sizes = np.bincount(group, minlength=n_groups)
    cores = np.flatnonzero(sizes >= min_cells)
    number = np.full(n_groups, -1)
    if len(cores):
        low, high = _boxes(xy, group, n_groups)
        number[cores[_by_rows(low[cores], high[cores])]] = np.arange(len(cores))
    return number[group]


def _boxes(
    xy: NDArray[np.float64], group: NDArray[np.int64], n_groups: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Upper left and lower right corner of each group, ``(n_groups, 2)``."""
    low = np.full((n_groups, 2), np.inf)
    high = np.full((n_groups, 2), -np.inf)
    np.minimum.at(low, group, xy)
    np.maximum.at(high, group, xy)
    return low, high


def _by_rows(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order of boxes, row by row and from the left; a new row begins half a box below the last centre."""
    x, y = ((low + high) / 2).T
    half = np.median(high[:, 1] - low[:, 1]) / 2
    down = np.argsort(y, kind="stable")
    row = np.empty(len(y), np.int64)
    row[down] = np.concatenate([[0], np.cumsum(np.diff(y[down]) > half)])
    return np.lexsort((x, row))
