"""Slides as tensors, from which batches of tiles are cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from sigmma_sc.nn.layout import CPU_LIMITS, Limits, cell_layout
from sigmma_sc.tissue.graph import edges_within
from sigmma_sc.tissue.tiling import Tiles, block_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.features.moments import Moments
    from sigmma_sc.nn.part import Part
    from sigmma_sc.tissue.tilepixels import TilePixels


@dataclass
class PatchTensors:
    """Patch features of a frozen encoder."""

    patches: torch.Tensor  # features of distinct crops, (n_crops, d)
    index: NDArray[np.int64]  # crop of each patch of each tile, (n_tiles, n_patches)
    moments: Moments | None = None  # moments of the slide's patch features

    @property
    def n_features(self) -> int:
        """Width of the encoder's output."""
        return self.patches.shape[1]

    def part(self, tiles: Tiles, which: NDArray[np.int64]) -> Part:
        """``patches`` ``(t, n_patches, d)``."""
        return {"patches": self.sample(tiles, which)}

    def sample(self, tiles: Tiles, which: NDArray[np.int64]) -> torch.Tensor:
        """Patch features of some tiles, ``(t, n_patches, d)``."""
        patches = self.patches[torch.from_numpy(self.index[which])].float()
        return patches if self.moments is None else self.moments(patches)


@dataclass
class PixelTensors:
    """Pixels of tiles, where the image encoder is trained; ``n_features`` is the encoder's width."""

    pixels: TilePixels
    n_features: int
    moments: Moments | None = None

    def part(self, tiles: Tiles, which: NDArray[np.int64]) -> Part:
        """``pixels`` ``(t, 3, p, p)`` uint8."""
        return {"pixels": self.sample(tiles, which)}

    def sample(self, tiles: Tiles, which: NDArray[np.int64]) -> torch.Tensor:
        """Pixels of some tiles, ``(t, 3, p, p)`` uint8."""
        return torch.from_numpy(self.pixels(tiles.origins[which]))


@dataclass
class GraphTensors:
    """The cell graph of a slide."""

    xy: NDArray[np.float64]  # cells in px, (n_cells, 2)
    nodes: torch.Tensor  # node features, (n_cells, d), standardised already where that is done slide by slide
    adjacency: csr_matrix  # spatial graph over the slide's cells
    grids: tuple[int, ...]  # blocks per side of each scale, fine to coarse
    moments: Moments | None = None  # moments of the slide's node features before they were standardised
    limits: Limits = CPU_LIMITS  # how blocks are joined, for the device that computes

    @property
    def n_features(self) -> int:
        """Width of the node features."""
        return self.nodes.shape[1]

    def part(self, tiles: Tiles, which: NDArray[np.int64]) -> Part:
        """``x`` node features, and ``layout``, the :class:`~sigmma_sc.nn.pairs.CellLayout` of the cells."""
        chosen = tiles.take(which)
        tile = np.repeat(np.arange(len(which)), chosen.n_cells)
        offset = self.xy[chosen.cells] - chosen.origins[tile]
        blocks = np.stack([block_of(offset, chosen.side, grid) for grid in self.grids])
        source, target = edges_within(self.adjacency, chosen.cells, tile * self.grids[0] ** 2 + blocks[0])
        return {
            "x": self.nodes[torch.from_numpy(chosen.cells)],
            "layout": cell_layout(chosen.indptr, blocks, source, target, self.limits),
        }

    def sample(self, tiles: Tiles, which: NDArray[np.int64]) -> torch.Tensor:
        """Node features of the cells of some tiles, each cell once."""
        return self.nodes[torch.from_numpy(np.unique(tiles.take(which).cells))]


@dataclass
class ProfileTensors:
    """One profile a tile in the place of a cell graph."""

    profiles: csr_matrix  # (n_tiles, d)
    moments: Moments | None = None  # moments of the slide's profiles

    @property
    def n_features(self) -> int:
        """Width of the profiles."""
        return self.profiles.shape[1]

    def part(self, tiles: Tiles, which: NDArray[np.int64]) -> Part:
        """``profiles`` ``(t, d)``."""
        return {"profiles": self.sample(tiles, which)}

    def sample(self, tiles: Tiles, which: NDArray[np.int64]) -> torch.Tensor:
        """Profiles of some tiles, ``(t, d)``."""
        profiles = torch.from_numpy(self.profiles[which].toarray())
        return profiles if self.moments is None else self.moments(profiles)


TileTensors: TypeAlias = PatchTensors | PixelTensors | GraphTensors | ProfileTensors
"""One modality of a slide; ``moments`` are what features are centred and scaled by, if slide by slide."""


@dataclass
class SlideTensors:
    """Tiles of one slide, and what the towers take of their images and transcriptomes."""

    tiles: Tiles  # tiles and their cells
    # None where only the other modality was asked for.
    image: TileTensors | None
    transcriptome: TileTensors | None

    def part(self, which: NDArray[np.int64]) -> Part:
        """Some tiles of the slide, as the towers take them."""
        part: Part = {"n_tiles": len(which)}
        for tensors in (self.image, self.transcriptome):
            if tensors is not None:
                part |= tensors.part(self.tiles, which)
        return part
