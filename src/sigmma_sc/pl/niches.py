"""Maps of niches at every scale and of reference labels (paper, Fig. 4a)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_list
from sigmma_sc.errors import SetupError
from sigmma_sc.pl._cells import MISSING, PALETTE, colours_of
from sigmma_sc.pl._finish import finish
from sigmma_sc.pl._scale import microns_of, scale_bar
from sigmma_sc.tissue.table import require_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

NUMBER_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
MOST_NEAR = 30
"""Number of cells of a label that tell where it is densest."""


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
    palette: Sequence[str] | Mapping[str, str] | None = None,
    library_key: str | None = None,
    microns_per_unit: float | None = None,
) -> list[Axes]:
    """Map the niches of each scale, reference labels and the confidence of niches.

    Labels have the colours of ``uns[f"{column}_colors"]``, as in scanpy. Those of niches are written there, where scanpy,
    squidpy and spatialdata-plot find them. Our first ten colours can be told apart by protanopes and deuteranopes. Where
    there are more labels, each has its name on the map too, at the place where its cells are densest.

    Parameters
    ----------
    adata
        Table with the labels of :func:`sigmma_sc.tl.niches`. Several slides are drawn side by side.
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
    palette
        Colours of the niches, in the order of their categories or by their names, in place of those in ``uns``.
    library_key
        Column of ``obs`` with the slide of each cell, as in squidpy. By default the regions of the table, if it has several.
    microns_per_unit
        Length in µm of a unit of ``basis``, for the scale bar. By default the one that
        :meth:`sigmma_sc.SIGMMA.write_embeddings` measured for ``"spatial"``. There is no bar where it is not known.

    Returns
    -------
    The axes of the maps, then those of the close-ups, row by row. Of several slides, those of each column slide by slide.

    Raises
    ------
    SetupError
        A window has no positive side, or holds no cell; there are windows for several slides; or a colour is missing or
        invalid.
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
    require_table(adata)
    require_list(scales, "scales")
    reference = [reference] if isinstance(reference, str) else list(reference)
    own = [f"{key}_{scale}" for scale in scales]
    shares = [f"{column}_confidence" for column in own] if confidence else []
    columns = [*reference, *own, *shares]
    for column in columns:
        require_key(column, adata.obs, "column", "Call sg.tl.niches(adata) first.")
    require_key(basis, adata.obsm, "basis")
    slides = _slides(adata, library_key)
    if len(slides) > 1 and len(windows):
        raise SetupError(f"windows={list(windows)!r} need one slide; there are {len(slides)}. Pass adata of one slide.")
    xy = np.asarray(adata.obsm[basis])[:, :2]
    _require_cells(windows, xy, basis)
    maps = _Maps(adata, columns, shares, {}, key, xy, microns_of(adata, basis, microns_per_unit))
    for column in [*reference, *own]:
        chosen = palette if column in own else None
        maps.colours[column] = colours_of(adata.obs[column].astype("category"), adata.uns, chosen)
    # Like scanpy, for its plots to agree; a view would become a copy.
    if not adata.is_view:
        for column in own:
            adata.uns[f"{column}_colors"] = list(maps.colours[column].values())
    figure, out = _several(maps, slides, size) if len(slides) > 1 else _one(maps, size, windows)
    finish(figure, show, save)
    return out


class _Maps(NamedTuple):
    """What all panels of a figure share."""

    adata: AnnData
    columns: list[str]
    shares: list[str]
    colours: dict[str, dict[str, str]]
    key: str
    xy: NDArray[np.float64]
    microns: float | None

    def title(self, column: str) -> str:
        return column.removeprefix(f"{self.key}_").replace("_confidence", " confidence")

    def draw(self, ax: Axes, column: str, here: NDArray[np.bool_], size: float) -> PathCollection | None:
        """The cells of ``here``; the dots are returned if their colours are numbers."""
        if column in self.shares:
            return _map_shares(ax, self.xy[here], self.adata.obs[column].to_numpy(np.float64)[here], size)
        labels = self.adata.obs[column].astype("category")
        _map(ax, self.xy[here], labels[here], self.colours[column], size)
        return None


def _slides(adata: AnnData, library_key: str | None) -> dict[str, NDArray[np.bool_]]:
    """Cells of each slide, by its name, in the order of the table or of the categories."""
    column = library_key
    if column is None:
        column = adata.uns.get("spatialdata_attrs", {}).get("region_key")
        if column not in adata.obs:
            return {"": np.ones(adata.n_obs, bool)}
    else:
        require_key(column, adata.obs, "library_key")
    labels = adata.obs[column].astype("category")
    names = [name for name in labels.cat.categories if (labels == name).any()]
    return {str(name): (labels == name).to_numpy() for name in names}


