"""How well expression explains colour under a pose: weighted linear regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.tissue.frame import apply_affine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.registration.colour import ColourMap
    from sigmma_sc.registration.squares import Squares

RIDGE = 1e-3
"""Share of the components' variance that is added to it."""

LEAST_ON_TISSUE = 0.35
"""Least share of the squares on tissue: half of the cells on the image, some of them over holes."""


@dataclass(frozen=True)
class Fit:
    """Regression of colour on expression under one pose."""

    score: float  # information that expression gives about colour, in nats per square of all, larger is better
    r2: float  # share of the colour's variance that is explained, adjusted for the number of components
    on_tissue: float  # share of the squares on tissue


def tissue_weight(share: NDArray) -> NDArray:
    """Weight of squares by their share of tissue: 0 up to 0.3, 1 from 0.7 on."""
    return ((share - 0.3) / 0.4).clip(0, 1)


def score_of(r2: NDArray | float, n: NDArray | float, n_all: float, n_components: int) -> tuple[NDArray, NDArray]:
    """Score and adjusted R² of a regression on ``n`` of ``n_all`` independent squares."""
    free = np.maximum(n - n_components - 1, 1)
    adjusted = np.clip(1 - (1 - r2) * (np.maximum(n - 1, 1) / free), 0, 0.999)
    return -np.log1p(-adjusted) * n / n_all, adjusted


def explain(squares: Squares, colours: ColourMap, pose: NDArray[np.float64], overlap: float = 1.0) -> Fit:
    """Fit under a pose (µm to µm); ``overlap`` is the number of squares that hold as much as one independent square."""
    y, share = colours.at(apply_affine(pose, squares.xy))
    weight = tissue_weight(share)
    on_tissue = float(weight.mean())
    if on_tissue < LEAST_ON_TISSUE:
        return Fit(-1 + on_tissue, 0.0, on_tissue)
    explained, total = explained_variance(squares.values, y, weight)
    n = float(weight.sum()) / overlap
    score, r2 = score_of(explained / max(total, 1e-12), n, len(squares) / overlap, squares.values.shape[1])
    return Fit(float(score), float(r2), on_tissue)


def explained_variance(x: NDArray, y: NDArray, weight: NDArray) -> tuple[float, float]:
    """Sums of squares, of all channels together, that a weighted regression explains and that there are."""
    beta, x_mean, y_mean = regression(x, y, weight)
    centred = y - y_mean
    total = float((weight[:, None] * centred**2).sum())
    left = centred - (x - x_mean) @ beta
    return total - float((weight[:, None] * left**2).sum()), total


def regression(x: NDArray, y: NDArray, weight: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Coefficients ``(n_components, n_channels)`` of a weighted ridge regression, and the means of both sides."""
    total = weight.sum()
    x_mean = weight @ x / total
    y_mean = weight @ y / total
    x = x - x_mean
    weighted = x * weight[:, None]
    normal = weighted.T @ x
    normal[np.diag_indices_from(normal)] *= 1 + RIDGE
    normal[np.diag_indices_from(normal)] += 1e-9 * total
    return np.linalg.solve(normal, weighted.T @ (y - y_mean)), x_mean, y_mean
