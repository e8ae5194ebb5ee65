import numpy as np
import pandas as pd
import pytest

from sigmma_sc.benchmark.intervals import intervals_table
from sigmma_sc.benchmark.scores import results_table, stability_table
from sigmma_sc.benchmark.trial import Cell
from sigmma_sc.metrics.expression import pearson
from sigmma_sc.metrics.retrieval import recall_at_percent


def cell(rng, method="a", seed=0, n=60, n_blocks=12, shift=0, noise=1.0, slides=1):
    """A cell of ``n`` tiles a slide in blocks, with ranks and predictions drawn."""
    slide = np.repeat([f"s{k}" for k in range(slides)], n)
    block = np.concatenate([[f"s{k}#{b}" for b in rng.integers(0, n_blocks, n)] for k in range(slides)])
    target = rng.normal(size=(n * slides, 5))
    arrays = {"slide": slide, "block": block}
    for direction in ("image→transcriptome", "transcriptome→image"):
        ranks = np.concatenate([np.clip(rng.permutation(n) + 1 - shift, 1, n) for _ in range(slides)])
        arrays[f"rank|{direction}|macro"] = ranks
    for head in ("default", "hest"):
        arrays |= {
            f"genes|{head}": np.array(list("vwxyz")),
            f"target|{head}": target.astype(np.float32),
            f"mean|{head}": np.zeros(5, np.float32),
            f"predicted|{head}": (target + noise * rng.normal(size=target.shape)).astype(np.float32),
        }
    meta = {"dataset": "d", "split": "blocks", "method": method, "seed": seed, "n_train": 10}
    return Cell(meta, arrays)


def test_values_are_those_of_the_metrics(rng):
    cells = [cell(rng, seed=s, slides=2) for s in range(3)]
    table = intervals_table(cells, n_draws=50).set_index("metric")
    recall, pcc, mse = [], [], []
    for c in cells:
        for k in range(2):
            t = c.arrays["slide"] == f"s{k}"
            recall.append(recall_at_percent(c.arrays["rank|image→transcriptome|macro"][t], t.sum())[10])
            y, p = (c.arrays[name][t].astype(float) for name in ("target|default", "predicted|default"))
            pcc.append(pearson(y, p).mean())
            mse.append(((y - p) ** 2).mean())
    assert table.value["recall@10% image→transcriptome"] == pytest.approx(np.mean(recall), abs=1e-12)
    assert table.value["pcc default"] == pytest.approx(np.mean(pcc), abs=1e-10)
    assert table.value["mse default"] == pytest.approx(np.mean(mse), abs=1e-10)
    assert table.sd["pcc default"] == pytest.approx(np.std(np.reshape(pcc, (3, 2)).mean(1), ddof=1), abs=1e-10)
    tidy = results_table(cells)
    both = tidy[tidy.metric == "recall@10% image→transcriptome"]
    np.testing.assert_allclose(both.value, recall)
    assert both.chance.unique() == pytest.approx([0.1])


def test_intervals_against_drawing_tiles_of_blocks_by_hand(rng):
    """The bootstrap written out: draw blocks, lay their tiles side by side, score those."""
    c = cell(rng, n=80, n_blocks=10)
    table = intervals_table([c], n_draws=4000).set_index("metric")
    names = np.unique(c.arrays["block"])
    ranks = c.arrays["rank|image→transcriptome|macro"]
    y, p = (c.arrays[name].astype(float) for name in ("target|default", "predicted|default"))
    recall, pcc = [], []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(c.arrays["block"] == b) for b in rng.choice(names, len(names))])
        recall.append(np.mean(ranks[rows] <= np.ceil(0.15 * 80)))
        pcc.append(pearson(y[rows], p[rows]).mean())
    for metric, draws in (("recall@15% image→transcriptome", recall), ("pcc default", pcc)):
        half = 1.959964 * np.std(draws)
        assert table.high[metric] - table.value[metric] == pytest.approx(half, rel=0.06)
        assert table.value[metric] - table.low[metric] == pytest.approx(half, rel=0.06)


