"""One gene vector a tile in the place of its cell graph (paper, section 6.4)."""

from __future__ import annotations

from torch import Tensor, nn

from sigmma_sc.nn.image import Standardise


class GeneVectorTower(nn.Module):
    """The tile's log-normalised pooled counts, the same at every scale.

    Parameters
    ----------
    n_genes
        Width of the vector.
    n_scales
        Number of grids.
    dropout
        Dropout of genes in training.
    """

    def __init__(self, n_genes: int, n_scales: int, dropout: float):
        super().__init__()
        self.n_scales = n_scales
        self.standardise = Standardise(n_genes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, genes: Tensor) -> list[Tensor]:
        """``(n_tiles, n_genes)`` to the same for each scale, standardised."""
        return [self.dropout(self.standardise(genes))] * self.n_scales
