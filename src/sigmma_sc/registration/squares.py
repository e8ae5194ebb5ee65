"""Expression of a section in squares: principal components of pooled counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.tissue.counts import counts_of, log_normalise

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.tissue.frame import Slide

N_COMPONENTS = 15
"""Number of principal components that colour is regressed on."""

MAX_GENES = 600
"""Number of genes, those of the largest variance, whose components are computed: others add noise and time."""

LEAST_SHARE = 0.25
"""A square with less than this share of the median square's cells is left out: its mean is noise."""


@dataclass(frozen=True)
class Squares:
    """Expression at places of a section."""

    xy: NDArray[np.float64]  # mean position of the cells of each square, µm in the frame of the cells, (n, 2)
    values: NDArray[np.float64]  # standardised components, (n, n_components)
    weight: NDArray[np.float64]  # number of cells, (n,)
    side: float  # side of the squares, µm

    def __len__(self) -> int:
        return len(self.xy)

    def take(self, some: NDArray) -> Squares:
        """Some of the squares."""
        return Squares(self.xy[some], self.values[some], self.weight[some], self.side)

    def smoothed(self, side: float) -> Squares:
        """Larger squares of ``side`` µm that overlap by half, each the weighted mean over a Gaussian as wide."""
        from scipy.ndimage import gaussian_filter

        low = self.xy.min(axis=0) - side
        pitch = max(self.side, side / 4)
        column, row = np.floor((self.xy - low) / pitch).astype(np.int64).T
        shape = row.max() + 2 + round(side / pitch), column.max() + 2 + round(side / pitch)
        sigma = side / np.sqrt(12) / pitch
        layers = []
        for layer in np.column_stack([np.ones(len(self)), self.xy, self.values]).T * self.weight:
            raster = np.bincount(row * shape[1] + column, layer, shape[0] * shape[1]).reshape(shape)
            layers.append(gaussian_filter(raster, sigma, mode="constant"))
        stack = np.stack(layers, axis=-1)
        step = max(1, round(side / 2 / pitch))
        some = stack[step // 2 :: step, step // 2 :: step].reshape(-1, stack.shape[-1])
        held = stack[row, column, 0]
        some = some[some[:, 0] > LEAST_SHARE * np.median(held)]
        means = some[:, 1:] / some[:, :1]
        area = 12 * sigma**2 * np.pi / 3
        return Squares(means[:, :2], _standardised(means[:, 2:]), some[:, 0] * area, side)


def expression_squares(slide: Slide, side: float, n_components: int = N_COMPONENTS) -> Squares:
    """Pool the counts of a slide's cells in squares of ``side`` µm, and take components of their log-normalised sums.

    The frame is that of ``slide.xy`` times the pixel size.
    """
    xy = slide.xy * slide.microns_per_pixel
    cell = np.floor((xy - xy.min(axis=0)) / side).astype(np.int64)
    _, square, weight = np.unique(
        cell[:, 1] * (cell[:, 0].max() + 1) + cell[:, 0], return_inverse=True, return_counts=True
    )
    kept = weight >= LEAST_SHARE * np.median(weight)
    pooled = _pooled(slide, square, len(weight))[kept]
    mean = np.stack([np.bincount(square, axis) / weight for axis in xy.T], axis=-1)[kept]
    return Squares(mean, _components(pooled, n_components), weight[kept].astype(float), side)


def _pooled(slide: Slide, square: NDArray[np.int64], n_squares: int) -> csr_matrix:
    """Sum of counts of the cells in each square, ``(n_squares, n_genes)``."""
    from scipy.sparse import csr_matrix

    total = csr_matrix((n_squares, slide.table.n_vars), dtype=np.float32)
    for some, counts in counts_of(slide.table, slide.rows, slide.setup.layer):
        n = some.stop - some.start
        member = csr_matrix((np.ones(n, np.float32), (square[some], np.arange(n))), shape=(n_squares, n))
        total = total + member @ counts
    return total.tocsr()


def _components(pooled: csr_matrix, n_components: int) -> NDArray[np.float64]:
    """Standardised principal components of log-normalised counts."""
    from sklearn.decomposition import PCA

    totals = np.asarray(pooled.sum(axis=1)).ravel()
    logs = log_normalise(pooled, float(np.median(totals)))
    mean = np.asarray(logs.mean(axis=0)).ravel()
    variance = np.asarray(logs.multiply(logs).mean(axis=0)).ravel() - mean**2
    varied = np.sort(np.argsort(-variance, kind="stable")[:MAX_GENES])
    logs = logs[:, varied].toarray()
    n_components = max(1, min(n_components, min(logs.shape) - 1))
    solver = "covariance_eigh" if logs.shape[0] > logs.shape[1] else "full"
    components = PCA(n_components, svd_solver=solver).fit_transform(logs.astype(np.float64))
    return _standardised(components)


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
