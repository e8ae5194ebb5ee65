"""Tiles to train and validate on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.split import NoSplit, get_split, near
from sigmma_sc.tissue.tiling import Tiles, lattice_tiles
from sigmma_sc.train.batches import TileBatches, TileDataModule, TilePairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sigmma_sc.features.data import TissueData
    from sigmma_sc.features.tensors import SlideTensors
    from sigmma_sc.nn.trainable import TrainableEncoder
    from sigmma_sc.tissue.frame import Slide

READY_TILES, ENCODED_TILES = 4096, 256
"""Tiles of all slides on which features are standardised: those at hand are gathered, the others cost a pass of the encoder."""


def tile_batches(
    data: TissueData, slides: Sequence[Slide], stride: float, batch_size: int, device: torch.device
) -> TileDataModule:
    """Training tiles on a lattice of step ``stride`` µm, validation tiles as they cover the slide."""
    config = data.config
    tune = config.regime != "frozen"
    data.require_values(slides)
    dataset: list[SlideTensors] = []
    train = []
    val = []
    for slide in slides:
        role = data.roles.of(slide)
        tiles = _training_tiles(data, slide, role, stride)
        if len(tiles):
            train.append([_keys(len(dataset), tiles.phase == phase) for phase in np.unique(tiles.phase)])
            dataset.append(data.tensors(slide, tiles, device, pixels=tune))
        held_out = np.flatnonzero(role == "val")
        if len(held_out):
            val.append([_keys(len(dataset), np.ones(len(held_out), bool))])
            dataset.append(data.tensors(slide, slide.tiles.take(held_out), device, pixels=tune))
    pooled = config.negatives == "pooled"
    sampler = TileBatches(train, batch_size, shuffle=True, seed=config.seed, pooled=pooled)
    if not len(sampler):
        raise SetupError("No slide has two training tiles with enough cells. Lower min_cells or tile_size.")
    validation = TileBatches(val, batch_size, shuffle=False, seed=config.seed, pooled=pooled)
    return TileDataModule(TilePairs(dataset), sampler, validation if len(validation) else None)


def _keys(slide: int, which: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Tiles of a slide as (slide, tile) pairs."""
    tile = np.flatnonzero(which)
    return np.column_stack([np.full(len(tile), slide), tile])


def _training_tiles(data: TissueData, slide: Slide, role: NDArray, stride: float) -> Tiles:
    """Tiles at every step of the lattice on training tiles, beyond the guard band around all that is held out.

    The split decides how wide the band is. A random split has none: what it shows is the leak.
    """
    if not (role == "train").any():
        return slide.tiles.take(np.zeros(0, np.int64))
    tiles = lattice_tiles(slide.xy, slide.width, slide.height, slide.side, stride / slide.microns_per_pixel)
    held_out = slide.tiles.origins[np.isin(role, ["val", "test"])]
    split = get_split(data.roles.split or NoSplit.name)
    chosen = data.usable(slide, tiles) & ~near(tiles, held_out, split.guard)
    if split.by_sample and slide.cell_samples is not None:
        # Covering tiles at the edge of a held-out sample may have too few cells to be held out themselves.
        chosen &= np.isin(slide.sample_of(tiles), slide.sample_of(slide.tiles)[role == "train"])
    return tiles.take(np.flatnonzero(chosen))


def training_sample(
    batches: TileDataModule, encoder: TrainableEncoder | None, per_tile: bool, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch features ``(n, n_patches, d)`` of training tiles, and their profiles or node features of all cells."""
    slides = batches.dataset.slides
    phases = [tiles for phases in batches.train.slides for tiles in phases]
    slide, tile = np.concatenate(phases).T
    numbers = np.unique(slide)
    most = -(-(READY_TILES if encoder is None else ENCODED_TILES) // len(numbers))
    if encoder is not None:
        encoder.to(device).eval()
    images = []
    cells = []
    for k in numbers:
        tensors = slides[k]
        every = tile[slide == k]
        some = every[np.linspace(0, len(every) - 1, min(len(every), most)).astype(int)]
        image = tensors.image.sample(tensors.tiles, some)
        images.append(image if encoder is None else _encoded(encoder, image, device))
        cells.append(tensors.transcriptome.sample(tensors.tiles, some if per_tile else every))
    return torch.cat(images), torch.cat(cells)


@torch.no_grad()
def _encoded(encoder: TrainableEncoder, tiles: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Patch features of some training tiles, before the encoder is trained."""
    return torch.cat([encoder(part.to(device)).cpu() for part in tiles.split(8)])
