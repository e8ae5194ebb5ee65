import itertools

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from sigmma_sc.niches import consensus as module
from sigmma_sc.niches.consensus import (
    by_size,
    confidence,
    consensus,
    core_groups,
    join,
    leiden_runs,
    merge_small,
    stability,
)
from sigmma_sc.niches.leiden import WeightedGraph


def cliques(sizes, links=()):
    """Cliques of weight 1, and links (clique, clique, weight) between their first nodes."""
    matrix = np.zeros((sum(sizes), sum(sizes)))
    starts = np.cumsum([0, *sizes])
    for start, size in zip(starts, sizes, strict=False):
        matrix[start : start + size, start : start + size] = 1
    for one, other, weight in links:
        matrix[starts[one], starts[other]] = matrix[starts[other], starts[one]] = weight
    np.fill_diagonal(matrix, 0)
    return WeightedGraph.from_connectivities(sparse.csr_matrix(matrix)), np.repeat(np.arange(len(sizes)), sizes)


def test_core_groups_are_the_cells_together_in_all_runs(rng):
    runs = rng.integers(0, 3, (4, 60)).astype(np.int32)
    groups = core_groups(runs)
    together = (runs[:, :, None] == runs[:, None]).all(axis=0)
    np.testing.assert_array_equal(groups[:, None] == groups, together)
    assert groups.max() + 1 == len(np.unique(runs, axis=1).T)


def test_niches_hold_whole_core_groups(rng):
    graph, _ = cliques([5] * 6, [(k, k + 1, 0.5) for k in range(5)])
    groups = core_groups(rng.integers(0, 2, (3, 30)).astype(np.int32))
    labels = join(graph, groups, 1.0, 0)
    for group in np.unique(groups):
        assert len(set(labels[groups == group])) == 1


def test_runs_that_agree_are_the_consensus():
    graph, truth = cliques([8, 6, 5], [(0, 1, 0.2), (1, 2, 0.2)])
    found = consensus(graph, np.ones(19, int), 1.0, 4, 0)
    assert adjusted_rand_score(truth, found.labels) == 1
    assert found.stability == 1
    assert confidence(found.labels, found.runs, np.ones(19, int)).tolist() == [1.0] * 19


@pytest.fixture
def shapeless(rng):
    """A graph of 300 nodes without communities, on which runs differ."""
    matrix = sparse.random(300, 300, 0.03, random_state=0, data_rvs=lambda n: rng.random(n))
    return WeightedGraph.from_connectivities(sparse.csr_matrix(matrix + matrix.T))


def test_consensus_is_better_than_its_runs_where_they_differ(shapeless):
    graph = shapeless
    found = consensus(graph, np.ones(300, int), 1.0, 5, 0)
    assert found.stability < 0.9
    assert graph.modularity(found.labels, 1.0) > max(graph.modularity(run, 1.0) for run in found.runs)


def test_the_same_seed_gives_the_same_runs(shapeless):
    first = leiden_runs(shapeless, 1.0, 3, 5)
    np.testing.assert_array_equal(leiden_runs(shapeless, 1.0, 3, 5), first)
    assert len({run.tobytes() for run in first}) == 3
    assert not np.array_equal(leiden_runs(shapeless, 1.0, 3, 6), first)


def test_confidence_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 1])
    runs = np.array(
        [
            [5, 5, 5, 2, 2, 2],  # the same under other names
            [0, 0, 1, 1, 1, 1],  # the third cell has changed sides
            [0, 0, 0, 0, 0, 0],  # one cluster goes to the first niche, the second has none
            [0, 0, 0, 1, 1, 2],  # the last cell is alone
        ],
        dtype=np.int32,
    )
    found = confidence(labels, runs, np.array([1, 1, 1, 1, 1, 1]))
    assert found.dtype == np.float32
    assert sorted([found[0], found[3]]) == [0.75, 1.0]
    assert found[2] == pytest.approx(found[0] - 0.25)
    assert found[5] == pytest.approx(found[3] - 0.25)
    # By numbers of cells, the big node decides which niche has the only cluster.
    assert confidence(labels, runs[2:3], np.array([1, 1, 1, 9, 1, 1])).tolist() == [0, 0, 0, 1, 1, 1]


def test_stability_counts_cells_not_nodes():
    runs = np.array([[0, 0, 1], [0, 1, 1]], dtype=np.int32)
    expected = adjusted_rand_score([0] * 6 + [1] * 4, [0] * 5 + [1] * 5)
    assert stability(runs, np.array([5, 1, 4])) == pytest.approx(expected)


@pytest.mark.parametrize("n_runs", [2, 3, 5])
def test_stability_is_the_mean_over_all_pairs_of_up_to_five_runs(n_runs):
    runs = np.random.default_rng(n_runs).integers(0, 3, (n_runs, 40)).astype(np.int32)
    pairs = [adjusted_rand_score(one, other) for one, other in itertools.combinations(runs, 2)]
    assert stability(runs, np.ones(40, int)) == pytest.approx(np.mean(pairs))


def test_small_niches_join_the_one_with_most_weight():
    graph, truth = cliques([6, 5, 2, 1, 3], [(2, 0, 0.3), (2, 1, 0.4), (3, 2, 0.9)])
    ones = np.ones(17, int)
    merged = merge_small(truth, ones, graph, 3)
    # The single cell joins the pair, which is then large enough; the fifth clique has no link.
    assert by_size(merged, ones).tolist() == [0] * 6 + [1] * 5 + [2] * 3 + [3] * 3
    # At 4 the three go on to the second clique. The fifth is small too, and stays.
    assert by_size(merge_small(truth, ones, graph, 4), ones).tolist() == [1] * 6 + [0] * 8 + [2] * 3
    assert merge_small(truth, ones, graph, 1).tolist() == truth.tolist()


def test_a_niche_that_nothing_but_small_ones_reach_gathers_them():
    graph, truth = cliques([2, 1, 1], [(0, 1, 1.0), (1, 2, 1.0)])
    assert len(set(merge_small(truth, np.ones(4, int), graph, 4))) == 1


def test_numbers_by_size():
    assert by_size(np.array([7, 3, 3, 9, 9, 7, 7]), np.ones(7, int)).tolist() == [0, 1, 1, 2, 2, 0, 0]
    assert by_size(np.array([7, 3]), np.array([1, 2])).tolist() == [1, 0]


def test_all_starts_are_tried(monkeypatch):
    graph, _ = cliques([4] * 3)
    counted = []
    leiden = WeightedGraph.leiden
    monkeypatch.setattr(WeightedGraph, "leiden", lambda self, *args: counted.append(args) or leiden(self, *args))
    join(graph, np.arange(12), 1.0, 0)
    assert len({seed for _, seed, _ in counted}) == module.N_STARTS
