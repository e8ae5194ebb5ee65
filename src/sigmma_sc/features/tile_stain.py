"""How strongly tiles are stained: a few numbers that follow the laboratory and the scanner more than the tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sigmma_sc.encoders.stain import WHITE, optical_density, unmixing_matrix
from sigmma_sc.tissue.pixels import read_crops

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles

SIDE = 32
"""Side in px at which a tile is read: colours need no detail, and a coarse level of the pyramid is quick to read."""

FEWEST_PIXELS = 1.0
"""Pixels of tissue that a tile counts as having at least, so that glass has a stain of about 0."""


def tile_stain(slide: Slide, tiles: Tiles) -> NDArray[np.float32]:
    """Mean and standard deviation of haematoxylin, eosin and residual over the tissue of each tile, ``(n_tiles, 6)``."""
    out = np.empty((len(tiles), 6), np.float32)
    crops = np.column_stack([tiles.origins, np.full(len(tiles), tiles.side)])
    for index, pixels in read_crops(slide, crops, SIDE):
        out[index] = stain_of(torch.from_numpy(pixels)).numpy()
    return out


def stain_of(pixels: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of the three stains over the tissue of crops ``(n, s, s, 3)`` uint8, ``(n, 6)``."""
    density = optical_density(pixels.reshape(len(pixels), -1, 3).float() / 255)
    amounts = density @ unmixing_matrix().T
    tissue = (density.mean(2, keepdim=True) > WHITE).float()
    n = tissue.sum(1).clamp_min(FEWEST_PIXELS)
    mean = (tissue * amounts).sum(1) / n
    spread = ((tissue * (amounts - mean[:, None]).square()).sum(1) / n).sqrt()
    return torch.cat([mean, spread], dim=1)
