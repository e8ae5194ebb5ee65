"""A transcriptome tower without cell graph: one profile a tile (paper, section 6.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from sigmma_sc.nn.dropout import Dropout
from sigmma_sc.nn.image import Standardise

if TYPE_CHECKING:
    from sigmma_sc.nn.part import Part


class PseudobulkTower(nn.Module):
    """The tile's log-normalised pooled counts, the same at every scale; dropout of genes in training."""

    embeds_cells = False

    def __init__(self, n_features: int, n_scales: int, dropout: float):
        super().__init__()
        self.n_scales = n_scales
        self.n_output = n_features
        self.standardise = Standardise(n_features)
        self.dropout = Dropout(dropout)

    def fit(self, features: Tensor, n_components: int = 0) -> None:
        """Standardise by the profiles of training tiles ``(n, d)``."""
        self.standardise.fit(features)

    def forward(self, part: Part, sample: bool | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """No cells, and the standardised profiles ``(n_tiles, d)`` for each scale."""
        profiles = self.dropout(self.standardise(part["profiles"]))
        return [], [profiles] * self.n_scales
