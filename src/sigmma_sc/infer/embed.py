"""Embeddings of slides: of the tiles that cover them, and of their cells."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device

from sigmma_sc.tissue.tiling import shifted_tiles
from sigmma_sc.train.batches import part_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sigmma_sc.nn.towers import TwoTowers
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles
    from sigmma_sc.train.batches import SlideTensors
    from sigmma_sc.features.data import TissueData

INFERENCE_TILES = 64


@dataclass
class SlideEmbedding:
    """Embeddings of one slide over the tiles that cover its image.

    Attributes
    ----------
    slide, tiles
        The slide and its covering tiles.
    covered
        Cells with an embedding, ``(n_cells,)``.
    cells
        Cell embeddings by scale, ``(n_cells, d)``; rows of cells that are not covered are undefined. None without a cell graph.
    image, transcriptome
        Tile embeddings by aligned scale, ``(n_tiles, d)``.
    """

    slide: Slide
    tiles: Tiles
    covered: NDArray[np.bool_]
    cells: dict[str, NDArray[np.float32]]
    image: dict[str, NDArray[np.float32]]
    transcriptome: dict[str, NDArray[np.float32]]


class Embedder:
    """Towers in evaluation, on the slides of their tissue.

    Parameters
    ----------
    data
        What the model knows of its tissue.
    module
        The towers.
    """

    def __init__(self, data: TissueData, module: TwoTowers):
        self.data, self.module = data, module
        self.device = next(module.parameters()).device

    @torch.no_grad()
    def slides(self, tissue: Any, images: bool, cells: bool, stride: float | None = None) -> list[SlideEmbedding]:
        """Embed every slide of an object in one tower or both; only what is asked for is computed.

        With a ``stride`` in µm, a cell's embedding is the mean over the tiles of all grids moved by that step.
        """
        with self._evaluating():
            return [
                self._slide(slide, *self.data.covering(slide), images, cells and slide.region is not None, stride)
                for slide in self.data.slides(tissue)
            ]

    @torch.no_grad()
    def tiles(self, slide: Slide, tiles: Tiles) -> SlideEmbedding:
        """Embed some tiles of a slide in both towers; their cells' own embeddings are not kept."""
        with self._evaluating():
            return self._slide(slide, tiles, None, images=True, cells=True, stride=None)

    @torch.no_grad()
    def edges(
        self, slide: Slide, tiles: Tiles
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
        """Edges of each scale among the cells of some tiles: speaker and listener, as positions in ``tiles.cells``, and weight."""
        with self._evaluating():
            tensors = self.data.tensors(slide, tiles, self.device, images=False)
            part = part_of(tensors, np.arange(len(tiles)), self.data.setup.grids, images=False)
            part = move_data_to_device(part, self.device)
            x = self.module.node_standardise(part["x"])
            found = self.module.graph_tower.weights(x, part["layout"])
        return [tuple(column.cpu().numpy() for column in scale) for scale in found]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode; draws of Monte-Carlo evaluation come from the model's seed, and the user's random state stays as it was."""
        self.module.eval()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.data.config.seed)
            yield

    def _slide(
        self,
        slide: Slide,
        tiles: Tiles,
        own: NDArray[np.int64] | None,
        images: bool,
        cells: bool,
        stride: float | None,
    ) -> SlideEmbedding:
        """Embed tiles, and the cells for which ``own`` names one of them; ``None`` keeps no cell's embedding."""
        module, device = self.module, self.device
        tensors = self.data.tensors(slide, tiles, device, images, cells)
        keeps = cells and own is not None
        own = np.full(len(slide.xy), -1) if own is None else own
        out = SlideEmbedding(slide, tiles, own >= 0, {}, {}, {})
        kinds = {
            "image": (len(tiles) * images, module.aligned),
            "transcriptome": (len(tiles) * cells, module.aligned),
            "cells": (len(slide.xy) * keeps, module.embedded),
        }
        for kind, (n, scales) in kinds.items():
            getattr(out, kind).update({s: np.zeros((n, self.data.config.n_latent), np.float32) for s in scales})
        for which in _chunks(len(tiles)):
            if images:
                z = module.embed_images({"patches": tensors.patch_batch(which).to(device)})
                for s in module.aligned:
                    out.image[s][which] = z[s].cpu().numpy()
            if cells:
                position, h, z = self._cells(tensors, which)
                for s in module.aligned:
                    out.transcriptome[s][which] = z[s]
                # A cell that stands in two tiles, where the last column is shifted, takes its own tile's embedding.
                mine = own[position] == np.repeat(which, tiles.n_cells[which])
                for s in module.embedded if keeps else ():
                    out.cells[s][position[mine]] = h[s][mine]
        if keeps and stride is not None:
            self._average(tensors, out, stride)
        return out

    def _cells(
        self, tensors: SlideTensors, which: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], dict[str, NDArray], dict[str, NDArray]]:
        """Cells of some tiles, their embeddings, and the tiles' own."""
        part = move_data_to_device(part_of(tensors, which, self.data.setup.grids, images=False), self.device)
        n_draws = self.data.config.mc_samples if self.data.config.edges == "sampled" else 0
        draws = [self.module.embed_cells(part, sample=True) for _ in range(n_draws)]
        draws = draws or [self.module.embed_cells(part)]
        h, z = (
            {s: (sum(draw[k][s] for draw in draws) / len(draws)).cpu().numpy() for s in draws[0][k]} for k in (0, 1)
        )
        return tensors.tiles.take(which).cells, h, z

    def _average(self, tensors: SlideTensors, out: SlideEmbedding, stride: float) -> None:
        """Replace each cell's embedding by its mean over the grids moved by multiples of ``stride``."""
        side, per_side = tensors.tiles.side, round(self.data.setup.tile_size / stride)
        steps = np.arange(per_side) * side / per_side
        shifts = [np.array([x, y]) for x in steps for y in steps if x or y]
        for shift in shifts:
            moved = replace(tensors, tiles=shifted_tiles(tensors.xy, np.flatnonzero(out.covered), side, shift))
            for which in _chunks(len(moved.tiles)):
                position, h, _ = self._cells(moved, which)
                for s in self.module.embedded:
                    out.cells[s][position] += h[s]
        for s in self.module.embedded:
            out.cells[s] /= len(shifts) + 1


def _chunks(n: int) -> list[NDArray[np.int64]]:
    """Positions of tiles, a batch of inference at a time."""
    return np.split(np.arange(n), range(INFERENCE_TILES, n, INFERENCE_TILES))
