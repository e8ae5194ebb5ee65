"""Embeddings of slides: of the tiles that cover them, and of their cells."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device

from sigmma_sc.errors import SetupError
from sigmma_sc.nn.cellgraph import GraphTower
from sigmma_sc.tissue.tiling import Tiles, shifted_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from sigmma_sc.features.data import TissueData
    from sigmma_sc.features.tensors import TileTensors
    from sigmma_sc.nn.towers import TwoTowers
    from sigmma_sc.tissue.frame import Slide

    Edges = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]

INFERENCE_TILES = 64


@dataclass
class SlideEmbedding:
    """Embeddings of one slide over the tiles that cover its image."""

    # The slide and its covering tiles.
    slide: Slide
    tiles: Tiles
    covered: NDArray[np.bool_]  # cells with an embedding, (n_cells,)
    # Cell embeddings by scale, (n_cells, d); rows of cells that are not covered are undefined. None without a cell
    # graph.
    cells: dict[str, NDArray[np.float32]]
    # Tile embeddings by aligned scale, (n_tiles, d).
    image: dict[str, NDArray[np.float32]]
    transcriptome: dict[str, NDArray[np.float32]]

    def tower(self, name: str) -> dict[str, NDArray[np.float32]]:
        """Tile embeddings of one tower by scale: ``"image"`` or ``"transcriptome"``."""
        return {"image": self.image, "transcriptome": self.transcriptome}[name]


class Embedder:
    """Towers in evaluation, on a model's tissue."""

    def __init__(self, data: TissueData, towers: TwoTowers):
        self.data = data
        self.towers = towers
        self.device = next(towers.parameters()).device

    @torch.no_grad()
    def slides(
        self, slides: Sequence[Slide], images: bool = True, cells: bool = True, stride: float | None = None
    ) -> list[SlideEmbedding]:
        """Embed slides in one tower or both; only what is asked for is computed.

        With a ``stride`` in µm, a cell's embedding is the mean over the tiles of all grids moved by that step.
        """
        embeddings = []
        with self._evaluating():
            for slide in slides:
                with_cells = cells and slide.region is not None
                embeddings.append(self._slide(slide, slide.tiles, slide.tile_of_cell, images, with_cells, stride))
        return embeddings

    @torch.no_grad()
    def tiles(self, slide: Slide, tiles: Tiles) -> SlideEmbedding:
        """Embed some tiles of a slide in both towers; their cells' own embeddings are not kept."""
        with self._evaluating():
            return self._slide(slide, tiles, None, images=True, cells=True, stride=None)

    @torch.no_grad()
    def edges(self, slide: Slide, tiles: Tiles) -> list[Edges]:
        """Edges of each scale among the cells of tiles: source, target (positions in ``tiles.cells``) and weight."""
        tower = getattr(self.towers, "cell_tower", None)
        if not isinstance(tower, GraphTower):
            raise SetupError("A model with cells='genes' has no cell graph.")
        out = []
        with self._evaluating():
            tensors = self.data.tensors(slide, tiles, self.device, images=False)
            part = move_data_to_device(tensors.part(np.arange(len(tiles))), self.device)
            for source, target, weight in tower.weights(part):
                out.append((source.cpu().numpy(), target.cpu().numpy(), weight.cpu().numpy()))
        return out

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode; Monte-Carlo draws come from the model's seed, and the user's random state stays as it was."""
        self.towers.eval()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.data.config.seed)
            yield

    def _slide(
        self,
        slide: Slide,
        tiles: Tiles,
        tile_of_cell: NDArray[np.int64] | None,
        images: bool,
        cells: bool,
        stride: float | None,
    ) -> SlideEmbedding:
        """Embed tiles, and the cells for which ``tile_of_cell`` names one of them; ``None`` keeps no cell's embedding."""
        towers = self.towers
        tensors = self.data.tensors(slide, tiles, self.device, images, cells)
        keeps = cells and tile_of_cell is not None
        if tile_of_cell is None:
            tile_of_cell = np.full(len(slide.xy), -1)
        out = SlideEmbedding(
            slide,
            tiles,
            covered=tile_of_cell >= 0,
            cells=self._zeros(len(slide.xy) * keeps, towers.embedded),
            image=self._zeros(len(tiles) * images, towers.aligned),
            transcriptome=self._zeros(len(tiles) * cells, towers.aligned),
        )
        for which in _chunks(len(tiles)):
            if tensors.image is not None:
                part = move_data_to_device(tensors.image.part(tiles, which), self.device)
                images_of = towers.embed_images(part)
                for scale in out.image:
                    out.image[scale][which] = images_of[scale].cpu().numpy()
            if tensors.transcriptome is not None:
                h, z = self._cells(tensors.transcriptome, tiles, which)
                for scale in out.transcriptome:
                    out.transcriptome[scale][which] = z[scale]
                # A cell that lies in two tiles, where the last column is shifted, takes its own tile's embedding.
                position = tiles.take(which).cells
                mine = tile_of_cell[position] == np.repeat(which, tiles.n_cells[which])
                for scale in towers.embedded if keeps else ():
                    out.cells[scale][position[mine]] = h[scale][mine]
        if keeps and stride is not None and tensors.transcriptome is not None:
            self._average(tensors.transcriptome, out, stride)
        return out

    def _zeros(self, n: int, scales: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        return {scale: np.zeros((n, self.data.config.n_latent), np.float32) for scale in scales}

    def _cells(
        self, tensors: TileTensors, tiles: Tiles, which: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
        """Embeddings of the cells of some tiles, and the tiles' own, by scale."""
        config = self.data.config
        part = move_data_to_device(tensors.part(tiles, which), self.device)
        n_draws = config.mc_samples if config.edges == "sampled" else 0
        if n_draws == 0:
            h, z = self.towers.embed_cells(part)
            return _mean([h]), _mean([z])
        draws = [self.towers.embed_cells(part, sample=True) for _ in range(n_draws)]
        return _mean([h for h, _ in draws]), _mean([z for _, z in draws])

    def _average(self, tensors: TileTensors, out: SlideEmbedding, stride: float) -> None:
        """Replace each cell's embedding by its mean over the grids moved by multiples of ``stride``."""
        side = out.tiles.side
        per_side = round(self.data.setup.tile_size / stride)
        steps = np.arange(per_side) * side / per_side
        shifts = [np.array([x, y]) for x in steps for y in steps if x or y]
        covered = np.flatnonzero(out.covered)
        for shift in shifts:
            tiles = shifted_tiles(out.slide.xy, covered, side, shift)
            for which in _chunks(len(tiles)):
                h, _ = self._cells(tensors, tiles, which)
                position = tiles.take(which).cells
                for scale in out.cells:
                    out.cells[scale][position] += h[scale]
        for scale in out.cells:
            out.cells[scale] /= len(shifts) + 1


def _mean(draws: list[dict[str, torch.Tensor]]) -> dict[str, NDArray]:
    """Mean over draws by scale."""
    out = {}
    for scale in draws[0]:
        total = torch.zeros_like(draws[0][scale])
        for draw in draws:
            total = total + draw[scale]
        out[scale] = (total / len(draws)).cpu().numpy()
    return out


def _chunks(n: int) -> list[NDArray[np.int64]]:
    """Positions of tiles, a batch of inference at a time."""
    return np.split(np.arange(n), range(INFERENCE_TILES, n, INFERENCE_TILES))
