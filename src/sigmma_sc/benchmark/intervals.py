"""Intervals by bootstrap over spatial blocks, and paired differences between methods.

Neighbouring tiles are alike, so tiles are not drawn one by one: whole squares of them are, jointly for all methods and for all seeds in whose
test tiles they lie. Ranks stay those in the full pool. What is drawn is tissue, so that an interval tells what other tissue of the
same slides could have given; it does not tell of other slides or patients.

An interval is the value ± 1.96 standard deviations of the draws. Their percentiles would not do: a correlation across tiles of few blocks is lower
than across all of them, for blocks differ, so that nearly all draws lie below the value.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sigmma_sc.benchmark.scores import DIRECTIONS, Prediction, predictions_of, slides_of, whole_scale
from sigmma_sc.benchmark.trial import RankKey, Trial
from sigmma_sc.metrics.expression import CONSTANT
from sigmma_sc.metrics.retrieval import PERCENTS, within_percent

N_DRAWS = 1000
NORMAL = 1.959964
"""Half the width of a 95 % interval in standard deviations."""
COLUMNS = [
    "method", "metric", "value", "low", "high", "sd", "difference", "difference_low", "difference_high", "n_seeds", "n_blocks",
]  # fmt: skip


def intervals_table(trials: Sequence[Trial], n_draws: int = N_DRAWS) -> pd.DataFrame:
    """Mean over seeds and slides of each figure and of its difference from the first method, with 95 % intervals.

    ``trials`` are of one data set and split, the first method's first. There is one row a method and metric: ``value``,
    ``low``, ``high``; ``sd`` over seeds; ``difference`` on the seeds that both methods have, with ``difference_low``
    and ``difference_high``; ``n_seeds``, ``n_blocks``.
    """
    blocks = np.unique(np.concatenate([trial.block for trial in trials]))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), size=n_draws)
    weights = np.concatenate([np.ones((1, len(blocks)), int), drawn]).astype(float)  # first the tissue as it is
    by_method: dict[str, dict[int, dict[str, NDArray]]] = {}
    for trial in trials:
        by_method.setdefault(trial.meta.method, {})[trial.meta.seed] = _figures(trial, blocks, weights)
    first = next(iter(by_method.values()))
    rows = []
    for method, seeds in by_method.items():
        for metric in next(iter(seeds.values())):
            values = {seed: figures[metric] for seed, figures in seeds.items() if metric in figures}
            row = {"method": method, "metric": metric, **_interval(list(values.values()))}
            row["sd"] = np.std([draws[0] for draws in values.values()], ddof=1) if len(values) > 1 else np.nan
            if seeds is not first:
                of_first = {seed: figures[metric] for seed, figures in first.items() if metric in figures}
                row |= _difference(values, of_first)
            rows.append({**row, "n_seeds": len(values), "n_blocks": len(blocks)})
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _interval(values: list[NDArray]) -> dict[str, float]:
    """Mean over seeds, and its interval."""
    mean = _nanmean(np.stack(values))
    drawn = mean[1:][np.isfinite(mean[1:])]
    half = NORMAL * drawn.std(ddof=1) if len(drawn) > 1 else np.nan
    return {"value": float(mean[0]), "low": float(mean[0] - half), "high": float(mean[0] + half)}


def _difference(values: dict[int, NDArray], first: dict[int, NDArray]) -> dict[str, float]:
    """Difference from the first method on the seeds of both, and its interval; nothing without such a seed."""
    paired = [values[seed] - first[seed] for seed in values if seed in first]
    if not paired:
        return {}
    interval = _interval(paired)
    return {"difference": interval["value"], "difference_low": interval["low"], "difference_high": interval["high"]}


def _figures(trial: Trial, blocks: NDArray, weights: NDArray) -> dict[str, NDArray]:
    """Each figure of a trial for each draw, ``(1 + n_draws,)``, mean over slides."""
    parts: dict[str, list[NDArray]] = {}
    for _, tiles in slides_of(trial):
        names, place = np.unique(trial.block[tiles], return_inverse=True)
        times = weights[:, np.searchsorted(blocks, names)]
        member = np.zeros((len(names), len(tiles)))
        member[place, np.arange(len(tiles))] = 1
        draws = _Draws(times, member, times @ member.sum(axis=1))
        for metric, values in _recalls(trial, tiles, draws).items():
            parts.setdefault(metric, []).append(values)
        for prediction in predictions_of(trial, tiles):
            pcc, mse = _weighted(prediction, draws)
            parts.setdefault(f"pcc {prediction.head}", []).append(pcc)
            parts.setdefault(f"mse {prediction.head}", []).append(mse)
    return {metric: _nanmean(np.stack(values)) for metric, values in parts.items()}


@dataclass(frozen=True)
class _Draws:
    """Draws of the blocks of one slide."""

    times: NDArray[np.float64]  # how often each block was drawn, (1 + n_draws, n_blocks)
    member: NDArray[np.float64]  # 1 where a tile lies in a block, (n_blocks, n_tiles)
    n: NDArray[np.float64]  # tiles drawn, (1 + n_draws,)

    def mean(self, values: NDArray) -> NDArray[np.float64]:
        """Mean over the tiles drawn of values ``(n_tiles, k)``, ``(1 + n_draws, k)``."""
        return _share(self.times @ (self.member @ values), self.n[:, None])


def _recalls(trial: Trial, tiles: NDArray[np.intp], draws: _Draws) -> dict[str, NDArray]:
    scale = whole_scale(trial)
    if scale is None or len(tiles) < 2:
        return {}
    figures = {}
    for direction in DIRECTIONS:
        ranks = trial.ranks[RankKey(direction, scale)][tiles]
        hits = np.stack([within_percent(ranks, len(tiles), p) for p in PERCENTS], axis=1)
        recall = draws.mean(hits)
        for k, p in enumerate(PERCENTS):
            figures[f"recall@{p}% {direction}"] = recall[:, k]
        figures[f"mean recall {direction}"] = recall.mean(axis=1)
    return figures


def _weighted(prediction: Prediction, draws: _Draws) -> tuple[NDArray, NDArray]:
    """Mean over genes of Pearson correlation, where it is defined, and of the squared error, for each draw of blocks."""
    # Around the middle, so that squares do not cancel.
    middle = prediction.target.mean(axis=0)
    y, p = prediction.target - middle, prediction.predicted - middle
    mean_y, mean_p = draws.mean(y), draws.mean(p)
    mean_yy, mean_pp, mean_yp = draws.mean(y * y), draws.mean(p * p), draws.mean(y * p)
    var_y, var_p = mean_yy - mean_y**2, mean_pp - mean_p**2
    floor = CONSTANT * max(np.nanmax(mean_yy), np.nanmax(mean_pp))  # draws without any of these tiles are NaN
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = (mean_yp - mean_y * mean_p) / np.sqrt(var_y * var_p)
    pcc = np.where((var_y > floor) & (var_p > floor), correlation, np.nan)
    return _nanmean(pcc.T), (mean_yy - 2 * mean_yp + mean_pp).mean(axis=1)


def _share(total: NDArray, n: NDArray) -> NDArray:
    """Mean of what was drawn; NaN where nothing was."""
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)


def _nanmean(values: NDArray) -> NDArray:
    """Mean over the first axis of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    return _share(np.where(known, values, 0).sum(axis=0), known.sum(axis=0))
