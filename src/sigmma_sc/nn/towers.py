"""Two towers, one dict out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sigmma_sc.config import COLDEST, WARMEST
from sigmma_sc.nn.cellgraph import CellGraphTower
from sigmma_sc.nn.genes import GeneVectorTower
from sigmma_sc.nn.image import ImageTower, Standardise
from sigmma_sc.nn.losses import info_nce

if TYPE_CHECKING:
    from sigmma_sc.config import Config
    from sigmma_sc.nn.trainable import Backbone


class ProjectionHead(nn.Module):
    """Linear map with a residual non-linear branch into the shared space (our choice, after BLEEP's head)."""

    def __init__(self, n_input: int, n_latent: int, dropout: float):
        super().__init__()
        self.linear = nn.Linear(n_input, n_latent)
        self.branch = nn.Sequential(nn.GELU(), nn.Linear(n_latent, n_latent), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """``(n, n_input)`` to ``(n, n_latent)``."""
        y = self.linear(x)
        return y + self.branch(y)


class TwoTowers(nn.Module):
    """What any pair of towers has in common: parts of a batch in, one dict out, losses by scale.

    Subclasses give :meth:`embed_images`, :meth:`embed_cells`, :meth:`fit` and :meth:`losses`.

    Parameters
    ----------
    scales
        Names of the scales that have embeddings.
    n_nodes
        Width of node features, or of gene vectors.
    weights
        Weight of each scale's loss.
    backbone
        Image encoder in training; ``None`` where patch features come ready made.
    """

    def __init__(
        self, scales: tuple[str, ...], n_nodes: int, weights: tuple[float, ...], backbone: Backbone | None = None
    ):
        super().__init__()
        self.scales, self.n_nodes, self.backbone = scales, n_nodes, backbone
        self.weights = dict(zip(scales, weights, strict=True))

    @property
    def aligned(self) -> tuple[str, ...]:
        """Scales that have a loss, and so tile embeddings."""
        return tuple(scale for scale in self.scales if self.weights[scale] > 0)

    @property
    def embedded(self) -> tuple[str, ...]:
        """Scales that have cell embeddings."""
        return ()

    @property
    def temperatures(self) -> dict[str, Tensor]:
        """τ of each scale."""
        raise NotImplementedError

    def forward(self, parts: list[dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
        """Embed a batch of paired tiles in both towers; each part of it holds tiles of one slide."""
        image = [self.embed_images(part) for part in parts]
        transcriptome = [self.embed_cells(part)[1] for part in parts]
        return {
            name: {scale: torch.cat([part[scale] for part in tower]) for scale in self.scales}
            for name, tower in (("image", image), ("transcriptome", transcriptome))
        }

    def bound(self) -> None:
        """Bring parameters back within their bounds after a step."""

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The objective: the weighted sum over the scales (paper, section 5.3)."""
        return torch.stack([self.weights[s] * losses[s] for s in self.scales]).sum()

    def own_state(self) -> dict[str, Tensor]:
        """State without what is frozen of the image encoder, which never changes."""
        frozen = set()
        if self.backbone is not None:
            learned = {name for name, p in self.backbone.named_parameters() if p.requires_grad}
            frozen = {f"backbone.{name}" for name in self.backbone.state_dict() if name not in learned}
        return {name: value for name, value in self.state_dict().items() if name not in frozen}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Take up :meth:`own_state`."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        needed = self.own_state().keys() & set(missing)
        if needed or unexpected:
            raise ValueError(f"The state lacks {sorted(needed)} and has {sorted(unexpected)} too many.")


class Towers(TwoTowers):
    """Image tower f and cell-graph tower g with a projection head a scale.

    Parameters
    ----------
    n_image, n_nodes
        Width of patch features; width of node features, or of gene vectors.
    grids
        Blocks per side of each scale, fine to coarse.
    scales
        Names of the scales.
    config
        Switches of the method.
    backbone
        Image encoder in training; ``None`` where patch features come ready made.
    """

    def __init__(
        self,
        n_image: int,
        n_nodes: int,
        grids: tuple[int, ...],
        scales: tuple[str, ...],
        config: Config,
        backbone: Backbone | None = None,
    ):
        super().__init__(scales, n_nodes, config.weights(len(scales)), backbone)
        n_latent, dropout = config.n_latent, config.dropout
        start = torch.full((len(scales),), math.log(config.temperature))
        self.log_temperature = nn.Parameter(start, requires_grad=config.learn_temperature)
        self.image_tower = ImageTower(n_image, grids, 10.0 if backbone is None else math.inf)
        self.image_heads = nn.ModuleList([ProjectionHead(n_image, n_latent, dropout) for _ in grids])
        if config.cells == "genes":
            self.gene_tower = GeneVectorTower(n_nodes, len(grids), dropout)
        else:
            self.node_standardise = Standardise(n_nodes)
            self.fits_nodes = config.standardise == "training"  # otherwise they come standardised, slide by slide
            self.graph_tower = CellGraphTower(
                n_nodes,
                n_latent,
                len(grids),
                config.edges,
                config.edge_temperatures[0],
                dropout,
                config.symmetric_edges,
            )
            n_nodes = n_latent
        self.graph_heads = nn.ModuleList([ProjectionHead(n_nodes, n_latent, dropout) for _ in grids])

    @property
    def embedded(self) -> tuple[str, ...]:
        """Scales that have cell embeddings: all up to the coarsest with a loss, which passes through the finer ones."""
        if hasattr(self, "gene_tower"):
            return ()
        return self.scales[: self.scales.index(self.aligned[-1]) + 1]

    @property
    def temperatures(self) -> dict[str, Tensor]:
        """τ of each scale."""
        return dict(zip(self.scales, self.log_temperature.exp(), strict=True))

    def fit(self, patches: Tensor, cells: Tensor, n_components: int = 0) -> None:
        """Standardise by patch features ``(n, n_patches, d)`` and node features, or gene vectors, of the training tiles.

        The leading ``n_components`` node features are components of one PCA.
        """
        self.image_tower.fit(patches)
        if hasattr(self, "gene_tower"):
            self.gene_tower.standardise.fit(cells)
        elif self.fits_nodes:
            self.node_standardise.fit(cells, n_components)

    def embed_images(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Image embedding of each scale, ``(n_tiles, n_latent)``."""
        patches = batch["patches"] if "patches" in batch else self.backbone(batch["pixels"])
        pooled = self.image_tower(patches)
        return {name: head(z) for name, head, z in zip(self.scales, self.image_heads, pooled, strict=True)}

    def embed_cells(
        self, batch: dict[str, Any], sample: bool | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cell embeddings ``(n_cells, n_latent)``, if there are cells, and tile embeddings ``(n_tiles, n_latent)`` of each scale.

        ``sample`` draws edges, or weighs pairs by their probability; ``None`` draws in training only.
        """
        if "genes" in batch:
            cells, tiles = [], self.gene_tower(batch["genes"])
        else:
            x = self.node_standardise(batch["x"])
            cells, tiles = self.graph_tower(x, batch["layout"], sample)
        heads = zip(self.scales, self.graph_heads, tiles, strict=True)
        return dict(zip(self.scales, cells, strict=False)), {name: head(z) for name, head, z in heads}

    @torch.no_grad()
    def bound(self) -> None:
        """Keep a learned τ within its bounds; clamped where it is used, it would have no gradient to come back by."""
        if self.log_temperature.requires_grad:
            self.log_temperature.clamp_(math.log(COLDEST), math.log(WARMEST))

    def losses(self, out: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """InfoNCE of each scale."""
        return {s: info_nce(out["image"][s], out["transcriptome"][s], self.temperatures[s]) for s in self.scales}
