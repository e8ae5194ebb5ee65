"""Intervals by bootstrap over spatial blocks, and paired differences between methods.

Neighbouring tiles are alike, so tiles are not drawn one by one: whole squares of them are, jointly for all methods and for all seeds in whose
test tiles they lie. Ranks stay those in the full pool. What is drawn is tissue, so that an interval tells what other tissue of the
same slides could have given; it does not tell of other slides or patients.

An interval is the value ± 1.96 standard deviations of the draws. Their percentiles would not do: a correlation across tiles of few blocks is lower
than across all of them, for blocks differ, so that nearly all draws lie below the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc.benchmark.scores import DIRECTIONS, heads_of, slides_of, whole_scale
from sigmma_sc.metrics.expression import CONSTANT
from sigmma_sc.metrics.retrieval import PERCENTS, within_percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sigmma_sc.benchmark.trial import Cell

N_DRAWS = 1000
NORMAL = 1.959964
"""Half the width of a 95 % interval in standard deviations."""
COLUMNS = [
    "method", "metric", "value", "low", "high", "sd", "difference", "difference_low", "difference_high", "n_seeds", "n_blocks",
]  # fmt: skip


def intervals_table(cells: Sequence[Cell], n_draws: int = N_DRAWS) -> pd.DataFrame:
    """Mean over seeds and slides of each figure, with its 95 % interval, and that of the difference from the first method.

    Parameters
    ----------
    cells
        Of one data set and split, the first method's first.
    n_draws
        Draws of the bootstrap.

    Returns
    -------
    One row a method and metric: ``value``, ``low``, ``high``; ``sd`` over seeds; ``difference`` from the first method on the seeds
    that both have, with ``difference_low`` and ``difference_high``; ``n_seeds``, ``n_blocks``.
    """
    blocks = np.unique(np.concatenate([cell.arrays["block"] for cell in cells]))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), size=n_draws)
    weights = np.concatenate([np.ones((1, len(blocks)), int), drawn]).astype(float)  # first the tissue as it is
    by_method: dict[str, dict[int, dict[str, NDArray]]] = {}
    for cell in cells:
        by_method.setdefault(cell.meta["method"], {})[cell.meta["seed"]] = _of_cell(cell, blocks, weights)
    first = next(iter(by_method.values()))
    rows = []
    for method, seeds in by_method.items():
        for metric in next(iter(seeds.values())):
            own = {seed: values[metric] for seed, values in seeds.items() if metric in values}
            row = {"method": method, "metric": metric, **_interval(list(own.values()))}
            row |= {"sd": np.std([v[0] for v in own.values()], ddof=1) if len(own) > 1 else np.nan}
            shared = [seed for seed in own if metric in first.get(seed, {})]
            if seeds is not first and shared:
                apart = _interval([own[seed] - first[seed][metric] for seed in shared])
                names = {"value": "difference", "low": "difference_low", "high": "difference_high"}
                row |= {names[key]: value for key, value in apart.items()}
            rows.append({**row, "n_seeds": len(own), "n_blocks": len(blocks)})
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _interval(values: list[NDArray]) -> dict[str, float]:
    """Mean over seeds, and its interval."""
    mean = _nanmean(np.stack(values))
    drawn = mean[1:][np.isfinite(mean[1:])]
    half = NORMAL * drawn.std(ddof=1) if len(drawn) > 1 else np.nan
    return {"value": float(mean[0]), "low": float(mean[0] - half), "high": float(mean[0] + half)}


def _of_cell(cell: Cell, blocks: NDArray, weights: NDArray) -> dict[str, NDArray]:
    """Each figure for each draw, ``(1 + n_draws,)``, mean over slides."""
    parts: dict[str, list[NDArray]] = {}
    for _, tiles in slides_of(cell):
        own, place = np.unique(cell.arrays["block"][tiles], return_inverse=True)
        times = weights[:, np.searchsorted(blocks, own)]
        member = np.zeros((len(own), len(tiles)))
        member[place, np.arange(len(tiles))] = 1
        n = times @ member.sum(axis=1)
        scale = whole_scale(cell)
        for direction in DIRECTIONS if scale is not None and len(tiles) > 1 else ():
            ranks = cell.arrays[f"rank|{direction}|{scale}"][tiles]
            hits = np.stack([within_percent(ranks, len(tiles), p) for p in PERCENTS], axis=1)
            recall = _share(times @ (member @ hits), n[:, None])
            for k, p in enumerate(PERCENTS):
                parts.setdefault(f"recall@{p}% {direction}", []).append(recall[:, k])
            parts.setdefault(f"mean recall {direction}", []).append(recall.mean(axis=1))
        for head, target, predicted, _ in heads_of(cell, tiles):
            pcc, mse = _weighted(times, member, n, target, predicted)
            parts.setdefault(f"pcc {head}", []).append(pcc)
            parts.setdefault(f"mse {head}", []).append(mse)
    return {name: _nanmean(np.stack(values)) for name, values in parts.items()}


def _weighted(times: NDArray, member: NDArray, n: NDArray, y: NDArray, p: NDArray) -> tuple[NDArray, NDArray]:
    """Mean over genes of Pearson correlation, where it is defined, and of the squared error, for each draw of blocks."""
    # Around the middle, so that squares do not cancel.
    y, p = y - y.mean(axis=0), p - y.mean(axis=0)
    my, mp, yy, pp, yp = (_share(times @ (member @ x), n[:, None]) for x in (y, p, y * y, p * p, y * p))
    vy, vp = yy - my**2, pp - mp**2
    floor = CONSTANT * max(np.nanmax(yy), np.nanmax(pp))  # draws without any of these tiles are NaN
    with np.errstate(invalid="ignore", divide="ignore"):
        pcc = np.where((vy > floor) & (vp > floor), (yp - my * mp) / np.sqrt(vy * vp), np.nan)
    return _nanmean(pcc.T), (yy - 2 * yp + pp).mean(axis=1)


def _share(total: NDArray, n: NDArray) -> NDArray:
    """Mean of what was drawn; NaN where nothing was."""
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)


def _nanmean(values: NDArray) -> NDArray:
    """Mean over the first axis of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    return _share(np.where(known, values, 0).sum(axis=0), known.sum(axis=0))
