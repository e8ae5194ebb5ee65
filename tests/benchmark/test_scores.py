import dataclasses

import numpy as np
import pytest

from sigmma_sc.benchmark.scores import genes_table, predictions_of, results_table, stability_table, whole_scale
from sigmma_sc.benchmark.trial import RankKey
from sigmma_sc.metrics.expression import pearson
from sigmma_sc.metrics.retrieval import recall_at_percent


def test_every_figure_by_hand(make_trial):
    """Four tiles of one slide: ranks 1, 1, 2 and 4, and one gene predicted with an error of 1."""
    trial = make_trial(n=4)
    for direction, ranks in (("image→transcriptome", [1, 1, 2, 4]), ("transcriptome→image", [4, 4, 4, 4])):
        trial.ranks[RankKey(direction, "macro")][:] = ranks
    hest = trial.expression["hest"]
    hest.predicted["hest"][:] = hest.target + np.array([1, 0, 0, 0, 0])
    table = results_table([trial])
    retrieval = table[table.task == "retrieval"].set_index("metric")
    assert retrieval.value["recall@5% image→transcriptome"] == 0.5  # of four, the best 5 % is one
    assert retrieval.chance["recall@5% image→transcriptome"] == 0.25
    assert retrieval.value["median rank image→transcriptome"] == 1.5
    assert retrieval.chance["median rank transcriptome→image"] == 2.5
    assert retrieval.value["mean recall transcriptome→image"] == 0
    assert set(retrieval.scale) == {"macro"}
    expression = table[table["head"] == "hest"].set_index("metric").value
    assert expression["mse"] == pytest.approx(1 / 5, abs=1e-6)
    assert expression["mse_sd_over_genes"] == pytest.approx(0.4, abs=1e-6)
    assert expression["pcc"] == pytest.approx(1, abs=1e-6)
    assert expression["pcc_undefined"] == 0
    assert expression["mse_gene_mean"] == pytest.approx((hest.target.astype(float) ** 2).mean())
    assert table[
        ["dataset", "split", "method", "seed", "slide", "n_test", "n_train"]
    ].drop_duplicates().values.tolist() == [["d", "blocks", "a", 0, "s0", 4, 10]]


def test_slides_are_scored_apart(make_trial):
    trial = make_trial(slides=2)
    table = results_table([trial])
    recall = table[table.metric == "recall@10% image→transcriptome"].set_index("slide").value
    for slide in ("s0", "s1"):
        ranks = trial.ranks[RankKey("image→transcriptome", "macro")][trial.slide == slide]
        assert recall[slide] == recall_at_percent(ranks, 60)[10]


def test_a_slide_of_one_tile_ranks_nothing_and_a_constant_prediction_has_no_correlation(make_trial):
    assert set(results_table([make_trial(n=1)]).task) == {"expression"}
    trial = make_trial()
    trial.expression["default"].predicted["default"][:] = 0.3
    values = results_table([trial]).query("head == 'default'").set_index("metric").value
    assert np.isnan(values["pcc"])
    assert np.isnan(values["pcc_sd_over_genes"])
    assert values["pcc_undefined"] == 5
    assert np.isfinite(values["mse"])


def test_genes_by_trial_slide_and_head(make_trial):
    trials = [make_trial(slides=2, seed=seed) for seed in range(2)]
    trials[0].expression["default"].predicted["lookup"] = trials[0].expression["default"].target * 2
    table = genes_table(trials)
    assert len(table) == 2 * 2 * 2 * 5 + 2 * 5
    lookup = table[table["head"] == "lookup"]
    np.testing.assert_allclose(lookup.pcc, 1)
    np.testing.assert_allclose(lookup.mse, lookup.mse_gene_mean, rtol=1e-5)
    one = table.query("seed == 1 and slide == 's1' and head == 'hest'").set_index("gene")
    (hest,) = (p for p in predictions_of(trials[1], np.arange(60, 120)) if p.head == "hest")
    np.testing.assert_array_equal(one.pcc[hest.genes], pearson(hest.target, hest.predicted))


def test_methods_are_compared_by_all_scales_together_or_their_only_one(make_trial):
    assert whole_scale(make_trial(scales=("micro", "macro", "all"))) == "all"
    assert whole_scale(make_trial(scales=("macro",))) == "macro"
    assert whole_scale(make_trial(scales=())) is None


def test_stability_of_niches(make_trial, add_niches, rng):
    labels = rng.integers(0, 3, 50)
    trials = [add_niches(make_trial(seed=seed), (labels + seed) % 3, np.zeros((50, 2))) for seed in range(3)]
    table = stability_table([*trials, make_trial(method="b")])
    assert table.values.tolist() == [["d", "blocks", "a", "macro", 1.0, 3]]
    # Seeds that clustered other cells are not compared.
    moved = dataclasses.replace(trials[2].niches, xy=np.ones((50, 2)))
    assert stability_table([*trials[:2], dataclasses.replace(trials[2], niches=moved)]).n_pairs.tolist() == [1]
    assert stability_table([make_trial()]).empty


def test_cells_without_a_reference_are_no_niche(make_trial, add_niches, rng):
    labels = np.repeat([0, 1, 2], 20)
    reference = np.array(["a", "b", "b"])[labels]
    reference[labels == 2] = ""
    trial = add_niches(make_trial(), labels, rng.normal(size=(60, 2)), reference)
    table = results_table([trial]).query("task == 'niches'").set_index("metric")
    assert table.value["ari"] == 1
    assert table.value["number of niches"] == 3
    assert set(table.scale) == {"macro"}
