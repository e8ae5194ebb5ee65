"""Maps of niches at every scale and of reference labels (paper, Fig. 4a)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_list
from sigmma_sc.errors import SetupError
from sigmma_sc.pl._cells import MISSING, colours_of
from sigmma_sc.pl._finish import finish
from sigmma_sc.tissue.table import require_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from numpy.typing import NDArray

NUMBER_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}


def niches(
    adata: AnnData,
    scales: Sequence[str] = _keys.SCALES,
    reference: str | Sequence[str] = (),
    key: str = "sigmma_niche",
    basis: str = "spatial",
    size: float | None = None,
    windows: Sequence[tuple[float, float, float]] = (),
    show: bool | None = None,
    save: str | Path | None = None,
    *,
    confidence: bool = False,
) -> list[Axes]:
    """Map the niches of each scale, reference labels and the confidence of niches.

    Labels have the colours of ``uns[f"{column}_colors"]``, as in scanpy. Those of niches are written there.

    Parameters
    ----------
    adata
        Table with the labels of :func:`sigmma_sc.tl.niches`; a single slide.
    scales
        Names of the scales to show.
    reference
        Column or columns of ``obs`` to show before the niches.
    key
        Prefix of the columns of niches, ``key_added`` of :func:`sigmma_sc.tl.niches`.
    basis
        ``obsm`` key of the positions, y pointing down.
    size
        Area of the dot of a cell in points²; by default from the density of cells.
    windows
        Squares (x, y, side) for close-ups, in the units of ``basis``; x and y are of the upper left corner. They are numbered
        on the maps and drawn below, one row a window.
    show
        Whether to show the figure; by default if it is not saved.
    save
        File to write the figure to.
    confidence
        Whether to map the confidence of each scale too, after its niches: the share of runs in which a cell keeps its niche.

    Returns
    -------
    The axes of the maps, then those of the close-ups, row by row.

    Raises
    ------
    SetupError
        A window has no positive side, or holds no cell.
    MissingKeyError
        The table has no such column, confidence or positions.

    See Also
    --------
    sigmma_sc.tl.niches : Compute the niches.
    sigmma_sc.pl.composition : Cell types of each niche.

    Examples
    --------
    >>> axes = sg.pl.niches(adata, reference="niche", save="niches.png")
    >>> [ax.get_title() for ax in axes]
    ['niche', 'micro', 'meso', 'macro']
    """
    import matplotlib.pyplot as plt

    require_table(adata)
    require_list(scales, "scales")
    reference = [reference] if isinstance(reference, str) else list(reference)
    columns = reference + [f"{key}_{scale}" for scale in scales]
    shares = [f"{key}_{scale}_confidence" for scale in scales] if confidence else []
    columns += shares
    for column in columns:
        require_key(column, adata.obs, "column", "Call sg.tl.niches(adata) first.")
    require_key(basis, adata.obsm, "basis")
    xy = np.asarray(adata.obsm[basis])[:, :2]
    width, height = np.ptp(xy, axis=0)
    wide = width > 2 * height
    across = 2 if len(columns) == 4 else min(3, len(columns))
    n_rows, n_cols = (len(columns), 1) if wide else (-(-len(columns) // across), across)
    side = 11.0 if wide else 4.6
    _require_cells(windows, xy, basis)
    small = side * n_cols / len(columns)
    heights = ((side * height / width + 0.35) * n_rows, (small + 0.2) * len(windows))
    figure = plt.figure(figsize=(side * n_cols, sum(heights)), layout="constrained")
    n_parts = 1 + bool(windows)
    upper, *lower = figure.subfigures(n_parts, 1, squeeze=False, height_ratios=heights[:n_parts]).flat
    axes = upper.subplots(n_rows, n_cols, squeeze=False)
    panel_points = 72 * side * min(1.0, width / height)
    size = size or (1.1 * panel_points * np.sqrt(height / width / len(xy))) ** 2
    for ax, column in zip(axes.flat, columns, strict=False):
        if column in shares:
            dots = _map_shares(ax, xy, adata.obs[column].to_numpy(np.float64), size)
            upper.colorbar(dots, ax=ax, shrink=0.6, pad=0.02)
        else:
            labels = adata.obs[column].astype("category")
            colours = colours_of(labels, adata.uns)
            _map(ax, xy, labels, colours, size)
            _legend(ax, colours)
            # Like scanpy, for its plots to agree; a view would become a copy.
            if column not in reference and not adata.is_view:
                adata.uns[f"{column}_colors"] = list(colours.values())
        ax.set_title(column.removeprefix(f"{key}_").replace("_confidence", " confidence"), fontsize=12)
        _frames(ax, windows)
    for ax in axes.flat[len(columns) :]:
        ax.remove()
    out = list(axes.flat[: len(columns)])
    for part in lower:
        close = part.subplots(len(windows), len(columns), squeeze=False)
        for row, window in enumerate(windows):
            out += _close_up(close[row], window, adata, columns, shares, xy, small)
            close[row, 0].set_ylabel(f"{row + 1}", rotation=0, labelpad=10, fontsize=11)
    finish(figure, show, save)
    return out


def _require_cells(windows: Sequence[tuple[float, float, float]], xy: NDArray[np.float64], basis: str) -> None:
    for window in windows:
        if window[2] <= 0 or not _inside(xy, window).any():
            raise SetupError(f"Window {tuple(map(float, window))} holds no cell; obsm[{basis!r}] spans {_span(xy)}.")


def _frames(ax: Axes, windows: Sequence[tuple[float, float, float]]) -> None:
    """Outline and number of each close-up on a map of the whole."""
    from matplotlib.patches import Rectangle

    for number, (x, y, side) in enumerate(windows, start=1):
        ax.add_patch(Rectangle((x, y), side, side, fill=False, lw=1.2, ec="black"))
        label = ax.annotate(str(number), (x, y), (-2, 2), textcoords="offset points", ha="right", fontsize=9)
        label.set_bbox(NUMBER_BOX)


def _inside(xy: NDArray[np.float64], window: tuple[float, float, float]) -> NDArray[np.bool_]:
    corner = np.asarray(window[:2])
    return np.all((xy >= corner) & (xy <= corner + window[2]), axis=1)


def _span(xy: NDArray[np.float64]) -> str:
    return " and ".join(f"{low:.0f} to {high:.0f}" for low, high in zip(xy.min(axis=0), xy.max(axis=0), strict=True))


def _close_up(
    axes: Sequence[Axes],
    window: tuple[float, float, float],
    adata: AnnData,
    columns: Sequence[str],
    shares: Sequence[str],
    xy: NDArray[np.float64],
    inches: float,
) -> list[Axes]:
    """The cells of a window, in the colours of the whole."""
    x, y, side = window
    here = _inside(xy, window)
    size = (0.8 * 72 * inches / np.sqrt(here.sum())) ** 2
    for ax, column in zip(axes, columns, strict=True):
        if column in shares:
            _map_shares(ax, xy[here], adata.obs[column].to_numpy(np.float64)[here], size)
        else:
            labels = adata.obs[column].astype("category")
            _map(ax, xy[here], labels[here], colours_of(labels, adata.uns), size)
        ax.set(xlim=(x, x + side), ylim=(y + side, y))
        ax.spines[:].set_visible(True)
    return list(axes)


def _map(ax: Axes, xy: NDArray[np.float64], labels: pd.Series, colours: Mapping[str, str], size: float) -> None:
    palette = np.array(list(colours.values()))
    codes = labels.cat.codes.to_numpy()
    known = codes >= 0
    ax.scatter(xy[~known, 0], xy[~known, 1], s=size, c=MISSING, linewidths=0, rasterized=True)
    ax.scatter(xy[known, 0], xy[known, 1], s=size, c=palette[codes[known]], linewidths=0, rasterized=True)
    _frame(ax)


def _map_shares(ax: Axes, xy: NDArray[np.float64], shares: NDArray[np.float64], size: float) -> PathCollection:
    """Shares between 0 and 1 in colour, grey for cells without one."""
    known = np.isfinite(shares)
    ax.scatter(xy[~known, 0], xy[~known, 1], s=size, c=MISSING, linewidths=0, rasterized=True)
    dots = ax.scatter(
        xy[known, 0],
        xy[known, 1],
        s=size,
        c=shares[known],
        vmin=0,
        vmax=1,
        cmap="viridis",
        linewidths=0,
        rasterized=True,
    )
    _frame(ax)
    return dots


def _frame(ax: Axes) -> None:
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)


def _legend(ax: Axes, names: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker="o", ls="", color=colour, label=name, ms=6) for name, colour in names.items()]
    n_columns = 1 + len(names) // 18
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, ncols=n_columns)
