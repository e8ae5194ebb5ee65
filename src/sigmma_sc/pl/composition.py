"""Composition of niches (paper, Fig. 4b)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_list
from sigmma_sc.errors import SetupError
from sigmma_sc.pl._finish import finish
from sigmma_sc.tissue.setup import MISSING_NAMES
from sigmma_sc.tissue.table import require_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes


def composition(
    adata: AnnData,
    groupby: str,
    scales: Sequence[str] = _keys.SCALES,
    key: str = "sigmma_niche",
    *,
    show: bool | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Share of each cell type in each niche, one heatmap a scale; rows add up to one.

    Niches are drawn from the largest to the smallest. Types are in the same order at every scale: after the niche of the
    first scale that holds the largest share of them. Cells without a niche or a type are left out, also those whose type is
    a missing value as text, such as ``"<NA>"`` or ``"nan"``.

    Parameters
    ----------
    adata
        Table with the labels of :func:`sigmma_sc.tl.niches`.
    groupby
        Column of ``obs`` with cell types or other labels.
    scales
        Names of the scales to show.
    key
        Prefix of the columns of niches, ``key_added`` of :func:`sigmma_sc.tl.niches`.
    show
        Whether to show the figure; by default if it is not saved.
    save
        File to write the figure to.

    Returns
    -------
    Axes of each scale.

    Raises
    ------
    MissingKeyError
        The table has no such column, or no niches of a scale.
    SetupError
        No cell has both a niche of a scale and a type.

    See Also
    --------
    sigmma_sc.tl.niches : Compute the niches.
    sigmma_sc.pl.niches : Map of the niches.

    Examples
    --------
    >>> axes = sg.pl.composition(adata, groupby="cell_type", show=False)
    >>> [ax.get_title() for ax in axes]
    ['micro', 'meso', 'macro']
    """
    import matplotlib.pyplot as plt

    require_table(adata)
    require_list(scales, "scales")
    require_key(groupby, adata.obs, "column", "Name a column of cell types.")
    for scale in scales:
        require_key(f"{key}_{scale}", adata.obs, "column", "Call sg.tl.niches(adata) first.")
    types = adata.obs[groupby].astype(object)
    types = types.mask(types.astype(str).str.lower().isin(MISSING_NAMES))
    counts = [_counts(adata.obs[f"{key}_{scale}"], types) for scale in scales]
    order = _by_niche(counts[0])
    counts = [table.reindex(columns=order, fill_value=0) for table in counts]
    shares = [table.div(table.sum(axis=1), axis=0) for table in counts]
    top = max(share.to_numpy().max() for share in shares)
    n_types = max(share.shape[1] for share in shares)
    # Panels of many types are wide, and are stacked.
    stacked = n_types > 12
    shape = (len(scales), 1) if stacked else (1, len(scales))
    heights = [0.3 * len(share) + 1.0 for share in shares]
    size = ((1.6 + 0.34 * n_types) * shape[1] + 0.8, 0.8 + (sum(heights) if stacked else max(heights)))
    ratios = {"height_ratios": heights} if stacked else {}
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained", gridspec_kw=ratios)
    for ax, scale, share, table in zip(axes.flat, scales, shares, counts, strict=True):
        image = ax.imshow(share, vmin=0, vmax=top, cmap="cividis", aspect="auto")
        ax.set_xticks(range(table.shape[1]), table.columns, rotation=60, ha="right", rotation_mode="anchor")
        names = [f"{name} ({n:,})" for name, n in table.sum(axis=1).items()]
        ax.set_yticks(range(len(table)), names)
        ax.set_title(scale, fontsize=11)
        ax.tick_params(length=0, labelsize=8)
        ax.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("niche (cells)")
    figure.colorbar(image, ax=axes.ravel().tolist(), label="share of the niche's cells", shrink=0.6)
    finish(figure, show, save)
    return list(axes.flat)


def _counts(niches: pd.Series, types: pd.Series) -> pd.DataFrame:
    """Cells of each niche and type, the largest niche first."""
    table = pd.crosstab(niches, types)
    if table.empty:
        raise SetupError(f"No cell has both a niche in obs[{niches.name!r}] and a type in obs[{types.name!r}].")
    sizes = table.sum(axis=1).to_numpy()
    return table.iloc[np.argsort(-sizes, kind="stable")]


def _by_niche(counts: pd.DataFrame) -> pd.Index:
    """Types after the place of the niche in which their share is largest, there by this share."""
    share = counts.div(counts.sum(axis=1), axis=0).to_numpy()
    return counts.columns[np.lexsort((-share.max(axis=0), share.argmax(axis=0)))]
