"""From slides to batches: tiles, their cells and edges, their patch features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sigmma_sc.nn.cellgraph import Bucket
from sigmma_sc.tissue.graph import edges_within
from sigmma_sc.tissue.tiling import block_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.tissue.tiling import Tiles

BUCKET_SPREAD = 1.25
"""Largest tile of a bucket over its smallest."""


@dataclass
class SlideTensors:
    """What batches of one slide are cut from.

    Attributes
    ----------
    tiles
        Tiles and their cells.
    xy
        Cells in px, ``(n_cells, 2)``.
    nodes
        Node features, ``(n_cells, d)``; ``None`` for a slide without cells.
    adjacency
        Spatial graph over the slide's cells.
    patches, patch_index
        Patch features ``(n_crops, d)``, ``None`` where only cells are embedded, and the crop of each patch of each tile
        ``(n_tiles, n_patches)``.
    """

    tiles: Tiles
    xy: NDArray[np.float64]
    nodes: torch.Tensor | None
    adjacency: csr_matrix | None
    patches: torch.Tensor | None
    patch_index: NDArray[np.int64]

    def patch_batch(self, which: NDArray[np.int64]) -> torch.Tensor:
        """Patch features of some tiles, ``(t, n_patches, d)``."""
        return self.patches[torch.from_numpy(self.patch_index[which])].float()


def make_batch(slide: SlideTensors, which: NDArray[np.int64], grids: tuple[int, ...]) -> dict[str, Any]:
    """Assemble tiles of one slide.

    Returns
    -------
    ``cells`` (position in the slide of each node), ``tile`` (tile in the batch of each node), ``x`` node features,
    ``buckets`` of :class:`~sigmma_sc.nn.cellgraph.Bucket`.
    """
    tiles = slide.tiles.take(which)
    counts = tiles.n_cells
    tile = np.repeat(np.arange(len(which)), counts)
    offset = slide.xy[tiles.cells] - tiles.origins[tile]
    blocks = np.stack([block_of(offset, tiles.side, b) for b in grids])
    source, target = edges_within(slide.adjacency, tiles.cells, tile * grids[0] ** 2 + blocks[0])
    return {
        "cells": torch.from_numpy(tiles.cells),
        "tile": torch.from_numpy(tile),
        "x": slide.nodes[torch.from_numpy(tiles.cells)],
        "buckets": list(make_buckets(tiles.indptr, blocks, source, target)),
    }


def make_buckets(
    indptr: NDArray[np.int64],
    blocks: NDArray[np.int64],
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    spread: float = BUCKET_SPREAD,
) -> Iterator[Bucket]:
    """Group tiles of nearly equal size.

    Parameters
    ----------
    indptr
        First node of each tile and one past the last, ``(n_tiles + 1,)``.
    blocks
        Block of each node at every grid, ``(n_scales, n_nodes)``.
    source, target
        Spatial edges between nodes.
    spread
        Largest tile of a bucket over its smallest.
    """
    counts = np.diff(indptr)
    tile_of = np.repeat(np.arange(len(counts)), counts)
    order = np.argsort(counts, kind="stable")
    start = 0
    while start < len(order):
        limit = max(4, spread * counts[order[start]])
        stop = start + int(np.searchsorted(counts[order[start:]], limit, side="right"))
        members = order[start:stop]
        start = stop
        # One slot at least, so that tiles without cells pass through the same code.
        slots = np.arange(max(1, counts[members].max()))
        mask = slots < counts[members, None]
        index = np.where(mask, indptr[members, None] + slots, -1)
        row = np.full(len(counts), -1)
        row[members] = np.arange(len(members))
        inside = row[tile_of[target]] >= 0
        s, t = source[inside], target[inside]
        micro = np.zeros((len(members), len(slots), len(slots)), bool)
        micro[row[tile_of[t]], t - indptr[tile_of[t]], s - indptr[tile_of[s]]] = True
        padded = np.zeros((len(blocks), *index.shape), np.int64)
        padded[:, mask] = blocks[:, index[mask]]
        yield Bucket(*(torch.from_numpy(a) for a in (members, index, mask, padded, micro)))


class TilePairs(Dataset):
    """Tiles of several slides, fetched a batch at a time."""

    def __init__(self, slides: Sequence[SlideTensors], grids: tuple[int, ...]):
        self.slides, self.grids = slides, grids

    def __len__(self) -> int:
        return sum(len(slide.tiles) for slide in self.slides)

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        """A batch of tiles, all of one slide, as (slide, tile)."""
        slide, which = self.slides[keys[0][0]], np.array([tile for _, tile in keys])
        return {**make_batch(slide, which, self.grids), "patches": slide.patch_batch(which)}


class WithinSlideBatches(Sampler):
    """Batches of tiles of one slide and one phase, so that no two tiles of a batch overlap.

    Frozen features identify the slide almost perfectly: negatives of another slide would teach nothing (METHOD:
    objective). A group is cut into batches of nearly equal size, none of a single tile.

    Parameters
    ----------
    groups
        (slide, its tiles) pairs.
    batch_size
        Largest batch.
    shuffle
        Draw anew each epoch, by its number in :attr:`epoch`, which whoever runs the epochs sets.
    seed
        Of the draw.
    """

    def __init__(self, groups: Sequence[tuple[int, NDArray[np.int64]]], batch_size: int, shuffle: bool, seed: int):
        self.groups = [(slide, tiles) for slide, tiles in groups if len(tiles) > 1]
        self.batch_size, self.shuffle, self.seed, self.epoch = batch_size, shuffle, seed, 0

    def _n_batches(self, n: int) -> int:
        return max(1, -(-n // self.batch_size))

    def __len__(self) -> int:
        return sum(self._n_batches(len(tiles)) for _, tiles in self.groups)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        batches = []
        for slide, tiles in self.groups:
            drawn = rng.permutation(tiles) if self.shuffle else tiles
            batches += [[(slide, int(t)) for t in part] for part in np.array_split(drawn, self._n_batches(len(tiles)))]
        for k in rng.permutation(len(batches)) if self.shuffle else range(len(batches)):
            yield batches[k]


class TileDataModule(pl.LightningDataModule):
    """Training and validation batches."""

    def __init__(self, dataset: TilePairs, train: WithinSlideBatches, val: WithinSlideBatches | None):
        super().__init__()
        self.dataset, self.train, self.val = dataset, train, val

    def _loader(self, batches: WithinSlideBatches) -> DataLoader:
        return DataLoader(self.dataset, batch_sampler=batches, collate_fn=lambda batch: batch)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training tiles."""
        return self._loader(self.train)

    def val_dataloader(self) -> DataLoader | list:
        """The validation tiles, always in the same batches."""
        return [] if self.val is None else self._loader(self.val)
