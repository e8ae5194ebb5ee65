"""Mean and standard deviation of one slide's features, by which stain and batch are removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

FEW = 1024
"""Tiles whose patch features are summed at once."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of features, ``(d,)``, or of each patch's ``(n_patches, d)``; float32.

    Called on features, it centres and scales them.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    @classmethod
    def of(cls, values: NDArray[np.float32] | csr_matrix, n_components: int = 0) -> Moments:
        """Moments of features ``(n, d)``, as :class:`~sigmma_sc.nn.image.Standardise` takes them; a constant keeps its scale."""
        values = values.astype(np.float64)
        square = values**2 if isinstance(values, np.ndarray) else values.multiply(values)
        total = np.asarray(values.sum(axis=0)).ravel()
        moments = cls._of_sums(values.shape[0], total, np.asarray(square.sum(axis=0)).ravel())
        if n_components:
            moments.std[:n_components] = np.sqrt(moments.std[:n_components] * moments.std[:n_components].max())
        return moments

    @classmethod
    def of_patches(cls, features: torch.Tensor, index: NDArray[np.int64], sizes: list[int]) -> Moments:
        """Moments of each grid's mean over its patches, repeated for every patch of the grid.

        Features are of distinct patches, ``(n_crops, d)``; ``index`` ``(n_tiles, n_patches)`` is the crop of each patch
        of each tile, ``sizes`` the patches of each grid.
        """
        means = []
        stds = []
        for columns in np.split(index, np.cumsum(sizes)[:-1], axis=1):
            total = square = np.zeros(features.shape[1])
            for start in range(0, len(columns), FEW):
                pooled = features[columns[start : start + FEW]].double().mean(1).numpy()
                total = total + pooled.sum(0)
                square = square + (pooled**2).sum(0)
            moments = cls._of_sums(len(columns), total, square)
            means.append(moments.mean)
            stds.append(moments.std)
        return cls(np.repeat(means, sizes, axis=0), np.repeat(stds, sizes, axis=0))

    @classmethod
    def average(cls, moments: Sequence[Moments]) -> Moments:
        """Mean of the means, and root of the mean variance."""
        mean = np.mean([m.mean for m in moments], axis=0, dtype=np.float64)
        variance = np.mean([m.std.astype(np.float64) ** 2 for m in moments], axis=0)
        return cls(np.asarray(mean, np.float32), np.asarray(np.sqrt(variance), np.float32))

    @classmethod
    def _of_sums(cls, n: int, total: NDArray[np.float64], square: NDArray[np.float64]) -> Moments:
        mean = total / n
        std = np.sqrt(np.maximum(square / n - mean**2, 0))
        return cls(mean.astype(np.float32), np.where(std > 1e-6, std, 1).astype(np.float32))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Centred and scaled values, of the same shape."""
        return (values - torch.from_numpy(self.mean)).div_(torch.from_numpy(self.std))
