"""Image tower: patch features of every grid to one embedding a scale (paper, section 5.1)."""

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Fixed standardisation of features, fitted on training data and stored with the weights.

    Beyond ``bound`` standard deviations from the mean a feature has no gradient.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, n_features: int, bound: float = 10.0):
        super().__init__()
        self.bound = bound
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))

    @torch.no_grad()
    def fit(self, features: Tensor, n_components: int = 0) -> None:
        """Take mean and standard deviation from ``(n, d)``; a constant feature keeps scale 1.

        The leading ``n_components`` are components of one PCA. They are scaled by the geometric mean of their own deviation and
        the largest. Scaled each by its own, noise would weigh as much as signal; scaled all by one, only the first would count.
        """
        features = features.double()
        self.mean.copy_(features.mean(0))
        std = features.std(0, correction=0)
        if n_components:
            std[:n_components] = (std[:n_components] * std[:n_components].max()).sqrt()
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Centre, scale, and bound outliers."""
        return ((features.float() - self.mean) / self.std).clamp(-self.bound, self.bound)


class ImageTower(nn.Module):
    """Mean over each grid's patch embeddings; features in training, which may move, have no ``bound`` of outliers."""

    def __init__(self, n_features: int, grids: tuple[int, ...], bound: float = 10.0):
        super().__init__()
        self.sizes = [b * b for b in grids]
        self.standardise = nn.ModuleList([Standardise(n_features, bound) for _ in grids])

    def fit(self, patches: Tensor) -> None:
        """Fit the standardisation on the pooled features of training tiles ``(n_tiles, n_patches, d)``."""
        for part, standardise in zip(patches.split(self.sizes, dim=1), self._of_grids(), strict=True):
            standardise.fit(part.float().mean(1))

    def forward(self, patches: Tensor) -> list[Tensor]:
        """``(n_tiles, n_patches, d)``, patches in the order of the grids, to ``(n_tiles, d)`` for each scale."""
        parts = patches.split(self.sizes, dim=1)
        return [standardise(part.float().mean(1)) for part, standardise in zip(parts, self._of_grids(), strict=True)]

    def _of_grids(self) -> list[Standardise]:
        return [module for module in self.standardise if isinstance(module, Standardise)]
