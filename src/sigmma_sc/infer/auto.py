"""Which part predicts a gene best: chosen on validation tiles, and judged on those that had no say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import SetupError
from sigmma_sc.metrics.expression import pearson

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MEAN = "mean"
"""The part that predicts the mean of the training tiles: chosen where no other is expected to correlate."""

MOST_FOLDS = 5
FEWEST_IN_FOLD = 5
"""Tiles of which a correlation tells more than its sign."""

LARGEST = 0.999
"""Correlation beyond which Fisher's z is not followed to infinity."""


def folds_of(blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Fold of each validation tile, ``(n,)``, from its spatial block: whole blocks, the folds about equally large.

    Tiles of one block alone are halved in their order. Too few tiles for two folds raise :class:`SetupError`.
    """
    if len(blocks) < 2 * FEWEST_IN_FOLD:
        raise SetupError(
            f"method='auto' chooses on validation tiles and needs {2 * FEWEST_IN_FOLD}, the model has {len(blocks)}. Train with a "
            "split that holds more out, or name a method: 'retrieval' or 'ridge'."
        )
    names, sizes = np.unique(blocks, return_counts=True)
    for n_folds in range(min(MOST_FOLDS, len(names)), 1, -1):
        filled = np.zeros(n_folds, int)
        fold = np.empty(len(names), int)
        for k in np.argsort(-sizes, kind="stable"):
            fold[k] = filled.argmin()
            filled[fold[k]] += sizes[k]
        if filled.min() >= FEWEST_IN_FOLD:
            return fold[np.searchsorted(names, blocks)]
    return (np.arange(len(blocks)) >= len(blocks) // 2).astype(int)


def fold_scores(
    measured: NDArray[np.float64],
    predicted: Mapping[str, NDArray[np.float64]],
    folds: NDArray[np.int64],
    slide: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Fisher's z of the correlation within slides, ``(n_folds, n_genes, n_parts)``; NaN where it is undefined.

    ``measured`` and each of ``predicted`` are ``(n, n_genes)``, ``folds`` and ``slide`` ``(n,)``.
    """
    scores = []
    for k in np.unique(folds):
        here = folds == k
        truth = _within(measured[here], slide[here])
        of_parts = [pearson(truth, _within(values[here], slide[here])) for values in predicted.values()]
        scores.append(np.stack(of_parts, axis=1))
    return np.arctanh(np.clip(np.stack(scores), -LARGEST, LARGEST))


def _within(values: NDArray[np.float64], slide: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values without the mean of their slide."""
    out = np.empty_like(values)
    for s in np.unique(slide):
        out[slide == s] = values[slide == s] - values[slide == s].mean(axis=0)
    return out


def choose(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Part with the highest expected score for each gene, ``(n_genes,)``; -1 where none is above 0.

    A gene's own score is pulled towards the mean over genes, as far as folds disagree about how genes differ (empirical
    Bayes). Where genes differ by chance alone, all take the part that is best on average.
    """
    n_folds, n_genes, n_parts = scores.shape
    average = np.nanmean(scores, axis=(0, 1))
    level = _mean(scores, axis=2)  # of a gene, over parts
    expected = np.tile(average, (n_genes, 1)) + _pulled(level - np.nanmean(level))[:, None]
    for m in range(n_parts):
        own = scores[:, :, m] - level
        expected[:, m] += _pulled(own - np.nanmean(own))
    return np.where(expected.max(axis=1) > 0, expected.argmax(axis=1), -1)


def _pulled(deviations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over folds of deviations ``(n_folds, n_genes)``, times the share of its variance that is not noise."""
    known = np.isfinite(deviations)
    n = known.sum(axis=0)
    mean = np.nan_to_num(_mean(deviations, axis=0))
    several = n >= 2
    if several.sum() < 2:
        return np.zeros(len(mean))  # one fold tells nothing of noise
    squares = np.where(known, deviations - mean, 0) ** 2
    noise = (squares.sum(axis=0)[several] / (n[several] - 1) / n[several]).mean()
    variance = mean[several].var()
    share = max(0.0, 1 - noise / variance) if variance > 0 else 0.0
    return share * mean


def _mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean of the values that are not NaN; NaN where all are."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=axis)
    n = known.sum(axis=axis)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def chosen_apart(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Choice for each fold by the others alone, ``(n_folds, n_genes)``."""
    return np.stack([choose(np.delete(scores, k, axis=0)) for k in range(len(scores))])


def picked(
    parts: Mapping[str, NDArray[np.float32]], choice: NDArray[np.int64], mean: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Prediction ``(n, n_genes)`` of each gene by its part, or its mean ``(n_genes,)`` where the choice is -1."""
    values = list(parts.values())
    out = np.tile(mean, (len(values[0]), 1))
    for m, predicted in enumerate(values):
        out[:, choice == m] = predicted[:, choice == m]
    return out
