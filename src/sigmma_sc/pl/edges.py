"""The cell graph of one tile at every scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc._checks import is_number, require_key, require_model, require_name
from sigmma_sc.errors import SetupError
from sigmma_sc.pl._cells import each_colour
from sigmma_sc.pl._finish import finish
from sigmma_sc.pl._scale import scale_bar
from sigmma_sc.tissue.setup import obs_of_slide

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from sigmma_sc.model import SIGMMA
    from sigmma_sc.tissue.setup import Tissue

SPATIAL = "#AAAAAA"
CELL = "#333333"
CLEAR = 400
"""Number of lines of a panel from which on they become transparent."""

LEAST_ALPHA = 0.06


def edges(
    model: SIGMMA,
    tile: str,
    groupby: str | None = None,
    threshold: float = 0.5,
    sdata: Tissue | None = None,
    *,
    show: bool | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw the cell graph of a tile, one panel a scale.

    Spatial edges are grey. Pairs that the model links at a scale are coloured by their probability, which is 1 for
    ``edges="full"``. Pairs below ``threshold`` are left out. The more pairs a panel has, the more transparent they are. Each title shows the number of pairs drawn and of all pairs.

    Parameters
    ----------
    model
        Trained :class:`sigmma_sc.SIGMMA` with a cell graph.
    tile
        Name of a tile, as in ``obs_names`` of :meth:`sigmma_sc.SIGMMA.get_tile_representation`.
    groupby
        Column of ``obs`` that colours the cells; ``None`` for one colour.
    threshold
        Least probability of a pair that is drawn, from 0 to 1, as the mean of both directions.
    sdata
        Another object with the same setup; ``None`` for the training object.
    show
        Whether to show the figure; by default if it is not saved.
    save
        File to write the figure to.

    Returns
    -------
    Axes of each scale.

    Raises
    ------
    SetupError
        The model has no cell graph, the tile has fewer than two cells, or ``threshold`` is not in [0, 1].
    MissingKeyError
        There is no such tile or column.

    See Also
    --------
    sigmma_sc.SIGMMA.get_tile_representation : Names of the tiles.

    Examples
    --------
    >>> axes = sg.pl.edges(model, tile="cell_circles_60", groupby="cell_type", show=False)
    >>> [ax.get_title().split(":")[0] for ax in axes]
    ['micro', 'meso', 'macro']
    """
    import matplotlib.pyplot as plt
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    from sigmma_sc.infer.tiles import tile_by_name

    require_model(model)
    embedder = model.embedder
    if not is_number(threshold) or not 0 <= threshold <= 1:
        raise SetupError(f"threshold={threshold!r} must be in [0, 1].")
    slides = model.resolve(sdata)
    if groupby is not None:
        for slide in slides:
            require_key(groupby, slide.table.obs, "groupby")
    require_name(tile, "tile")
    slide, one = tile_by_name(slides, tile)
    if one.n_cells[0] < 2:
        raise SetupError(f"Tile {tile!r} holds {one.n_cells[0]} cells. Choose one with two or more.")
    xy = (slide.xy[one.cells] - one.origins[0]) * slide.microns_per_pixel
    side = one.side * slide.microns_per_pixel
    colours = CELL if groupby is None else each_colour(obs_of_slide(slide, groupby).iloc[one.cells], slide.table.uns)
    graphs = embedder.edges(slide, one)
    near = _pairs(*graphs[0], len(xy)) > 0
    size = (3.6 * len(graphs) + 0.8, 4.0)
    figure, axes = plt.subplots(1, len(graphs), figsize=size, squeeze=False, layout="constrained")
    for ax, scale, graph in zip(axes[0], model.setup.scales, graphs, strict=True):
        weight = np.where(near, 0, _pairs(*graph, len(xy)))
        linked = np.argwhere(np.triu(weight >= max(threshold, 1e-12)))
        ax.add_collection(LineCollection(xy[np.argwhere(np.triu(near))], colors=SPATIAL, linewidths=1.2, zorder=2))
        strength = weight[tuple(linked.T)]
        order = np.argsort(strength, kind="stable")  # the most probable on top
        # Thousands of lines would be a solid block.
        alpha = min(1.0, max(LEAST_ALPHA, CLEAR / max(len(linked), 1)))
        lines = LineCollection(xy[linked[order]], cmap="plasma_r", linewidths=0.4, zorder=1, alpha=alpha)
        lines.set_array(strength[order])
        lines.set_clim(threshold, 1)
        ax.add_collection(lines)
        ax.scatter(xy[:, 0], xy[:, 1], s=16, c=colours, linewidths=0, zorder=3)
        ax.set_title(f"{scale}: {len(linked):,} of {(weight > 0).sum() // 2:,} pairs", fontsize=10)
        ax.set(xlim=(0, side), ylim=(side, 0), xticks=[], yticks=[], aspect="equal")
    scale_bar(axes[0, 0])
    colours_of_pairs = ScalarMappable(Normalize(threshold, 1), "plasma_r")
    figure.colorbar(colours_of_pairs, ax=axes[0, -1], label="probability of a link", shrink=0.8)
    finish(figure, show, save)
    return list(axes[0])


def _pairs(source: np.ndarray, target: np.ndarray, weight: np.ndarray, n: int) -> np.ndarray:
    """Mean weight of both directions of each pair, ``(n, n)``."""
    out = np.zeros((n, n))
    np.add.at(out, (source, target), weight / 2)
    return out + out.T