def test_intervals_cover_what_they_should(rng):
    """Of independent blocks with a true recall of a half, 95 % of the intervals hold the half."""
    covered = []
    for _ in range(200):
        c = cell(rng, n=100, n_blocks=25)
        hit = rng.random(25) < 0.5
        found = hit[[int(b.split("#")[1]) for b in c.arrays["block"]]]  # blocks are hit or missed as a whole
        c.arrays["rank|image→transcriptome|macro"] = np.where(found, 1, 100)
        row = intervals_table([c], n_draws=200).set_index("metric").loc["recall@5% image→transcriptome"]
        covered.append(row.low <= 0.5 <= row.high)
    assert 0.88 <= np.mean(covered) <= 0.99


def test_differences_are_paired(rng):
    """Two methods that fail on the same tissue differ by less than their own intervals say."""
    first = [cell(rng, "a", seed=s) for s in range(4)]
    second = []
    for c in first:
        better = {k: np.clip(v - 3, 1, None) if k.startswith("rank") else v for k, v in c.arrays.items()}
        second.append(Cell({**c.meta, "method": "b"}, better))
    same = [Cell({**c.meta, "method": "c"}, c.arrays) for c in first]
    table = intervals_table(first + second + same).set_index(["method", "metric"])
    apart = table.loc["b", "recall@10% image→transcriptome"]
    assert apart.difference == pytest.approx(apart.value - table.loc["a", "recall@10% image→transcriptome"].value)
    assert 0 < apart.difference_low < apart.difference < apart.difference_high
    assert apart.difference_high - apart.difference_low < apart.high - apart.low
    for metric in ("recall@10% image→transcriptome", "pcc hest"):
        assert table.loc["c", metric][["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]
    assert pd.isna(table.loc["a", "pcc default"].difference)


def test_draws_that_miss_all_test_tiles_of_a_seed(rng):
    """Of twenty blocks a seed tests on one: some draws hold none of it, and say nothing of it."""
    cells = [cell(rng, seed=s, n=20) for s in range(20)]
    for c in cells:
        c.arrays["block"] = np.full(20, f"s0#{c.meta['seed']}")
    table = intervals_table(cells, n_draws=100).set_index("metric")
    own = [pearson(*(c.arrays[k].astype(float) for k in ("target|hest", "predicted|hest"))).mean() for c in cells]
    assert table.value["pcc hest"] == pytest.approx(np.mean(own), abs=1e-6)
    assert table.sd["pcc hest"] == pytest.approx(np.std(own, ddof=1), abs=1e-6)
    assert table.low["pcc hest"] < table.value["pcc hest"] < table.high["pcc hest"]


def test_a_prediction_without_variance_has_no_correlation(rng):
    c = cell(rng)
    c.arrays["predicted|default"][:] = 0.3
    table = intervals_table([c], n_draws=20).set_index("metric")
    assert np.isnan(table.value["pcc default"])
    assert np.isfinite(table.value["mse default"])


def test_stability_of_niches(rng):
    cells = [cell(rng, seed=s) for s in range(3)]
    labels = rng.integers(0, 3, 50)
    for k, c in enumerate(cells):
        c.arrays |= {"niche|macro": (labels + k) % 3, "cell|xy": np.zeros((50, 2)), "cell|slide": np.zeros(50)}
    table = stability_table(cells)
    assert table.ari.tolist() == [1.0]
    assert table.n_pairs.tolist() == [3]


def test_cells_without_a_reference_are_no_niche(rng):
    c = cell(rng)
    labels = np.repeat([0, 1, 2], 20)
    reference = np.array(["a", "b", "b"])[labels]
    reference[labels == 2] = ""
    c.arrays |= {"niche|macro": labels, "cell|xy": rng.normal(size=(60, 2)), "cell|slide": np.zeros(60, int)}
    c.arrays["reference"] = reference
    table = results_table([c]).query("task == 'niches'").set_index("metric")
    assert table.value["ari"] == 1
