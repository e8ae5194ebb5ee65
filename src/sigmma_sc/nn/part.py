"""What the towers take: tiles of one slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

    from sigmma_sc.nn.pairs import CellLayout


class Part(TypedDict, total=False):
    """Tiles of one slide in a batch, images and transcriptomes in the same order."""

    n_tiles: int  # number of tiles
    patches: Tensor  # patch features, (n_tiles, n_patches, d)
    pixels: Tensor  # pixels (n_tiles, 3, p, p) uint8 instead, where the image encoder is trained
    # Node features (n_cells, d) and places of the cells.
    x: Tensor
    layout: CellLayout
    profiles: Tensor  # one profile a tile (n_tiles, d) instead, where there is no cell graph
