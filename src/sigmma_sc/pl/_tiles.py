"""Maps of tiles as squares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.pl._cells import MISSING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

MAP_WIDTH = 4.2
"""Width of a map of tiles in inches."""

OUTLINE = "black"

SAME = 1e-5
"""Relative range below which the values of a map are one value: a scale of their rounding would show differences that are none."""


def draw_tiles(
    ax: Axes, corners: NDArray, side: float, values: NDArray, title: str, outlined: NDArray[np.bool_] | None = None
) -> None:
    """Squares at their upper left ``corners`` ``(n, 2)`` in colour, grey where a value is NaN; some with an outline."""
    import matplotlib as mpl
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    squares = [Rectangle((x, y), side, side) for x, y in corners]
    colours = mpl.colormaps["viridis"].with_extremes(bad=MISSING)
    tiles = PatchCollection(squares, cmap=colours, linewidths=0, rasterized=True)
    known = np.ma.masked_invalid(values)
    tiles.set_array(known)
    low, high = known.min(), known.max()
    if high - low < SAME * abs(high):
        tiles.set_clim(min(0.0, high), max(0.0, high))
    ax.add_collection(tiles)
    if outlined is not None and outlined.any():
        chosen = [square for square, here in zip(squares, outlined, strict=True) if here]
        ax.add_collection(PatchCollection(chosen, facecolor="none", edgecolor=OUTLINE, linewidths=1.2))
    ax.autoscale_view()
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=10, wrap=True)
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(tiles, ax=ax, shrink=0.7)
