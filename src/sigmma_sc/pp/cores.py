"""Cores of a tissue microarray as samples."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc._checks import require_positive, require_stored_name, require_whole
from sigmma_sc.errors import CoreWarning, ExistsError, SetupError
from sigmma_sc.tissue.cores import find_cores
from sigmma_sc.tissue.setup import slides_of

if TYPE_CHECKING:
    from sigmma_sc.tissue.setup import Tissue


def split_cores(
    sdata: Tissue, gap: float = 100.0, min_cells: int = 100, key_added: str = "core", overwrite: bool = False
) -> None:
    """Name the core of each cell of a tissue microarray, so that cores can be samples.

    A core is a group of cells with empty glass around it: no cell of it is nearer than about ``gap`` to a cell of another.
    Set the object up again with ``sample_key=key_added`` afterwards. ``model.train(split="sample")`` then holds out whole
    cores.

    Parameters
    ----------
    sdata
        Object, or objects by name, prepared with :meth:`sigmma_sc.SIGMMA.setup_spatialdata`.
    gap
        Least distance between cells of two cores, µm. Cores that touch are one core; a core torn wider than this is two.
    min_cells
        Fewest cells of a core; smaller groups are debris.
    key_added
        Column of ``obs`` that is written: ``"core1"``, ``"core2"``, … row by row from the upper left of the H&E image, with
        the slide's name before it where there are several slides. It is missing for cells of no core.
    overwrite
        Replace a column of this name.

    Raises
    ------
    SetupError
        The object has no setup, was set up without a table, or no core is found on a slide; or an argument is out of range.
    ExistsError
        The column exists already; nothing is written then.

    Warns
    -----
    CoreWarning
        Some cells are in no core.

    Notes
    -----
    A new row begins where a core is more than half a core lower than the last one. The order is no map of the array: in one
    that is turned by several degrees rows may run into one another. Compare it with the array's own map.

    Examples
    --------
    >>> tissue = sg.datasets.simulate_tissue(n_cells=500)
    >>> SIGMMA.setup_spatialdata(tissue, tile_size=64)
    >>> sg.pp.split_cores(tissue)  # one section
    >>> tissue["table"].obs["core"].cat.categories.tolist()
    ['core1']
    """
    require_positive(gap, "gap")
    require_whole(min_cells, "min_cells")
    require_stored_name(key_added, "key_added")
    slides = slides_of(sdata)
    for slide in slides:
        if key_added in slide.table.obs and not overwrite:
            raise ExistsError(
                f"obs[{key_added!r}] exists already. Pass another key_added=…, or overwrite=True to replace it."
            )
    found = {}
    for slide in slides:
        number = find_cores(slide.xy * slide.microns_per_pixel, gap, min_cells)
        if not (number >= 0).any():
            raise SetupError(
                f"Slide {slide.name!r} has no core: no group of {min_cells} cells ({len(number):,} cells in all). Lower min_cells, or "
                "raise gap."
            )
        found[slide.name] = number
    tables = {id(slide.table): slide.table for slide in slides}
    names: dict[int, list[str]] = {key: [] for key in tables}
    labels = {key: np.full(table.n_obs, None, dtype=object) for key, table in tables.items()}
    n_stray = 0
    for slide in slides:
        number = found[slide.name]
        prefix = f"{slide.name}/" if len(slides) > 1 else ""
        own = np.array([f"{prefix}core{k + 1}" for k in range(number.max() + 1)], dtype=object)
        key = id(slide.table)
        names[key] += own.tolist()
        labels[key][slide.rows[number >= 0]] = own[number[number >= 0]]
        n_stray += int((number < 0).sum())
    for key, table in tables.items():
        table.obs[key_added] = pd.Categorical(labels[key], categories=names[key])
    if n_stray:
        n_cells = sum(len(number) for number in found.values())
        warnings.warn(
            f"{n_stray:,} of {n_cells:,} cells are in no core (groups of fewer than {min_cells} cells): obs[{key_added!r}] is "
            "missing for them. Lower min_cells if these are cores.",
            CoreWarning,
            stacklevel=2,
        )
