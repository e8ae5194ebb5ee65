"""The choice of a method for each gene, and that it is judged by tiles that had no say in it."""

import numpy as np
import pytest

from sigmma_sc.errors import SetupError
from sigmma_sc.infer.auto import choose, chosen_apart, fold_scores, folds_of, picked


def test_folds_are_of_whole_blocks_and_about_equally_large(rng):
    blocks = rng.permutation(np.repeat(np.arange(8), [9, 3, 7, 7, 2, 6, 8, 8]))
    folds = folds_of(blocks)
    assert np.unique(folds).tolist() == [0, 1, 2, 3, 4]
    for block in range(8):
        assert len(np.unique(folds[blocks == block])) == 1
    assert np.ptp(np.bincount(folds)) <= 6  # the block that is left when the others are even


def test_few_blocks_give_fewer_folds():
    assert np.bincount(folds_of(np.repeat([4, 9, 11], [20, 6, 3]))).tolist() == [20, 9]
    assert folds_of(np.full(11, 3)).tolist() == [0] * 5 + [1] * 6  # one block alone is halved
    with pytest.raises(SetupError, match="needs 10, the model has 9"):
        folds_of(np.arange(9))


def test_scores_are_correlations_within_slides_and_folds(rng):
    truth, predicted = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    folds, slide = np.arange(40) % 2, np.arange(40) // 20
    predicted[:, 2] = 5.0
    shifted = predicted + 100 * slide[:, None]  # no credit for telling slides
    found = fold_scores(truth + 70 * slide[:, None], {"a": shifted, "b": truth}, folds, slide)
    assert found.shape == (2, 3, 2)
    for k in (0, 1):
        for gene in (0, 1):
            parts = []
            for values in (truth[:, gene], predicted[:, gene]):
                centred = values.copy()
                for s in (0, 1):
                    centred[(slide == s) & (folds == k)] -= values[(slide == s) & (folds == k)].mean()
                parts.append(centred[folds == k])
            assert np.tanh(found[k, gene, 0]) == pytest.approx(np.corrcoef(*parts)[0, 1])
    assert np.isnan(found[:, 2, 0]).all()
    assert np.isfinite(found).all(axis=0).tolist() == [[True, True], [True, True], [False, True]]


def scores_of(truth, n_folds, noise, rng):
    return truth + rng.normal(0, noise, (n_folds, *truth.shape))


def test_each_gene_takes_its_own_best_where_folds_agree(rng):
    truth = np.full((200, 2), 0.5)
    truth[:100, 1] = 0.9  # half of the genes by the second, half by the first
    truth[100:, 0] = 0.8
    choice = choose(scores_of(truth, 4, 0.05, rng))
    assert (choice[:100] == 1).all()
    assert (choice[100:] == 0).all()


def test_all_genes_take_the_best_on_average_where_folds_disagree(rng):
    truth = np.tile([0.40, 0.50, 0.44], (300, 1))
    scores = scores_of(truth, 4, 0.2, rng)
    choice = choose(scores)
    assert (choice == 1).mean() > 0.97
    # The highest score of each gene would be the best one for few of them.
    assert (scores.mean(axis=0).argmax(axis=1) == 1).mean() < 0.75


def test_the_mean_is_taken_where_nothing_correlates(rng):
    truth = np.tile([0.6, 0.5], (200, 1))
    truth[:50] = -0.4
    choice = choose(scores_of(truth, 4, 0.1, rng))
    assert (choice[:50] == -1).all()
    assert (choice[50:] == 0).mean() > 0.9


def test_unknown_scores_count_for_nothing(rng):
    scores = scores_of(np.tile([0.4, 0.6], (50, 1)), 3, 0.05, rng)
    scores[:, 7] = np.nan
    scores[1, 9, 0] = np.nan
    choice = choose(scores)
    assert choice[7] == 1  # the best on average
    assert choice[9] == 1
    assert (choose(scores[:1]) == 1).all()  # one fold tells nothing of single genes


def test_no_fold_chooses_for_itself(rng):
    scores = scores_of(np.full((60, 2), 0.5), 4, 0.3, rng)
    before = chosen_apart(scores)
    for k in range(4):
        changed = scores.copy()
        changed[k] = rng.normal(size=(60, 2))
        np.testing.assert_array_equal(chosen_apart(changed)[k], before[k])


def test_genes_are_picked_from_their_parts():
    parts = {"a": np.full((2, 3), 1, np.float32), "b": np.full((2, 3), 2, np.float32)}
    found = picked(parts, np.array([1, -1, 0]), np.array([7, 8, 9], np.float32))
    assert found.tolist() == [[2, 8, 1], [2, 8, 1]]
