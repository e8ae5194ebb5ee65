"""Two towers, one dict out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sigmma_sc.nn.cellgraph import CellGraphTower
from sigmma_sc.nn.image import ImageTower, Standardise
from sigmma_sc.nn.losses import info_nce


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


class Towers(nn.Module):
    """Image tower f and cell-graph tower g with a projection head a scale.

    Parameters
    ----------
    n_image, n_nodes
        Width of patch features and of node features.
    grids
        Blocks per side of each scale, fine to coarse.
    scales
        Names of the scales.
    n_latent
        Width of the shared space, and of the cell embeddings.
    edges, edge_temperature
        See :class:`~sigmma_sc.nn.cellgraph.CellGraphTower`.
    dropout
        Dropout in heads and on node features.
    temperature
        τ of InfoNCE; 0.07 is the usual value (our choice, the paper is silent).
    """

    def __init__(
        self,
        n_image: int,
        n_nodes: int,
        grids: tuple[int, ...],
        scales: tuple[str, ...],
        n_latent: int = 128,
        edges: str = "sampled",
        edge_temperature: float = 1.0,
        dropout: float = 0.1,
        temperature: float = 0.07,
    ):
        super().__init__()
        self.scales = scales
        self.temperature = temperature
        self.image_tower = ImageTower(n_image, grids)
        self.node_standardise = Standardise(n_nodes)
        self.graph_tower = CellGraphTower(n_nodes, n_latent, len(grids), edges, edge_temperature, dropout)
        self.image_heads = nn.ModuleList([ProjectionHead(n_image, n_latent, dropout) for _ in grids])
        self.graph_heads = nn.ModuleList([ProjectionHead(n_latent, n_latent, dropout) for _ in grids])

    def embed_images(self, patches: Tensor) -> dict[str, Tensor]:
        """Image embedding of each scale, ``(n_tiles, n_latent)``."""
        pooled = self.image_tower(patches)
        return {name: head(z) for name, head, z in zip(self.scales, self.image_heads, pooled, strict=True)}

    def embed_cells(self, x: Tensor, buckets: list, n_tiles: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cell embeddings ``(n_cells, n_latent)`` and tile embeddings ``(n_tiles, n_latent)`` of each scale."""
        cells, tiles = self.graph_tower(self.node_standardise(x), buckets, n_tiles)
        heads = zip(self.scales, self.graph_heads, tiles, strict=True)
        return dict(zip(self.scales, cells, strict=True)), {name: head(z) for name, head, z in heads}

    def forward(self, batch: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
        """Embed a batch of paired tiles in both towers."""
        cells, transcriptome = self.embed_cells(batch["x"], batch["buckets"], len(batch["patches"]))
        return {"image": self.embed_images(batch["patches"]), "transcriptome": transcriptome, "cells": cells}

    def losses(self, out: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """InfoNCE of each scale; the objective is their sum (paper, section 5.3)."""
        return {s: info_nce(out["image"][s], out["transcriptome"][s], self.temperature) for s in self.scales}
