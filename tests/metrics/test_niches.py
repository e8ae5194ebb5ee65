import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn import neighbors

from sigmma_sc.errors import SetupError
from sigmma_sc.metrics.niches import niche_agreement, seam_ratio, spatial_contiguity


def graph(n, pairs, both=True):
    u, v = np.array(pairs).T
    directed = sparse.csr_matrix((np.ones(len(u)), (u, v)), shape=(n, n))
    return directed + directed.T if both else directed


def test_agreement_by_hand():
    # Pair counts: 1 pair together in both, 2 in labels, 4 in reference, 10 in all.
    # ARI = (1 - 2·4/10) / ((2 + 4)/2 - 2·4/10) = 0.2 / 2.2.
    labels, reference = [0, 0, 1, 1, 2], ["a", "a", "a", "b", "b"]
    result = niche_agreement(labels, reference)
    assert result["ari"] == pytest.approx(0.2 / 2.2)
    joint = {(0, "a"): 2, (1, "a"): 1, (1, "b"): 1, (2, "b"): 1}
    rows, columns = {0: 2, 1: 2, 2: 1}, {"a": 3, "b": 2}
    mutual = sum(k / 5 * np.log(5 * k / rows[i] / columns[j]) for (i, j), k in joint.items())
    entropies = [-sum(k / 5 * np.log(k / 5) for k in sizes.values()) for sizes in (rows, columns)]
    assert result["nmi"] == pytest.approx(mutual / np.mean(entropies))
    assert (result["n"], result["n_dropped"]) == (5, 0)


def test_names_do_not_matter():
    a = np.random.default_rng(0).integers(0, 4, 60)
    result = niche_agreement(a, np.array(list("wxyz"))[a])
    assert (result["ari"], result["nmi"]) == (1.0, pytest.approx(1.0))


def test_unrelated_labels_score_about_zero():
    rng = np.random.default_rng(1)
    assert abs(niche_agreement(rng.integers(0, 5, 3000), rng.integers(0, 5, 3000))["ari"]) < 0.01


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA])
def test_missing_cells_are_dropped_and_counted(missing):
    labels = pd.Series([0, 0, 1, 1, 2, 0, 1])
    reference = pd.Series(["a", "a", "a", "b", "b", missing, missing], dtype=object)
    expected = niche_agreement(labels[:5], reference[:5])
    for other in (reference, reference.astype("category"), reference.to_numpy()):
        assert niche_agreement(labels, other) == {**expected, "n_dropped": 2}
        assert niche_agreement(other, labels)["ari"] == pytest.approx(expected["ari"])


def test_agreement_refuses_what_does_not_fit():
    with pytest.raises(SetupError, match="3 rows and reference 2"):
        niche_agreement([0, 1, 1], [0, 1])
    with pytest.raises(SetupError, match="1 of 3 cells"):
        niche_agreement([0, 1, 1], ["a", None, None])
    with pytest.raises(SetupError, match="reindex"):
        niche_agreement(pd.Series([0, 1], index=["x", "y"]), pd.Series([0, 1], index=["y", "x"]))


def test_contiguity_by_hand():
    # A path 0-1-2-3-4 labelled aabbb: three of four pairs agree; (2·1 + 3·2) / (5·4) by chance.
    result = spatial_contiguity(list("aabbb"), graph(5, [(0, 1), (1, 2), (2, 3), (3, 4)]))
    assert result == {"contiguity": 0.75, "expected": 0.4, "n_pairs": 4, "n_dropped": 0}


def test_expectation_is_the_mean_over_all_permutations():
    adjacency = graph(6, [(0, 1), (1, 2), (2, 0), (3, 4), (0, 5)])
    result = spatial_contiguity(list("aaabbc"), adjacency)
    shuffled = [spatial_contiguity(list(p), adjacency)["contiguity"] for p in itertools.permutations("aaabbc")]
    assert result["expected"] == pytest.approx(np.mean(shuffled), abs=1e-12)


def test_a_pair_counts_once_however_it_is_stored():
    pairs, labels = [(0, 1), (1, 2), (0, 3)], list("aabb")
    expected = spatial_contiguity(labels, graph(4, pairs))
    assert (expected["contiguity"], expected["n_pairs"]) == (1 / 3, 3)
    directed = graph(4, pairs, both=False)
    assert spatial_contiguity(labels, directed) == expected
    assert spatial_contiguity(labels, sparse.csr_array(directed.T)) == expected
    assert spatial_contiguity(labels, directed.astype(bool)) == expected
    one_and_a_half = directed + sparse.csr_matrix(([1.0], ([1], [0])), shape=(4, 4))
    assert spatial_contiguity(labels, one_and_a_half * -0.3) == expected  # weights, even negative ones
    assert spatial_contiguity(labels, (directed + sparse.identity(4)).tocsr()) == expected  # self loops
    zeros = sparse.coo_matrix(([1.0, 1.0, 1.0, 0.0], ([0, 1, 0, 2], [1, 2, 3, 3])), (4, 4)).tocsr()
    assert zeros.nnz == 4
    assert spatial_contiguity(labels, zeros) == expected  # explicit zeros


def test_cells_without_label_are_dropped():
    adjacency = graph(5, [(0, 1), (1, 2), (2, 3), (3, 4)])
    result = spatial_contiguity(["a", "a", None, "b", "a"], adjacency)
    # Pairs 0-1 and 3-4 remain; among aaba chance is (3·2 + 0) / (4·3).
    assert result == {"contiguity": 0.5, "expected": 0.5, "n_pairs": 2, "n_dropped": 2}


def test_all_cells_unlike_expects_nothing():
    assert spatial_contiguity([0, 1, 2], graph(3, [(0, 1)]))["expected"] == 0.0
    assert spatial_contiguity([0, 0, 0], graph(3, [(0, 1)]))["expected"] == 1.0


def test_contiguity_refuses_what_does_not_fit():
    with pytest.raises(SetupError, match=r"shape \(3, 3\).*sparse \(4, 4\)"):
        spatial_contiguity([0, 1, 2, 3], graph(3, [(0, 1)]))
    with pytest.raises(SetupError, match="ndarray"):
        spatial_contiguity([0, 1], np.ones((2, 2)))
    with pytest.raises(SetupError, match="None of the 1 neighbour pairs"):
        spatial_contiguity([0, None, 1], graph(3, [(0, 1)]))


def test_seam_by_hand():
    # Cells in a row, tiles of 8: a step of 3 at the border between 7.5 and 8.5, steps of 1 elsewhere.
    xy = np.column_stack([np.arange(0.5, 16), np.full(16, 0.5)])
    z = np.arange(16.0)[:, None] + 2.0 * (xy[:, :1] > 8)
    chain = graph(16, [(k, k + 1) for k in range(15)])
    result = seam_ratio(z, xy, 8.0, chain, control=0.25)  # control lines at 2 and 10
    assert result == {"ratio": 3.0, "at_borders": 3.0, "at_control": 1.0, "n_borders": 1, "n_control": 2}


def test_no_seam_is_a_ratio_of_one():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 64, (4000, 2))
    near = neighbors.kneighbors_graph(xy, 6)
    assert seam_ratio(xy, xy, 8.0, near)["ratio"] == pytest.approx(1, abs=0.05)


def test_seam_refusals():
    with pytest.raises(SetupError, match="same cells"):
        seam_ratio(np.zeros((3, 2)), np.zeros((4, 2)), 1.0, graph(3, [(0, 1)]))
    with pytest.raises(SetupError, match="across a border"):
        seam_ratio(np.zeros((3, 2)), np.zeros((3, 2)), 1.0, graph(3, [(0, 1)]))
