"""Two towers, one dict out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sigmma_sc.nn.cellgraph import GraphTower
from sigmma_sc.nn.dropout import Dropout
from sigmma_sc.nn.image import ImageTower
from sigmma_sc.nn.objectives import OBJECTIVES, Objective
from sigmma_sc.nn.pseudobulk import PseudobulkTower
from sigmma_sc.nn.temperature import Temperature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sigmma_sc.config import Config
    from sigmma_sc.nn.part import Part
    from sigmma_sc.nn.trainable import TrainableEncoder

    Scales = dict[str, Tensor]


class ProjectionHead(nn.Module):
    """Linear map with a residual non-linear branch into the shared space (our choice, after BLEEP's head)."""

    def __init__(self, n_input: int, n_latent: int, dropout: float):
        super().__init__()
        self.linear = nn.Linear(n_input, n_latent)
        self.branch = nn.Sequential(nn.GELU(), nn.Linear(n_latent, n_latent), Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """``(n, n_input)`` to ``(n, n_latent)``."""
        y = self.linear(x)
        return y + self.branch(y)


class TwoTowers(nn.Module):
    """What any pair of towers has in common: parts of a batch in, one dict out, losses by scale.

    Subclasses give :meth:`embed_images`, :meth:`embed_cells` and :meth:`fit`. ``encoder`` is an image encoder in
    training; ``None`` where patch features come ready made. ``weights`` are those of the scales' losses.
    """

    def __init__(
        self,
        scales: tuple[str, ...],
        n_node_features: int,
        weights: tuple[float, ...],
        objective: Objective,
        temperature: Temperature,
        encoder: TrainableEncoder | None = None,
    ):
        super().__init__()
        self.scales = scales
        self.n_node_features = n_node_features
        self.weights = dict(zip(scales, weights, strict=True))
        self.objective = objective
        self.temperature = temperature
        self.encoder = encoder

    @property
    def aligned(self) -> tuple[str, ...]:
        """Scales that have a loss, and so tile embeddings."""
        return tuple(scale for scale in self.scales if self.weights[scale] > 0)

    @property
    def embedded(self) -> tuple[str, ...]:
        """Scales that have cell embeddings."""
        return ()

    @property
    def temperatures(self) -> Scales:
        """τ of each scale."""
        return dict(zip(self.scales, self.temperature(), strict=True))

    def fit(self, images: Tensor, cells: Tensor, n_components: int = 0) -> None:
        """Standardise by patch features ``(n, n_patches, d)`` and cells or profiles ``(n, d)`` of training tiles.

        The leading ``n_components`` node features are components of one PCA.
        """
        raise NotImplementedError

    def embed_images(self, part: Part) -> Scales:
        """Image embedding of each scale, ``(n_tiles, n_latent)``."""
        raise NotImplementedError

    def embed_cells(self, part: Part, sample: bool | None = None) -> tuple[Scales, Scales]:
        """Cell embeddings ``(n_cells, n_latent)``, if there are cells, and tile embeddings ``(n_tiles, n_latent)`` by scale.

        ``sample`` draws edges, or weighs pairs by their probability; ``None`` draws in training only.
        """
        raise NotImplementedError

    def embed_cells_alone(self, part: Part, sample: bool | None = None) -> Scales:
        """Cell embeddings of :meth:`embed_cells`."""
        return self.embed_cells(part, sample)[0]

    def anneal(self, edge_temperature: float) -> None:
        """Set τ of the edge sampler, where there is one."""

    def patch_features(self, part: Part) -> Tensor:
        """Patch features of a part ``(n_tiles, n_patches, d)``, ready made or encoded from its pixels."""
        if self.encoder is not None and "pixels" in part:
            return self.encoder(part["pixels"])
        return part["patches"]

    def forward(self, parts: Sequence[Part]) -> dict[str, Scales]:
        """Embed a batch of paired tiles in both towers; each part of it holds tiles of one slide."""
        images = [self.embed_images(part) for part in parts]
        transcriptomes = [self.embed_cells(part)[1] for part in parts]
        return {"image": self._joined(images), "transcriptome": self._joined(transcriptomes)}

    def _joined(self, parts: Sequence[Scales]) -> Scales:
        out = {}
        for scale in self.scales:
            out[scale] = torch.cat([part[scale] for part in parts])
        return out

    def losses(self, out: dict[str, Scales]) -> Scales:
        """Loss of each scale."""
        losses = {}
        for scale, temperature in self.temperatures.items():
            losses[scale] = self.objective(out["image"][scale], out["transcriptome"][scale], temperature)
        return losses

    def total(self, losses: Scales) -> Tensor:
        """The objective: the weighted sum over the scales (paper, section 5.3)."""
        return torch.stack([self.weights[scale] * losses[scale] for scale in self.scales]).sum()

    def trained_state(self) -> Scales:
        """State without the frozen weights of the image encoder, which never change."""
        frozen = set()
        if self.encoder is not None:
            learned = {name for name, p in self.encoder.named_parameters() if p.requires_grad}
            frozen = {f"encoder.{name}" for name in self.encoder.state_dict() if name not in learned}
        return {name: value for name, value in self.state_dict().items() if name not in frozen}

    def load_trained_state(self, state: Scales) -> None:
        """Load what :meth:`trained_state` gave."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        needed = self.trained_state().keys() & set(missing)
        if needed or unexpected:
            raise ValueError(f"The state lacks {sorted(needed)} and has {sorted(unexpected)} too many.")


class Towers(TwoTowers):
    """Image tower f and transcriptome tower g with a projection head a scale."""

    def __init__(
        self,
        n_image: int,
        n_node_features: int,
        grids: tuple[int, ...],
        scales: tuple[str, ...],
        config: Config,
        encoder: TrainableEncoder | None = None,
    ):
        temperature = Temperature(len(scales), config.temperature, config.learn_temperature)
        objective = OBJECTIVES[config.objective]
        super().__init__(scales, n_node_features, config.weights(len(scales)), objective, temperature, encoder)
        n_latent, dropout = config.n_latent, config.dropout
        self.image_tower = ImageTower(n_image, grids, 10.0 if encoder is None else math.inf)
        self.image_heads = nn.ModuleList([ProjectionHead(n_image, n_latent, dropout) for _ in grids])
        self.cell_tower: PseudobulkTower | GraphTower
        if config.cells == "genes":
            self.cell_tower = PseudobulkTower(n_node_features, len(grids), dropout)
        else:
            self.cell_tower = GraphTower(n_node_features, len(grids), config)
        n_output = self.cell_tower.n_output
        self.cell_heads = nn.ModuleList([ProjectionHead(n_output, n_latent, dropout) for _ in grids])

    @property
    def embedded(self) -> tuple[str, ...]:
        """Scales that have cell embeddings: all up to the coarsest with a loss, which passes through the finer ones."""
        if not self.cell_tower.embeds_cells:
            return ()
        return self.scales[: self.scales.index(self.aligned[-1]) + 1]

    def anneal(self, edge_temperature: float) -> None:
        """Set τ of the edge sampler, where there is one."""
        if isinstance(self.cell_tower, GraphTower):
            self.cell_tower.graph.edge_temperature = edge_temperature

    def fit(self, images: Tensor, cells: Tensor, n_components: int = 0) -> None:
        """Standardise by patch features ``(n, n_patches, d)`` and cells or profiles ``(n, d)`` of training tiles."""
        self.image_tower.fit(images)
        self.cell_tower.fit(cells, n_components)

    def embed_images(self, part: Part) -> Scales:
        """Image embedding of each scale, ``(n_tiles, n_latent)``."""
        return self._projected(self.image_heads, self.image_tower(self.patch_features(part)))

    def embed_cells(self, part: Part, sample: bool | None = None) -> tuple[Scales, Scales]:
        """Cell embeddings ``(n_cells, n_latent)``, if there are cells, and tile embeddings ``(n_tiles, n_latent)`` by scale."""
        cells, tiles = self.cell_tower(part, sample)
        return self._by_scale(cells), self._projected(self.cell_heads, tiles)

    def embed_cells_alone(self, part: Part, sample: bool | None = None) -> Scales:
        """Cell embeddings of :meth:`embed_cells`, without pooling and projecting tiles."""
        if not isinstance(self.cell_tower, GraphTower):
            return {}
        return self._by_scale(self.cell_tower.cells(part, sample))

    def _by_scale(self, cells: Sequence[Tensor]) -> Scales:
        return dict(zip(self.scales, cells, strict=False))

    def _projected(self, heads: nn.ModuleList, pooled: Sequence[Tensor]) -> Scales:
        return {scale: head(z) for scale, head, z in zip(self.scales, heads, pooled, strict=True)}
