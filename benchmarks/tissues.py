"""Simulated sections whose niches differ from those the method was developed on, for `benchmarks/niches.py`.

Expression depends on the type of a cell alone. What makes a niche is given by :data:`KINDS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from PIL import Image, ImageDraw, ImageFilter
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Scale

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SPACING = 13.9  # µm between cells: 85 in a tile of 128 µm
MICRONS_PER_PIXEL = 0.5
N_TYPES = 8
GENES_PER_TYPE = 10
N_HOUSEKEEPING = 40
DEPTH = 75.0  # expected counts of a cell
DISPERSION = 2.5  # of the negative binomial: variance = mean + mean² / DISPERSION


@dataclass
class Kind:
    """How the niches of a section are made.

    Attributes
    ----------
    place
        From centroids ``(n, 2)`` in µm, the side of the section in µm and a random generator to the niche of each cell
        ``(n,)`` and the probabilities of the types ``(n, N_TYPES)``.
    n_niches
        Number of niches.
    looks
        Whether nuclei of different types look different.
    """

    place: Callable[[NDArray, float, np.random.Generator], tuple[NDArray, NDArray]]
    n_niches: int
    looks: bool = True


def dominated(n_niches: int, share: float) -> NDArray:
    """Mixtures ``(n_niches, N_TYPES)`` in which a type of its own has ``share`` of each niche, and all others the rest."""
    out = np.full((n_niches, N_TYPES), (1 - share) / (N_TYPES - 1))
    out[np.arange(n_niches), np.arange(n_niches) % N_TYPES] = share
    return out


def regions(xy: NDArray, side: float, width: float, n_niches: int, rng: np.random.Generator) -> NDArray:
    """Niche of each cell where Voronoi cells some ``width`` µm wide belong to one niche each."""
    n = max(2 * n_niches, round((side / width) ** 2))
    centres = rng.uniform(0, side, (n, 2))
    _, nearest = cKDTree(centres).query(xy)
    return rng.permutation(np.arange(n) % n_niches)[nearest]


def gradient(xy: NDArray, side: float, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """One mixture turns into another across the section, without a border; a niche is a fifth of the way."""
    along = (xy[:, 0] + 60 * np.sin(xy[:, 1] / 150 + rng.uniform(0, 6))) / side
    along = (along - along.min()) / (along.max() - along.min() + 1e-9)
    ends = np.array([[0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0], [0, 0, 0, 0, 0.1, 0.2, 0.3, 0.4]])
    return np.floor(5 * along).astype(int), (1 - along[:, None]) * ends[0] + along[:, None] * ends[1]


def layers(xy: NDArray, side: float, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Wavy layers of 30 µm, six kinds of them in turn."""
    depth = xy[:, 1] + 40 * np.sin(xy[:, 0] / 120 + rng.uniform(0, 6))
    niche = np.floor(depth / 30).astype(int) % 6
    return niche, dominated(6, 0.7)[niche]


