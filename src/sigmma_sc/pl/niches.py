"""Maps of niches at every scale beside reference labels (paper, Fig. 4a)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc import _keys
from sigmma_sc._checks import require_key
from sigmma_sc.pl._cells import MISSING, colours_of
from sigmma_sc.pl._finish import finish

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes


def niches(
    adata: AnnData,
    scales: Sequence[str] = _keys.SCALES,
    reference: str | Sequence[str] = (),
    key: str = "sigmma_niche",
    basis: str = "spatial",
    size: float | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Map the niches of each scale, and reference labels beside them.

    Parameters
    ----------
    adata
        Table with the labels of :func:`sigmma_sc.tl.niches`; a single slide.
    scales
        Scales to show.
    reference
        Further columns of ``obs`` to show first.
    key
        ``key_added`` of :func:`sigmma_sc.tl.niches`.
    basis
        ``obsm`` key of the positions, y pointing down.
    size
        Area of a cell's dot in points²; by default from the density of cells.
    show
        Show the figure; by default when it is not saved.
    save
        File to write.

    Returns
    -------
    The axes.
    """
    import matplotlib.pyplot as plt

    reference = [reference] if isinstance(reference, str) else list(reference)
    columns = reference + [f"{key}_{scale}" for scale in scales]
    for column in columns:
        require_key(column, adata.obs, "column", "Call sg.tl.niches(adata) first.")
    require_key(basis, adata.obsm, "basis")
    xy = np.asarray(adata.obsm[basis])[:, :2]
    width, height = np.ptp(xy, axis=0)
    wide = width > 2 * height
    n_rows, n_cols = (len(columns), 1) if wide else (-(-len(columns) // 3), min(3, len(columns)))
    side = 11.0 if wide else 4.6
    figure, axes = plt.subplots(
        n_rows,
        n_cols,
        figsize=(side * n_cols, (side * height / width + 0.35) * n_rows),
        squeeze=False,
        layout="constrained",
    )
    panel_points = 72 * side * min(1.0, width / height)
    size = size or (1.1 * panel_points * np.sqrt(height / width / len(xy))) ** 2
    for ax, column in zip(axes.flat, columns, strict=False):
        _map(ax, xy, adata.obs[column].astype("category"), size)
        ax.set_title(column.removeprefix(f"{key}_"), fontsize=12)
    for ax in axes.flat[len(columns) :]:
        ax.remove()
    finish(figure, show, save)
    return list(axes.flat[: len(columns)])


def _map(ax: Axes, xy: np.ndarray, labels: pd.Series, size: float) -> None:
    from matplotlib.lines import Line2D

    names = colours_of(labels)
    codes = labels.cat.codes.to_numpy()
    missing = codes < 0
    ax.scatter(*xy[missing].T, s=size, c=MISSING, linewidths=0, rasterized=True)
    ax.scatter(
        *xy[~missing].T, s=size, c=np.array(list(names.values()))[codes[~missing]], linewidths=0, rasterized=True
    )
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=name, markersize=6)
        for name, colour in names.items()
    ]
    ax.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=8,
        ncols=1 + len(names) // 18,
    )
