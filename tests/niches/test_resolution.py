import numpy as np
import pytest

from sigmma_sc.niches import resolution as module
from sigmma_sc.niches.leiden import WeightedGraph
from sigmma_sc.niches.neighbours import neighbour_graph
from sigmma_sc.niches.resolution import GRID, compare, compare_in_groups, most_stable


@pytest.mark.parametrize(
    ("n_niches", "stability", "place"),
    [
        ([1, 4, 6], [1.0, 0.9, 0.7], 1),  # one niche counts for nothing
        ([2, 4, 6], [0.95, 0.91, 0.7], 1),  # the finest that is nearly as stable
        ([2, 4, 6], [0.95, 0.9, 0.94], 2),
        ([2, 4, 6], [0.95, 0.88, 0.6], 0),
        ([1, 1, 1], [1.0, 1.0, 1.0], 0),
    ],
)
def test_the_finest_of_the_most_stable(n_niches, stability, place):
    assert most_stable(np.array(n_niches), np.array(stability)) == place


def test_groups_far_apart_are_found(rng):
    """Five groups: at 1.5 Leiden cuts them to pieces that do not come again."""
    truth = np.repeat(np.arange(5), 120)
    cells = rng.normal(size=(600, 10)) + 12 * np.eye(10)[truth]
    graph = WeightedGraph.from_connectivities(neighbour_graph(cells).connectivities)
    best, table = compare(graph, np.ones(600, int), GRID, 4, 0)
    assert best.labels.max() + 1 == 5
    assert len(np.unique(np.stack([truth, best.labels]), axis=1).T) == 5
    chosen = table[table["chosen"]]
    assert chosen["n_niches"].tolist() == [5]
    assert chosen["stability"].tolist() == [1.0]
    assert table["resolution"].tolist() == list(GRID)


@pytest.fixture(scope="module")
def overlapping():
    """Graph of 3,000 cells of six kinds that overlap."""
    rng = np.random.default_rng(1)
    kind = rng.integers(6, size=3000)
    cells = rng.normal(size=(3000, 8)) + 2 * rng.normal(size=(6, 8))[kind]
    return WeightedGraph.from_connectivities(neighbour_graph(cells).connectivities)


@pytest.mark.parametrize("resolution", [0.3, 1.0])
def test_large_graphs_are_clustered_in_groups_and_lose_no_modularity(overlapping, monkeypatch, resolution):
    ones = np.ones(3000, int)
    whole, _ = compare_in_groups(overlapping, ones, (resolution,), 3, 0)
    nodes = []
    monkeypatch.setattr(module, "MAX_WHOLE", 2_000)
    monkeypatch.setattr(module, "compare", lambda graph, *rest: nodes.append(rest[0]) or compare(graph, *rest))
    found, table = compare_in_groups(overlapping, ones, (resolution,), 3, 0)
    again, _ = compare_in_groups(overlapping, ones, (resolution,), 3, 0)
    assert nodes[0].sum() == 3000
    assert 200 < len(nodes[0]) < 700
    assert found.runs.shape == (3, 3000)
    assert table["n_niches"].tolist() == [found.labels.max() + 1]
    np.testing.assert_array_equal(again.labels, found.labels)
    reached = [overlapping.modularity(one.labels, resolution) for one in (whole, found)]
    assert reached[1] > reached[0] - 0.005
