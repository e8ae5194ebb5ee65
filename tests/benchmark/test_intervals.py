import dataclasses

import numpy as np
import pandas as pd
import pytest

from sigmma_sc.benchmark.intervals import intervals_table
from sigmma_sc.benchmark.trial import RankKey
from sigmma_sc.metrics.expression import pearson
from sigmma_sc.metrics.retrieval import recall_at_percent

TO_CELLS = RankKey("image→transcriptome", "macro")


def expression_of(trial, head="default"):
    """Target and prediction in float64."""
    expression = trial.expression[head]
    return expression.target.astype(float), expression.predicted[head].astype(float)


def test_values_are_those_of_the_metrics(make_trial):
    trials = [make_trial(seed=seed, slides=2) for seed in range(3)]
    table = intervals_table(trials, n_draws=50).set_index("metric")
    recall, pcc, mse = [], [], []
    for trial in trials:
        y, p = expression_of(trial)
        for slide in ("s0", "s1"):
            tiles = trial.slide == slide
            recall.append(recall_at_percent(trial.ranks[TO_CELLS][tiles], tiles.sum())[10])
            pcc.append(pearson(y[tiles], p[tiles]).mean())
            mse.append(((y[tiles] - p[tiles]) ** 2).mean())
    assert table.value["recall@10% image→transcriptome"] == pytest.approx(np.mean(recall), abs=1e-12)
    assert table.value["pcc default"] == pytest.approx(np.mean(pcc), abs=1e-10)
    assert table.value["mse default"] == pytest.approx(np.mean(mse), abs=1e-10)
    assert table.sd["pcc default"] == pytest.approx(np.std(np.reshape(pcc, (3, 2)).mean(1), ddof=1), abs=1e-10)
    assert set(table.n_seeds) == {3}


def test_intervals_against_drawing_tiles_of_blocks_by_hand(make_trial, rng):
    """The bootstrap written out: draw blocks, lay their tiles side by side, score those."""
    trial = make_trial(n=80, n_blocks=10)
    table = intervals_table([trial], n_draws=4000).set_index("metric")
    names = np.unique(trial.block)
    ranks = trial.ranks[TO_CELLS]
    y, p = expression_of(trial)
    recall, pcc = [], []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(trial.block == block) for block in rng.choice(names, len(names))])
        recall.append(np.mean(ranks[rows] <= np.ceil(0.15 * 80)))
        pcc.append(pearson(y[rows], p[rows]).mean())
    for metric, draws in (("recall@15% image→transcriptome", recall), ("pcc default", pcc)):
        half = 1.959964 * np.std(draws)
        assert table.high[metric] - table.value[metric] == pytest.approx(half, rel=0.06)
        assert table.value[metric] - table.low[metric] == pytest.approx(half, rel=0.06)


def test_intervals_cover_what_they_should(make_trial, rng):
    """Of independent blocks with a true recall of a half, 95 % of the intervals hold the half."""
    covered = []
    for _ in range(200):
        trial = make_trial(n=100, n_blocks=25)
        hit = rng.random(25) < 0.5
        found = hit[[int(block.split("#")[1]) for block in trial.block]]  # blocks are hit or missed as a whole
        trial.ranks[TO_CELLS] = np.where(found, 1, 100)
        row = intervals_table([trial], n_draws=200).set_index("metric").loc["recall@5% image→transcriptome"]
        covered.append(row.low <= 0.5 <= row.high)
    assert 0.88 <= np.mean(covered) <= 0.99


def test_differences_are_paired(make_trial):
    """Two methods that fail on the same tissue differ by less than their own intervals say."""
    first = [make_trial(method="a", seed=seed) for seed in range(4)]
    better, same = [], []
    for trial in first:
        ranks = {key: np.clip(values - 3, 1, None) for key, values in trial.ranks.items()}
        meta = dataclasses.replace(trial.meta, method="b")
        better.append(dataclasses.replace(trial, meta=meta, ranks=ranks))
        same.append(dataclasses.replace(trial, meta=dataclasses.replace(trial.meta, method="c")))
    table = intervals_table(first + better + same).set_index(["method", "metric"])
    apart = table.loc["b", "recall@10% image→transcriptome"]
    assert apart.difference == pytest.approx(apart.value - table.loc["a", "recall@10% image→transcriptome"].value)
    assert 0 < apart.difference_low < apart.difference < apart.difference_high
    assert apart.difference_high - apart.difference_low < apart.high - apart.low
    for metric in ("recall@10% image→transcriptome", "pcc hest"):
        assert table.loc["c", metric][["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]
    assert pd.isna(table.loc["a", "pcc default"].difference)


def test_differences_are_of_the_seeds_that_both_have(make_trial):
    first, second = [make_trial(method="a", seed=seed) for seed in (0, 1)], make_trial(method="b", seed=1)
    table = intervals_table([*first, second], n_draws=20).set_index(["method", "metric"])
    alone = intervals_table([first[1], second], n_draws=20).set_index(["method", "metric"])
    row = table.loc["b", "pcc default"]
    assert row.difference == pytest.approx(alone.loc["b", "pcc default"].difference)
    assert row.n_seeds == 1
    assert pd.isna(row.sd)
    other = intervals_table([first[0], second], n_draws=20).set_index(["method", "metric"])
    assert pd.isna(other.loc["b", "pcc default"].difference)


def test_draws_that_miss_all_test_tiles_of_a_seed(make_trial):
    """Of twenty blocks a seed tests on one: some draws hold none of it, and say nothing of it."""
    trials = [dataclasses.replace(make_trial(seed=k, n=20), block=np.full(20, f"s0#{k}")) for k in range(20)]
    table = intervals_table(trials, n_draws=100).set_index("metric")
    pcc = [pearson(*expression_of(trial, "hest")).mean() for trial in trials]
    assert table.value["pcc hest"] == pytest.approx(np.mean(pcc), abs=1e-6)
    assert table.sd["pcc hest"] == pytest.approx(np.std(pcc, ddof=1), abs=1e-6)
    assert table.low["pcc hest"] < table.value["pcc hest"] < table.high["pcc hest"]


def test_a_prediction_without_variance_has_no_correlation(make_trial):
    trial = make_trial()
    trial.expression["default"].predicted["default"][:] = 0.3
    table = intervals_table([trial], n_draws=20).set_index("metric")
    assert np.isnan(table.value["pcc default"])
    assert np.isfinite(table.value["mse default"])
