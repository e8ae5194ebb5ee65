"""What a report says of each niche."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc.pl._cells import colours_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide

N_TYPES = 6
"""Cell types shown of each niche."""

N_TILES = 3
"""Example tiles shown of each niche."""

MOST_PICTURED = 40
"""Niches of a scale that are shown with example tiles, the largest first."""


@dataclass(frozen=True)
class Niche:
    """One niche of a scale."""

    name: str
    colour: str  # hexadecimal
    n_cells: int
    share: float  # of the cells that have a niche of this scale
    confidence: float  # mean over its cells; NaN where the table holds none
    types: list[tuple[str, float]]  # cell types and their shares in its cells, the commonest first
    tiles: list[tuple[int, int]]  # number of the slide and of its covering tile, the one with most of the niche first


def niches_of(adata: AnnData, column: str, groupby: str | None, slides: Sequence[Slide], min_cells: int) -> list[Niche]:
    """The niches that a column of ``obs`` names, in the order of its categories; unused categories are kept."""
    labels = adata.obs[column].astype("category")
    codes = labels.cat.codes.to_numpy(np.int64)
    names = [str(name) for name in labels.cat.categories]
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    means = _means(adata, column, codes, len(names))
    types = _types(adata, groupby, codes, len(names))
    pictured = np.argsort(-sizes, kind="stable")[:MOST_PICTURED]
    tiles = example_tiles(slides, codes, len(names), min_cells)
    colours = colours_of(labels, adata.uns)
    return [
        Niche(
            name,
            colours[name],
            int(sizes[k]),
            float(sizes[k] / max(1, sizes.sum())),
            float(means[k]),
            types[k],
            tiles[k] if k in pictured else [],
        )
        for k, name in enumerate(names)
    ]


def _means(adata: AnnData, column: str, codes: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Mean confidence of each niche."""
    confidence = f"{column}_confidence"
    if confidence not in adata.obs:
        return np.full(n, np.nan)
    return pd.Series(adata.obs[confidence].to_numpy(np.float64)).groupby(codes).mean().reindex(range(n)).to_numpy()


def _types(adata: AnnData, groupby: str | None, codes: NDArray[np.int64], n: int) -> list[list[tuple[str, float]]]:
    """Commonest labels of each niche with their shares, those of cells without a label left out."""
    if groupby is None:
        return [[] for _ in range(n)]
    labels = adata.obs[groupby].astype("category")
    table = pd.crosstab(codes, labels.to_numpy()).reindex(range(n), fill_value=0)
    shares = table.div(table.sum(axis=1).clip(lower=1), axis=0)
    out = []
    for _, row in shares.iterrows():
        common = row[row > 0].sort_values(ascending=False, kind="stable").head(N_TYPES)
        out.append([(str(name), float(share)) for name, share in common.items()])
    return out


def example_tiles(
    slides: Sequence[Slide], codes: NDArray[np.int64], n: int, min_cells: int
) -> list[list[tuple[int, int]]]:
    """Covering tiles ``(slide, tile)`` of each niche: those of ``min_cells`` cells in which its share is largest."""
    where: list[tuple[int, int]] = []
    counts = []
    for number, slide in enumerate(slides):
        of_cell = codes[slide.rows]
        known = (slide.tile_of_cell >= 0) & (of_cell >= 0)
        n_tiles = len(slide.tiles)
        flat = np.bincount(slide.tile_of_cell[known] * n + of_cell[known], minlength=n_tiles * n)
        counts.append(flat.reshape(n_tiles, n))
        where += [(number, tile) for tile in range(n_tiles)]
    table = np.concatenate(counts)
    totals = table.sum(axis=1)
    out = []
    for k in range(n):
        share = np.where(totals >= min_cells, table[:, k] / np.maximum(totals, 1), 0)
        best = np.lexsort((-table[:, k], -share))[:N_TILES]
        out.append([where[tile] for tile in best if share[tile] > 0])
    return out


def nesting(adata: AnnData, finer: str, coarser: str) -> pd.DataFrame:
    """Share of the cells of each finer niche (rows) that are of each coarser one (columns); rows add up to one."""
    return pd.crosstab(adata.obs[finer].astype("category"), adata.obs[coarser].astype("category"), normalize="index")