def rare(xy: NDArray, side: float, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Four niches in regions of 250 µm, and discs of 40 µm radius with a hundredth of the cells."""
    niche = regions(xy, side, 250, 4, rng)
    n_discs = max(1, round(0.01 * side**2 / (np.pi * 40**2)))
    distance, _ = cKDTree(rng.uniform(60, side - 60, (n_discs, 2))).query(xy)
    niche[distance < 40] = 4
    return niche, dominated(5, 0.6)[niche]


def proportions(xy: NDArray, side: float, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Five niches in regions of 200 µm with the same types, in other proportions."""
    niche = regions(xy, side, 200, 5, rng)
    mixtures = np.full((5, N_TYPES), 1.0)
    for k, mixture in enumerate(mixtures):
        mixture[[k, (k + 3) % N_TYPES]] = 3.0
    return niche, (mixtures / mixtures.sum(1, keepdims=True))[niche]


KINDS = {
    "gradient": Kind(gradient, 5),
    "layers": Kind(layers, 6),
    "rare": Kind(rare, 5),
    "proportions": Kind(proportions, 5),
    "image uninformative": Kind(rare, 5, looks=False),
}


def draw_tissue(kind: str, n_cells: int = 6000, seed: int = 0) -> SpatialData:
    """A section of one of :data:`KINDS`, with the truth in ``obs["niche"]`` and ``obs["cell_type"]``."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    per_side = round(np.sqrt(n_cells))
    side = per_side * SPACING
    column, row = np.divmod(np.arange(per_side**2), per_side)
    xy = SPACING * (np.column_stack([column, row]) + 0.5 + rng.uniform(-0.35, 0.35, (per_side**2, 2)))
    niche, mixture = KINDS[kind].place(xy, side, rng)
    cell_type = (rng.random(len(xy))[:, None] > mixture.cumsum(1)[:, :-1]).sum(1)
    look = cell_type if KINDS[kind].looks else np.zeros(len(xy), int)
    return _section(xy, niche, cell_type, _counts(cell_type, rng), _image(xy, look, side, rng))


def _counts(cell_type: NDArray, rng: np.random.Generator) -> NDArray:
    """Negative-binomial counts ``(n, genes)``: markers of each type, and housekeeping genes."""
    n_markers = N_TYPES * GENES_PER_TYPE
    strength = rng.gamma(4.0, 1 / 4, n_markers + N_HOUSEKEEPING)
    mean = np.full((N_TYPES, n_markers + N_HOUSEKEEPING), 0.1) * strength
    mean[:, n_markers:] = strength[n_markers:]
    for k in range(N_TYPES):
        own = slice(k * GENES_PER_TYPE, (k + 1) * GENES_PER_TYPE)
        mean[k, own] = 2.0 * strength[own]
    mean *= DEPTH / mean.sum(1, keepdims=True)
    rate = mean[cell_type] * np.exp(rng.normal(0, 0.3, (len(cell_type), 1)))
    return rng.poisson(rng.gamma(DISPERSION, rate / DISPERSION)).astype(np.float32)


def _image(xy: NDArray, look: NDArray, side: float, rng: np.random.Generator) -> NDArray:
    """H&E ``(3, p, p)``: nuclei whose size, shape and stain depend on ``look``, over eosin."""
    size = round(side / MICRONS_PER_PIXEL)
    image = Image.new("RGB", (size, size), (226, 168, 196))
    pen = ImageDraw.Draw(image)
    radius = (3.0 + 0.35 * look) * np.exp(rng.normal(0, 0.12, len(xy)))
    aspect = 1 + 0.12 * (look % 4)
    shade = 0.75 + 0.07 * ((look * 3) % N_TYPES) + rng.normal(0, 0.05, len(xy))
    for (x, y), r, a, s in zip(xy / MICRONS_PER_PIXEL, radius / MICRONS_PER_PIXEL, aspect, shade, strict=True):
        colour = tuple(int(channel * s) for channel in (112, 82, 150))
        pen.ellipse([x - r * a, y - r / a, x + r * a, y + r / a], fill=colour)
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), float)
    return np.clip(blurred + rng.normal(0, 6, blurred.shape), 0, 255).astype(np.uint8).transpose(2, 0, 1)


def _section(xy: NDArray, niche: NDArray, cell_type: NDArray, counts: NDArray, image: NDArray) -> SpatialData:
    names = pd.Index([f"cell{k}" for k in range(len(xy))], dtype=object)
    obs = pd.DataFrame(
        {
            "cell_id": pd.Series(names, index=names, dtype=object),
            "region": pd.Categorical(["cells"] * len(xy)),
            "niche": pd.Categorical(niche.astype(str)),
            "cell_type": pd.Categorical(cell_type.astype(str)),
        },
        index=names,
    )
    var = pd.DataFrame(index=pd.Index([f"gene{k}" for k in range(counts.shape[1])], dtype=object))
    table = AnnData(csr_matrix(counts), obs=obs, var=var, obsm={"spatial": xy})
    pixels = Scale([MICRONS_PER_PIXEL] * 2, ("x", "y"))
    return SpatialData(
        images={
            "he_image": Image2DModel.parse(
                image, ("c", "y", "x"), c_coords=["r", "g", "b"], transformations={"global": pixels}
            )
        },
        shapes={"cells": ShapesModel.parse(xy, geometry=0, radius=4.0, index=names)},
        tables={"table": TableModel.parse(table, "cells", "region", "cell_id")},
    )
