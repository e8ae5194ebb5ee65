import itertools
import random

import numpy as np
import pytest
from scipy import sparse

from sigmma_sc.niches.leiden import WeightedGraph


def matrix(n, edges):
    """Symmetric weights of edges (one, other, weight)."""
    out = np.zeros((n, n))
    for one, other, weight in edges:
        out[one, other] = out[other, one] = weight
    return sparse.csr_matrix(out)


TRIANGLES = [(0, 1, 1), (1, 2, 1), (0, 2, 1), (3, 4, 1), (4, 5, 1), (3, 5, 1), (2, 3, 0.5)]


@pytest.fixture
def triangles():
    """Two triangles, joined by a weak edge."""
    return WeightedGraph.from_connectivities(matrix(6, TRIANGLES))


def test_modularity_is_that_of_networkx(triangles):
    import networkx as nx

    graph = nx.Graph()
    graph.add_weighted_edges_from(TRIANGLES)
    for resolution in (0.3, 1, 2):
        expected = nx.community.modularity(graph, [{0, 1, 2}, {3, 4, 5}], resolution=resolution)
        found = triangles.modularity(np.array([0, 0, 0, 1, 1, 1]), resolution)
        assert found == pytest.approx(expected)


def test_a_contracted_graph_has_the_same_modularity_up_to_the_weight_inside(triangles):
    pairs = np.array([0, 0, 1, 2, 3, 3])
    small = triangles.contract(pairs)
    inside = 2 * 2 / triangles.strength.sum()  # two edges of weight 1
    assert small.strength.tolist() == [4, 2.5, 2.5, 4]
    for labels in itertools.product(range(2), repeat=4):
        labels = np.array(labels)
        expected = triangles.modularity(labels[pairs], 1.0)
        assert small.modularity(labels, 1.0) + inside == pytest.approx(expected)


def test_leiden_finds_the_best_of_all_partitions(triangles):
    every = [np.array(labels) for labels in itertools.product(range(3), repeat=6)]
    best = max(triangles.modularity(labels, 1.0) for labels in every)
    labels = triangles.leiden(1.0, 0, -1)
    assert triangles.modularity(labels, 1.0) == pytest.approx(best)
    assert len(set(labels[:3])) == len(set(labels[3:])) == 1


def test_an_edge_left_out_weighs_nothing(triangles):
    # Without the edges of node 5 it stands alone, whatever the others do.
    kept = (triangles.heads != 5) & (triangles.tails != 5)
    labels = triangles.leiden(1.0, 0, -1, kept)
    assert (labels == labels[5]).sum() == 1


def test_leiden_starts_from_the_labels_given():
    # At resolution 0 nothing is gained by joining or parting two pairs without an edge between them.
    pairs = WeightedGraph(np.array([0, 2]), np.array([1, 3]), np.ones(2), np.ones(4))
    assert pairs.leiden(0.0, 0, 1).tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert pairs.leiden(0.0, 0, 1, initial=np.zeros(4, int)).tolist() == [0] * 4


def test_the_random_state_of_python_stays(triangles):
    random.seed(3)
    expected = random.random()
    random.seed(3)
    triangles.leiden(1.0, 0)
    assert random.random() == expected
