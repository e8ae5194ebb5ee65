"""Batches of tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from sigmma_sc.features.tensors import SlideTensors
    from sigmma_sc.nn.part import Part


class TilePairs(Dataset):
    """Tiles of several slides, fetched a batch at a time."""

    def __init__(self, slides: Sequence[SlideTensors]):
        self.slides = slides

    def __len__(self) -> int:
        return sum(len(slide.tiles) for slide in self.slides)

    @property
    def n_node_features(self) -> int:
        """Width of node features or profiles, the same for all slides."""
        widths = [slide.transcriptome.n_features for slide in self.slides if slide.transcriptome is not None]
        return widths[0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Part]:
        """A batch of tiles (slide, tile), as one part for each slide."""
        slide, tile = np.array(keys).T
        return [self.slides[k].part(tile[slide == k]) for k in np.unique(slide)]


class TileBatches(Sampler):
    """Batches of one pass over every slide, in which no two tiles overlap.

    A slide's tiles come in phases, grids moved against each other. Each epoch draws one phase of every slide, so it
    passes over the tissue once, cut anew. Batches hold tiles of one slide, unless ``pooled``: frozen features identify
    the slide almost perfectly, so negatives of another slide teach little (METHOD: objective). Every epoch has as many
    batches, of nearly equal size, none of a single tile or of fewer than one a process. Of several processes, each
    takes its share of every batch, all of the same size, for which up to one tile a process is left out. ``slides`` has
    the phases of each slide, each as (slide, tile) pairs ``(n, 2)``; a phase of a tile more than ``batch_size`` may
    make one batch. ``shuffle`` draws anew each epoch, by its number in :attr:`epoch`, which whoever runs the epochs
    sets; otherwise the first phase is taken, in order.
    """

    def __init__(
        self,
        slides: Sequence[Sequence[NDArray[np.int64]]],
        batch_size: int,
        shuffle: bool,
        seed: int,
        pooled: bool = False,
    ):
        self.slides = slides
        self.pooled = pooled
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.rank = 0
        self.world = 1

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
        most = sum(max(map(len, phases)) for phases in group)
        least = sum(min(map(len, phases)) for phases in group)
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
        self.dataset = dataset
        self.train = train
        self.val = val

    def _loader(self, batches: TileBatches) -> DataLoader:
        trainer = self.trainer
        pinned = False
        if trainer is not None:
            batches.rank = trainer.global_rank
            batches.world = trainer.world_size
            # A GPU fetches a batch from pinned memory by itself, while the host goes on.
            pinned = trainer.strategy.root_device.type == "cuda"
        # Of its own, because a loader draws a number even where it shuffles nothing.
        own = torch.Generator()
        return DataLoader(
            self.dataset, batch_sampler=batches, collate_fn=lambda batch: batch, pin_memory=pinned, generator=own
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training tiles."""
        return self._loader(self.train)

    def val_dataloader(self) -> DataLoader | list:
        """The validation tiles, always in the same batches."""
        return [] if self.val is None else self._loader(self.val)
