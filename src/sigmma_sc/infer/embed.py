"""Embeddings of slides: of the tiles that cover them, and of their cells."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device

from sigmma_sc._progress import Display
from sigmma_sc._random import drawing
from sigmma_sc.errors import SetupError
from sigmma_sc.nn.cellgraph import GraphTower
from sigmma_sc.tissue.tiling import Tiles, quasi_random_shifts, shifted_tiles

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
        self, slides: Sequence[Slide], images: bool = True, cells: bool = True, n_offsets: int = 1
    ) -> list[SlideEmbedding]:
        """Embed slides in one tower or both; only what is asked for is computed.

        A cell's embedding is its mean over ``n_offsets`` grids of tiles, the covering one and others at quasi-random offsets.
        """
        embeddings = []
        if cells:
            self.data.require_values(slides)
        with self._evaluating():
            for slide in slides:
                with_cells = cells and slide.region is not None
                embeddings.append(self._slide(slide, slide.tiles, slide.tile_of_cell, images, with_cells, n_offsets))
        return embeddings

    @torch.no_grad()
    def tiles(self, slide: Slide, tiles: Tiles) -> SlideEmbedding:
        """Embed some tiles of a slide in both towers; their cells' own embeddings are not kept."""
        with self._evaluating():
            return self._slide(slide, tiles, None, images=True, cells=True)

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
        with drawing(self.data.config.seed, self.device):
            yield

    def _slide(
        self,
        slide: Slide,
        tiles: Tiles,
        tile_of_cell: NDArray[np.int64] | None,
        images: bool,
        cells: bool,
        n_offsets: int = 1,
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
        if keeps and tensors.transcriptome is not None:
            self._average(tensors.transcriptome, out, n_offsets)
        return out

    def _zeros(self, n: int, scales: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        return {scale: np.zeros((n, self.data.config.n_latent), np.float32) for scale in scales}

    def _cells(
        self, tensors: TileTensors, tiles: Tiles, which: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
        """Embeddings of the cells of some tiles, and the tiles' own, by scale."""
        part = move_data_to_device(tensors.part(tiles, which), self.device)
        draws = [self.towers.embed_cells(part, sample) for sample in self._draws()]
        return _mean([h for h, _ in draws]), _mean([z for _, z in draws])

    def _draws(self) -> list[bool | None]:
        """Whether edges are drawn, once for each evaluation of the towers that is averaged."""
        config = self.data.config
        n_draws = config.mc_samples if config.edges == "sampled" else 0
        return [True] * n_draws or [None]

    def _average(self, tensors: TileTensors, out: SlideEmbedding, n_offsets: int) -> None:
        """Replace each cell's embedding by its mean over ``n_offsets`` grids, of which ``out`` has the first."""
        covered = np.flatnonzero(out.covered)
        with Display(f"Embedding {out.slide.name}", n_offsets, "grids of tiles", done=1) as display:
            for shift in quasi_random_shifts(n_offsets)[1:] * out.tiles.side:
                tiles = shifted_tiles(out.slide.xy, covered, out.tiles.side, shift)
                for which in _chunks(len(tiles)):
                    chosen = tiles.take(which)
                    part = move_data_to_device(tensors.part(tiles, which), self.device)
                    h = _mean([self.towers.embed_cells_alone(part, sample) for sample in self._draws()])
                    for scale in out.cells:
                        out.cells[scale][chosen.cells] += h[scale]
                display.advance()
        for scale in out.cells:
            out.cells[scale] /= n_offsets


def _mean(draws: list[dict[str, torch.Tensor]]) -> dict[str, NDArray]:
    """Mean over draws by scale."""
    if len(draws) == 1:
        return {scale: values.cpu().numpy() for scale, values in draws[0].items()}
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