def _one(maps: _Maps, size: float | None, windows: Sequence[tuple[float, float, float]]) -> tuple[Figure, list[Axes]]:
    """All maps of one slide, and its close-ups below."""
    import matplotlib.pyplot as plt

    columns = maps.columns
    width, height = np.ptp(maps.xy, axis=0)
    wide = width > 2 * height
    across = 2 if len(columns) == 4 else min(3, len(columns))
    n_rows, n_cols = (len(columns), 1) if wide else (-(-len(columns) // across), across)
    side = 11.0 if wide else 4.6
    small = side * n_cols / len(columns)
    heights = ((side * height / width + 0.35) * n_rows, (small + 0.2) * len(windows))
    figure = plt.figure(figsize=(side * n_cols, sum(heights)), layout="constrained")
    n_parts = 1 + bool(windows)
    upper, *lower = figure.subfigures(n_parts, 1, squeeze=False, height_ratios=heights[:n_parts]).flat
    axes = upper.subplots(n_rows, n_cols, squeeze=False)
    everywhere = np.ones(len(maps.xy), bool)
    size = size or _dot(maps.xy, side)
    for ax, column in zip(axes.flat, columns, strict=False):
        dots = maps.draw(ax, column, everywhere, size)
        if dots is not None:
            upper.colorbar(dots, ax=ax, shrink=0.6, pad=0.02)
        else:
            _legend(ax, maps.colours[column])
        ax.set_title(maps.title(column), fontsize=12)
        _frames(ax, windows)
    if maps.microns is not None:
        scale_bar(axes.flat[0], maps.microns)
    for ax in axes.flat[len(columns) :]:
        ax.remove()
    out = list(axes.flat[: len(columns)])
    for part in lower:
        close = part.subplots(len(windows), len(columns), squeeze=False)
        for row, window in enumerate(windows):
            out += _close_up(close[row], window, maps, small)
            close[row, 0].set_ylabel(f"{row + 1}", rotation=0, labelpad=10, fontsize=11)
    return figure, out


def _several(maps: _Maps, slides: Mapping[str, NDArray[np.bool_]], size: float | None) -> tuple[Figure, list[Axes]]:
    """A row of slides for each column, with one legend."""
    import matplotlib.pyplot as plt

    side = max(1.8, min(4.6, 14 / len(slides)))
    shape = (len(maps.columns), len(slides))
    figure, axes = plt.subplots(
        *shape, figsize=(side * shape[1] + 1.6, (side + 0.3) * shape[0]), squeeze=False, layout="constrained"
    )
    for row, column in zip(axes, maps.columns, strict=True):
        for ax, (name, here) in zip(row, slides.items(), strict=True):
            dots = maps.draw(ax, column, here, size or _dot(maps.xy[here], side))
            ax.set_title(f"{maps.title(column)}, {name}", fontsize=9)
            if maps.microns is not None and ax.get_subplotspec().is_first_row():
                scale_bar(ax, maps.microns)
        if dots is not None:
            figure.colorbar(dots, ax=row[-1], shrink=0.6, pad=0.02)
        else:
            _legend(row[-1], maps.colours[column])
    return figure, list(axes.flat)


def _dot(xy: NDArray[np.float64], side: float) -> float:
    """Area of a dot in points², for dots to touch in a panel of ``side`` inches."""
    width, height = np.maximum(np.ptp(xy, axis=0), 1e-9)
    return (1.1 * 72 * side * min(1.0, width / height) * np.sqrt(height / width / len(xy))) ** 2


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


def _close_up(axes: Sequence[Axes], window: tuple[float, float, float], maps: _Maps, inches: float) -> list[Axes]:
    """The cells of a window, in the colours of the whole."""
    x, y, side = window
    here = _inside(maps.xy, window)
    size = (0.8 * 72 * inches / np.sqrt(here.sum())) ** 2
    for ax, column in zip(axes, maps.columns, strict=True):
        maps.draw(ax, column, here, size)
        ax.set(xlim=(x, x + side), ylim=(y + side, y))
        ax.spines[:].set_visible(True)
    if maps.microns is not None:
        scale_bar(axes[0], maps.microns)
    return list(axes)


def _map(ax: Axes, xy: NDArray[np.float64], labels: pd.Series, colours: Mapping[str, str], size: float) -> None:
    palette = np.array(list(colours.values()))
    codes = labels.cat.codes.to_numpy()
    known = codes >= 0
    ax.scatter(xy[~known, 0], xy[~known, 1], s=size, c=MISSING, linewidths=0, rasterized=True)
    ax.scatter(xy[known, 0], xy[known, 1], s=size, c=palette[codes[known]], linewidths=0, rasterized=True)
    if len(colours) > len(PALETTE):
        _name_on_map(ax, xy, codes, list(colours))
    _frame(ax)


def _name_on_map(ax: Axes, xy: NDArray[np.float64], codes: NDArray, names: Sequence[str]) -> None:
    """Name of each label where its cells are densest, for colours alone do not distinguish so many."""
    from scipy.spatial import KDTree

    for code in np.unique(codes[codes >= 0]):
        own = xy[codes == code]
        furthest = KDTree(own).query(own, k=[min(MOST_NEAR, len(own))])[0][:, 0]
        text = ax.annotate(names[code], own[np.argmin(furthest)], ha="center", va="center", fontsize=7)
        text.set_bbox(NUMBER_BOX)


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
