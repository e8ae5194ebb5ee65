"""From slides to batches: tiles, their cells and edges, their patch features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sigmma_sc.tissue.graph import edges_within
from sigmma_sc.tissue.tiling import block_of
from sigmma_sc.nn.layout import cell_layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.tissue.tilepixels import TilePixels
    from sigmma_sc.tissue.tiling import Tiles
    from sigmma_sc.features.moments import Moments


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
    pixels
        Pixels of tiles instead, where the image encoder is in training.
    genes
        Gene vector of each tile ``(n_tiles, n_genes)`` instead of nodes, where the model has no cell graph.
    patch_moments, node_moments, gene_moments
        What patch features, node features and gene vectors are standardised by, where that is done slide by slide; nodes are already.
    """

    tiles: Tiles
    xy: NDArray[np.float64]
    nodes: torch.Tensor | None
    adjacency: csr_matrix | None
    patches: torch.Tensor | None
    patch_index: NDArray[np.int64] | None
    pixels: TilePixels | None = None
    genes: csr_matrix | None = None
    patch_moments: Moments | None = None
    node_moments: Moments | None = None
    gene_moments: Moments | None = None

    def moments_of(self, kind: str) -> Moments | None:
        """Those of ``"patches"``, ``"nodes"`` or ``"genes"``."""
        return {"patches": self.patch_moments, "nodes": self.node_moments, "genes": self.gene_moments}[kind]

    def patch_batch(self, which: NDArray[np.int64]) -> torch.Tensor:
        """Patch features of some tiles, ``(t, n_patches, d)``."""
        patches = self.patches[torch.from_numpy(self.patch_index[which])].float()
        return patches if self.patch_moments is None else self.patch_moments(patches)

    def gene_batch(self, which: NDArray[np.int64]) -> torch.Tensor:
        """Gene vectors of some tiles, ``(t, n_genes)``."""
        genes = torch.from_numpy(self.genes[which].toarray())
        return genes if self.gene_moments is None else self.gene_moments(genes)


def part_of(
    slide: SlideTensors, which: NDArray[np.int64], grids: tuple[int, ...], images: bool = True, cells: bool = True
) -> dict[str, Any]:
    """Some tiles of one slide, as the towers take them: ``n_tiles``, and what is asked for of image and cells."""
    part: dict[str, Any] = {"n_tiles": len(which)}
    if images and slide.pixels is not None:
        part["pixels"] = torch.from_numpy(slide.pixels(slide.tiles.origins[which]))
    elif images:
        part["patches"] = slide.patch_batch(which)
    if cells and slide.genes is not None:
        part["genes"] = slide.gene_batch(which)
    elif cells:
        part |= make_batch(slide, which, grids)
    return part


def make_batch(slide: SlideTensors, which: NDArray[np.int64], grids: tuple[int, ...]) -> dict[str, Any]:
    """Assemble tiles of one slide.

    Returns
    -------
    ``x`` node features, and ``layout``, the :class:`~sigmma_sc.nn.pairs.CellLayout` of the cells.
    """
    tiles = slide.tiles.take(which)
    counts = tiles.n_cells
    tile = np.repeat(np.arange(len(which)), counts)
    offset = slide.xy[tiles.cells] - tiles.origins[tile]
    blocks = np.stack([block_of(offset, tiles.side, b) for b in grids])
    source, target = edges_within(slide.adjacency, tiles.cells, tile * grids[0] ** 2 + blocks[0])
    return {
        "x": slide.nodes[torch.from_numpy(tiles.cells)],
        "layout": cell_layout(tiles.indptr, blocks, source, target),
    }


class TilePairs(Dataset):
    """Tiles of several slides, fetched a batch at a time."""

    def __init__(self, slides: Sequence[SlideTensors], grids: tuple[int, ...]):
        self.slides, self.grids = slides, grids

    def __len__(self) -> int:
        return sum(len(slide.tiles) for slide in self.slides)

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """A batch of tiles (slide, tile), as one part for each slide."""
        slide, tile = np.array(keys).T
        return [part_of(self.slides[k], tile[slide == k], self.grids) for k in np.unique(slide)]


class TileBatches(Sampler):
    """Batches of one pass over every slide, in which no two tiles overlap.

    A slide's tiles come in phases, grids moved against each other. Each epoch draws one phase of every slide, so it passes over
    the tissue once, cut anew. Batches hold tiles of one slide: frozen features identify the slide almost perfectly, so
    negatives of another slide teach little (METHOD: objective). Every epoch has as many batches, of nearly equal size, none of a
    single tile or of fewer than one a process. Of several processes, each takes its share of every batch, all of the same
    size, for which up to one tile a process is left out.

    Parameters
    ----------
    slides
        Phases of each slide, each as (slide, tile) pairs ``(n, 2)``.
    batch_size
        Largest batch, over all processes; a phase of a tile more than it may make one batch.
    shuffle
        Draw anew each epoch, by its number in :attr:`epoch`, which whoever runs the epochs sets; otherwise take the first
        phase, in order.
    seed
        Of the draw.
    pooled
        Mix the tiles of all slides.

    Attributes
    ----------
    rank, world
        Which process this is, and of how many.
    """

    def __init__(
        self,
        slides: Sequence[Sequence[NDArray[np.int64]]],
        batch_size: int,
        shuffle: bool,
        seed: int,
        pooled: bool = False,
    ):
        self.slides, self.pooled = slides, pooled
        self.batch_size, self.shuffle, self.seed, self.epoch = batch_size, shuffle, seed, 0
        self.rank, self.world = 0, 1

    def _groups(self) -> list[list[list[NDArray[np.int64]]]]:
        """Slides whose tiles meet, each with its phases, but for those that hardly touch the tissue."""
        fit = []
        for phases in self.slides:
            largest = max(map(len, phases))
            least = max(largest / 2, 1 if self.pooled else max(2, self.world))
            fit.append([tiles for tiles in phases if len(tiles) >= least])
        fit = [phases for phases in fit if phases]
        return [fit] if self.pooled and fit else [[phases] for phases in fit]

    def _n_batches(self, group: list[list[NDArray[np.int64]]]) -> int:
        """How many batches some slides make, whichever of their phases are drawn."""
        most, least = (sum(of(map(len, phases)) for phases in group) for of in (max, min))
        return min(-(-most // self.batch_size), least // max(2, self.world))

    def __len__(self) -> int:
        return sum(map(self._n_batches, self._groups()))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        batches = []
        for group in self._groups():
            drawn = np.concatenate([p[int(rng.integers(len(p))) if self.shuffle else 0] for p in group])
            if n := self._n_batches(group):
                batches += np.array_split(rng.permutation(drawn) if self.shuffle else drawn, n)
        for k in rng.permutation(len(batches)) if self.shuffle else range(len(batches)):
            whole = len(batches[k]) // self.world * self.world
            yield list(map(tuple, batches[k][:whole][self.rank :: self.world].tolist()))


class TileDataModule(pl.LightningDataModule):
    """Training and validation batches."""

    def __init__(self, dataset: TilePairs, train: TileBatches, val: TileBatches | None):
        super().__init__()
        self.dataset, self.train, self.val = dataset, train, val

    def _loader(self, batches: TileBatches) -> DataLoader:
        batches.rank, batches.world = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(self.dataset, batch_sampler=batches, collate_fn=lambda batch: batch)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training tiles."""
        return self._loader(self.train)

    def val_dataloader(self) -> DataLoader | list:
        """The validation tiles, always in the same batches."""
        return [] if self.val is None else self._loader(self.val)
