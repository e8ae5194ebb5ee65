"""Slides as the page's map draws them: image, cells and tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sigmma_sc.reporting.genes import TopGenes
from sigmma_sc.reporting.pack import codes, packed, percents, positions
from sigmma_sc.reporting.pictures import slide_picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide

ROLES = ("train", "val", "test", "guard", "unused", "unseen")
"""Roles of tiles by the number that the page has for them."""


class CellValues(NamedTuple):
    """What the page knows of each cell of a table."""

    niche: dict[str, NDArray[np.int64]]  # number of the niche by scale, -1 for none, (n_obs,)
    n_niches: dict[str, int]
    confidence: dict[str, NDArray[np.float64]]  # by scale, NaN for none, (n_obs,)
    genes: TopGenes | None  # None for a table without counts
    n_genes: int


def cell_values(adata: AnnData, scales: Sequence[str], key: str, genes: TopGenes | None) -> CellValues:
    """Niches, confidence and genes of the cells of a table."""
    niche, n_niches, confidence = {}, {}, {}
    for scale in scales:
        labels = adata.obs[f"{key}_{scale}"].astype("category")
        niche[scale] = labels.cat.codes.to_numpy(np.int64)
        n_niches[scale] = len(labels.cat.categories)
        if f"{key}_{scale}_confidence" in adata.obs:
            confidence[scale] = adata.obs[f"{key}_{scale}_confidence"].to_numpy(np.float64)
    return CellValues(niche, n_niches, confidence, genes, adata.n_vars)


def slide_map(slide: Slide, tiles: pd.DataFrame, values: CellValues, n_slides: int) -> dict[str, Any]:
    """One slide in JSON types; cells off the image are left out. ``tiles`` are its rows of the table of tiles."""
    return {
        "name": slide.name,
        "width": slide.width,
        "height": slide.height,
        "microns": slide.microns_per_pixel,
        "image": slide_picture(slide, n_slides),
        "cells": packed_cells(slide, values),
        "tiles": {
            "side": slide.side,
            "at": packed(positions(tiles[["x", "y"]].to_numpy(np.float64), slide.width, slide.height)),
            "role": packed(np.array([ROLES.index(role) for role in tiles["split"].astype(str)], np.uint8)),
        },
    }


def packed_cells(slide: Slide, values: CellValues) -> dict[str, Any]:
    """The cells of a slide that are under its image, about 25 bytes each at three scales."""
    under = slide.under_image
    rows = slide.rows[under]
    found: dict[str, Any] = {
        "n": len(rows),
        "radius": _radius(slide.xy[under]),
        "at": packed(positions(slide.xy[under], slide.width, slide.height)),
        "row": packed(rows.astype(np.uint32)),
        "niche": _by_scale(values.niche, rows, values.n_niches),
        "confidence": {scale: packed(percents(of_all[rows])) for scale, of_all in values.confidence.items()},
    }
    if values.genes is not None:
        found["gene"] = packed(codes(values.genes.gene[rows], values.n_genes))
        found["counts"] = packed(values.genes.counts[rows])
    return found


def _by_scale(
    niche: Mapping[str, NDArray[np.int64]], rows: NDArray[np.int64], n: Mapping[str, int]
) -> dict[str, dict[str, str]]:
    return {scale: packed(codes(of_all[rows], n[scale])) for scale, of_all in niche.items()}


def _radius(xy: NDArray[np.float64]) -> float:
    """Half the distance of neighbours in px, the median: the size at which cells are drawn."""
    from scipy.spatial import cKDTree

    if len(xy) < 2:
        return 1.0
    return float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1])) / 2
