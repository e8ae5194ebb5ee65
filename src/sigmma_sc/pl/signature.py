"""Genes of a niche: their distribution over niches, and on the tissue (paper, Fig. 4c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc._checks import require_key, require_list
from sigmma_sc.errors import SetupError
from sigmma_sc.pl._finish import finish
from sigmma_sc.pl._scale import microns_of, scale_bar
from sigmma_sc.tissue.table import require_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes


def signature(
    adata: AnnData,
    genes: Sequence[str],
    scale: str = "meso",
    key: str = "sigmma_niche",
    layer: str | None = None,
    basis: str = "spatial",
    *,
    show: bool | None = None,
    save: str | Path | None = None,
) -> list[list[Axes]]:
    """Violins of genes over niches with the mean of each niche, and the genes on the tissue.

    A violin shows the cells that express the gene, and their share is under the niche. The dot is the mean of all cells of
    the niche. Most counts of a gene are zero, which would shrink a violin of all cells to a line.

    Values are not transformed. First log-normalise counts with ``sc.pp.normalize_total`` and ``sc.pp.log1p``.

    Parameters
    ----------
    adata
        Table with the labels of :func:`sigmma_sc.tl.niches`; a single slide.
    genes
        Genes to show, e.g. ``["CXCL2", "CXCL6"]``.
    scale
        Scale of the niches.
    key
        Prefix of the columns of niches, ``key_added`` of :func:`sigmma_sc.tl.niches`.
    layer
        Layer of the values; ``None`` for ``X``.
    basis
        ``obsm`` key of the positions, y pointing down.
    show
        Whether to show the figure; by default if it is not saved.
    save
        File to write the figure to.

    Returns
    -------
    Axes of the violins and of the map, for each gene.

    Raises
    ------
    SetupError
        A gene is not in the table, or no cell has a niche.
    MissingKeyError
        The table has no niches of this scale, or no such positions.

    See Also
    --------
    sigmma_sc.tl.rank_niche_genes : Find genes of each niche.

    Examples
    --------
    >>> import scanpy as sc
    >>> logged = adata.copy()
    >>> sc.pp.normalize_total(logged)
    >>> sc.pp.log1p(logged)
    >>> violin, spots = sg.pl.signature(logged, ["CXCL2"], show=False)[0]
    >>> violin.get_xlabel(), violin.get_ylabel()
    ('meso niche', 'CXCL2')
    """
    import matplotlib.pyplot as plt
    import scanpy as sc

    require_table(adata)
    genes = [genes] if isinstance(genes, str) else genes
    require_list(genes, "genes")
    if layer is not None:
        require_key(layer, adata.layers, "layer")
    column = f"{key}_{scale}"
    require_key(column, adata.obs, "column", "Call sg.tl.niches(adata) first.")
    require_key(basis, adata.obsm, "basis")
    if missing := [gene for gene in genes if gene not in adata.var_names]:
        raise SetupError(f"{', '.join(missing)} not among the {adata.n_vars:,} genes of the table.")
    levels = sc.get.obs_df(adata, [*genes, column], layer=layer)
    values = levels.dropna(subset=column)
    niches = values[column].astype("category").cat.remove_unused_categories()
    if niches.empty:
        raise SetupError(f"No cell has a label in obs[{column!r}].")
    microns = microns_of(adata, basis, None)
    xy = np.asarray(adata.obsm[basis])[:, :2]
    width, height = np.ptp(xy, axis=0)
    # A wide section is drawn below its violin, a tall one next to it.
    wide = width > 1.5 * height
    violin = 1.5 + 0.42 * niches.cat.categories.size
    drawn = max(violin, 9.0) if wide else 4.6
    size = (drawn, (2.4 + drawn * height / width) * len(genes)) if wide else (violin + drawn, 4.2 * len(genes))
    shape = (2 * len(genes), 1) if wide else (len(genes), 2)
    heights = [2.4, drawn * height / width] * len(genes)
    ratios = {"height_ratios": heights} if wide else {"width_ratios": [violin, drawn]}
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained", gridspec_kw=ratios)
    pairs = axes.reshape(len(genes), 2)
    points = 72 * drawn * min(1.0, width / height)
    area = (1.1 * points * np.sqrt(height / width / len(xy))) ** 2
    for (left, right), gene in zip(pairs, genes, strict=True):
        of_niches = [values[gene][niches == name].to_numpy() for name in niches.cat.categories]
        _violins(left, of_niches)
        ticks = [f"{name}\n{np.mean(one != 0):.0%}" for name, one in zip(niches.cat.categories, of_niches, strict=True)]
        left.set_xticks(range(len(ticks)), ticks)
        left.tick_params(axis="x", labelsize=8)
        left.set(xlabel=f"{scale} niche", ylabel=gene)
        level = levels[gene].to_numpy()
        order = np.argsort(level, kind="stable")  # cells with high values on top
        top = max(np.quantile(level[level > 0], 0.99), 1e-9) if (level > 0).any() else 1.0
        dots = right.scatter(
            *xy[order].T, c=level[order], s=area, cmap="viridis", vmin=0, vmax=top, linewidths=0, rasterized=True
        )
        right.set(aspect="equal", xticks=[], yticks=[])
        right.invert_yaxis()
        right.spines[:].set_visible(False)
        if microns is not None:
            scale_bar(right, microns)
        figure.colorbar(dots, ax=right, label=gene, shrink=0.7)
    finish(figure, show, save)
    return pairs.tolist()


def _violins(ax: Axes, values: list[np.ndarray]) -> None:
    for place, one in enumerate(values):
        expressed = one[one != 0]
        if len(expressed) > 1 and np.ptp(expressed) > 0:  # a constant has no density
            drawn = ax.violinplot(expressed, [place], widths=0.8, showextrema=False)
            # matplotlib's stub calls the bodies a Collection; they are a list of PolyCollection.
            drawn["bodies"][0].set(facecolor="#0072B2", alpha=0.5)  # type: ignore[index]
        ax.plot(place, one.mean(), "o", color="#222222", ms=4)
    ax.spines[["top", "right"]].set_visible(False)
