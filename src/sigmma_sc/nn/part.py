"""What the towers take: tiles of one slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

    from sigmma_sc.nn.pairs import CellLayout


class Part(TypedDict, total=False):
    """Tiles of one slide in a batch, images and transcriptomes in the same order.

    Attributes
    ----------
    n_tiles
        Number of tiles.
    patches
        Patch features, ``(n_tiles, n_patches, d)``.
    pixels
        Pixels ``(n_tiles, 3, p, p)`` uint8 instead, where the image encoder is trained.
    x, layout
        Node features ``(n_cells, d)`` and places of the cells.
    profiles
        One profile a tile ``(n_tiles, d)`` instead, where there is no cell graph.
    """

    n_tiles: int
    patches: Tensor
    pixels: Tensor
    x: Tensor
    layout: CellLayout
    profiles: Tensor
