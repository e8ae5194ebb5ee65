import numpy as np
import pytest

from sigmma_sc.niches.leiden import WeightedGraph
from sigmma_sc.niches.neighbours import neighbour_graph
from sigmma_sc.niches.resolution import GRID, compare, most_stable


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
