"""Maps of predicted expression, of the width of its intervals, and of how alike tiles are to the training tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_list
from sigmma_sc.errors import SetupError
from sigmma_sc.pl._cells import MISSING
from sigmma_sc.pl._finish import finish
from sigmma_sc.tissue.table import require_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

SIDE = 4.2
"""Width of a map in inches."""

SAME = 1e-5
"""Relative range below which the values of a map are one value: a scale of their rounding would show differences that are none."""


def prediction(
    expression: AnnData, genes: Sequence[str], show: bool | None = None, save: str | Path | None = None
) -> list[Axes]:
    """Map predicted expression of genes, the width of its intervals, and how alike tiles are to the training tissue.

    Withheld tiles are grey. The title of a gene tells its reliability, and that of the last map the sentence on withheld
    tiles.

    Parameters
    ----------
    expression
        Result of :meth:`sigmma_sc.SIGMMA.predict_expression`; tiles of a single slide.
    genes
        Genes to show.
    show
        Whether to show the figure; by default if it is not saved.
    save
        File to write the figure to.

    Returns
    -------
    The axes of the genes and of ``obs["sigmma_alike"]``, which tiles of new slides have. Then those of the widths of
    intervals, if they were asked for.

    Raises
    ------
    MissingKeyError
        A gene was not predicted, or the table is no prediction of tiles.
    SetupError
        The tiles are of several slides.

    See Also
    --------
    sigmma_sc.SIGMMA.predict_expression : What is shown.

    Examples
    --------
    >>> predicted = model.predict_expression(interval=0.5)
    >>> axes = sg.pl.prediction(predicted, ["EPCAM"], save="prediction.png")
    >>> [ax.get_title().split(",")[0] for ax in axes]
    ['EPCAM', 'EPCAM']
    """
    import matplotlib.pyplot as plt

    require_table(expression, "expression")
    require_list(genes, "genes")
    for gene in genes:
        require_key(gene, expression.var_names, "gene")
    for name in ("x", "y", "slide"):
        require_key(name, expression.obs, "column", "Pass the result of model.predict_expression().")
    require_key("spatial", expression.obsm, "basis", "Pass the result of model.predict_expression().")
    slides = expression.obs["slide"].unique()
    if len(slides) != 1:
        raise SetupError(
            f"expression has tiles of {len(slides)} slides. Show one: expression[expression.obs['slide'] == {str(slides[0])!r}]."
            if len(slides)
            else "expression has no tiles."
        )
    alike = _keys.ALIKE in expression.obs
    wide = "upper" in expression.layers
    n_columns = len(genes) + alike
    height, width = np.ptp(expression.obs[["y", "x"]].to_numpy(), axis=0) + _side(expression)
    size = (SIDE * n_columns, (SIDE * 0.8 * height / width + 0.5) * (1 + wide))
    figure, axes = plt.subplots(1 + wide, n_columns, figsize=size, layout="constrained", squeeze=False)
    for column, gene in enumerate(genes):
        one = expression[:, gene]
        told = f", reliability {one.var['reliability'].iloc[0]:.2f}" if "reliability" in one.var else ""
        _map(axes[0, column], expression, np.asarray(one.X).ravel(), f"{gene}{told}")
        if wide:
            share = expression.uns.get(_keys.UNS, {}).get("interval")
            span = np.asarray(one.layers["upper"] - one.layers["lower"]).ravel()
            _map(axes[1, column], expression, span, f"{gene}, width of the {share:.0%} interval")
    if alike:
        told = expression.uns.get(_keys.UNS, {}).get("unlike")
        _map(
            axes[0, -1], expression, expression.obs[_keys.ALIKE].to_numpy(), _keys.ALIKE + (f", {told}" if told else "")
        )
        for ax in axes[1:, -1]:
            ax.remove()
    finish(figure, show, save)
    return [*axes[0], *axes[1:, : len(genes)].ravel()]


def _side(expression: AnnData) -> float:
    """Side of a tile in px, from its centre and corner."""
    return float(2 * (np.asarray(expression.obsm["spatial"])[0, 0] - expression.obs["x"].iloc[0]))


def _map(ax: Axes, expression: AnnData, values: NDArray, title: str) -> None:
    """Squares of tiles in colour, grey where a value is NaN."""
    import matplotlib as mpl
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    side = _side(expression)
    squares = [Rectangle((x, y), side, side) for x, y in expression.obs[["x", "y"]].to_numpy()]
    colours = mpl.colormaps["viridis"].with_extremes(bad=MISSING)
    tiles = PatchCollection(squares, cmap=colours, linewidths=0, rasterized=True)
    known = np.ma.masked_invalid(values)
    tiles.set_array(known)
    low, high = known.min(), known.max()
    if high - low < SAME * abs(high):
        tiles.set_clim(min(0.0, high), max(0.0, high))
    ax.add_collection(tiles)
    ax.autoscale_view()
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=10, wrap=True)
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(tiles, ax=ax, shrink=0.7)
