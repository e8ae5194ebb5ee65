"""Image embeddings of single cells: crops around them through the image tower, those of close cells encoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sigmma_sc.infer.embed import Embedder
    from sigmma_sc.tissue.frame import Slide

CROPS = 8192
"""Crops whose features are in memory at once, whatever the number of cells."""

FEW = 256
"""Crops that pass the image tower at once: each takes the place of all patches of a tile."""


def cell_images(embedder: Embedder, slide: Slide, scale: str, step: float | None) -> NDArray[np.float32]:
    """Image embedding of each cell of a slide at one scale, ``(n_cells, n_latent)``; NaN for cells off the image.

    A crop has the side of the scale's patches. It is centred on the cell, or with a ``step`` on the nearest point of a
    lattice with that step, in sides of a crop.
    """
    setup = embedder.data.setup
    number = setup.scales.index(scale)
    side = slide.side / setup.grids[number]
    out = np.full((len(slide.xy), embedder.data.config.n_latent), np.nan, np.float32)
    for cells, centres, crop in _groups(slide, side, step):
        crops = np.column_stack([centres - side / 2, np.full(len(centres), side)])
        features = embedder.data.crop_features(slide, crops, number, embedder.device)
        out[cells] = _embedded(embedder, slide, features, scale)[crop]
    return out


def _groups(
    slide: Slide, side: float, step: float | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]]:
    """Cells under the image, the centres of their crops ``(n_crops, 2)`` in px, and the crop of each cell; from top to bottom."""
    cells = np.flatnonzero(slide.under_image)
    xy = slide.xy[cells]
    centres = xy if step is None else np.round(xy / (step * side)) * (step * side)
    # By y first, so that a group lies in a band of the image.
    points, crop = np.unique(centres[:, ::-1], axis=0, return_inverse=True)
    order = np.argsort(crop.reshape(-1), kind="stable")
    crop = crop.reshape(-1)[order]
    for start in range(0, len(points), CROPS):
        first, last = np.searchsorted(crop, [start, start + CROPS])
        yield cells[order[first:last]], points[start : start + CROPS, ::-1], crop[first:last] - start


@torch.no_grad()
def _embedded(embedder: Embedder, slide: Slide, features: torch.Tensor, scale: str) -> NDArray[np.float32]:
    """Features of crops ``(n, d)`` through the image tower, each as every patch of a tile of its own, ``(n, n_latent)``."""
    data = embedder.data
    n_patches = sum(grid * grid for grid in data.setup.grids)
    out = []
    embedder.towers.eval()
    for some in features.split(FEW):
        patches = some.float()[:, None].expand(-1, n_patches, -1)
        patches = data.standardised(slide, patches, embedder.device).to(embedder.device)
        out.append(embedder.towers.embed_images({"patches": patches})[scale].cpu().numpy())
    return np.concatenate(out)
