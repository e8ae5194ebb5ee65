"""Maps of what a search found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc._checks import require_key, require_list
from sigmma_sc.errors import SetupError
from sigmma_sc.pl._finish import finish
from sigmma_sc.pl._scale import scale_bar
from sigmma_sc.pl._tiles import MAP_WIDTH, draw_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

NEEDED = {"slide", "x", "y", "similarity", "p_value", "alike"}
"""Columns that are drawn."""

MOST_SLIDES = 4
"""Slides shown if none are named."""


def search(
    found: pd.DataFrame,
    slides: Sequence[str] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Map the similarity of tiles to a query, a map for each slide; tiles that are alike have a black outline.

    Tiles that were not tested are grey. The title of a map tells how many tiles are alike.

    Parameters
    ----------
    found
        Result of :func:`sigmma_sc.tl.search`.
    slides
        Slides to show; ``None`` for the four with the most tiles that are alike.
    show
        Whether to show the figure; by default if it is not saved.
    save
        File to write the figure to.

    Returns
    -------
    The axes of the maps, in the order of the slides.

    Raises
    ------
    SetupError
        The frame is no result of a search, or is empty.
    MissingKeyError
        There is no such slide.

    See Also
    --------
    sigmma_sc.tl.search : What is shown.

    Examples
    --------
    >>> index = model.build_index("index", overwrite=True)
    >>> axes = sg.pl.search(sg.tl.search({"genes": ["EPCAM"]}, index, fdr=0.5), save="search.png")
    >>> axes[0].get_title().split(":")[0]
    'cell_circles'
    """
    import matplotlib.pyplot as plt

    if (
        not isinstance(found, pd.DataFrame)
        or "tile_size" not in found.attrs
        or not len(found)
        or not set(found) >= NEEDED
    ):
        raise SetupError(
            f"found={type(found).__name__} is no result of sg.tl.search with tiles. Pass what that function returned."
        )
    names = found["slide"].astype(str)
    counts = found.groupby(names)["alike"].sum().sort_values(ascending=False, kind="stable")
    if slides is not None:
        require_list(slides, "slides")
    for name in slides or ():
        require_key(name, counts.index, "slide")
    chosen = list(counts.index[:MOST_SLIDES]) if slides is None else list(slides)
    side = found.attrs["tile_size"]
    figure, axes = plt.subplots(
        1, len(chosen), figsize=(MAP_WIDTH * len(chosen), MAP_WIDTH), layout="constrained", squeeze=False
    )
    for ax, name in zip(axes[0], chosen, strict=True):
        tiles = found[(names == name).to_numpy()]
        corners = tiles[["x", "y"]].to_numpy() - side / 2
        values = np.where(tiles["p_value"].notna(), tiles["similarity"], np.nan)
        told = f"{counts[name]} of {len(tiles)} tiles alike" if counts[name] else "nothing alike"
        if name in found.attrs.get("undecided", ()):
            told = "too little to tell"
        draw_tiles(ax, corners, side, values, f"{name}: {told}", tiles["alike"].to_numpy())
        scale_bar(ax)
    finish(figure, show, save)
    return list(axes[0])
