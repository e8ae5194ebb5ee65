import numpy as np
from scipy.spatial.distance import cdist

from sigmma_sc.tissue.graph import edges_within, spatial_graph


def test_nearest_neighbours_equal_brute_force(rng):
    xy = rng.uniform(0, 100, (60, 2))
    graph = spatial_graph(xy, n_neighs=4).toarray()
    distance = cdist(xy, xy)
    np.fill_diagonal(distance, np.inf)
    for v in range(60):
        assert set(np.flatnonzero(graph[v])) == set(np.argsort(distance[v])[:4])


def test_radius_equals_brute_force(rng):
    xy = rng.uniform(0, 100, (60, 2))
    distance = cdist(xy, xy)
    expected = (distance <= 15) & ~np.eye(60, dtype=bool)
    np.testing.assert_array_equal(spatial_graph(xy, radius=15).toarray() > 0, expected)


def test_none_one_and_two_cells():
    for n in (0, 1):
        assert spatial_graph(np.zeros((n, 2))).nnz == 0
    assert spatial_graph(np.array([[0.0, 0.0], [1.0, 0.0]])).toarray().tolist() == [[0, 1], [1, 0]]


def test_edges_stay_in_their_group(rng):
    xy = rng.uniform(0, 100, (80, 2))
    graph = spatial_graph(xy, 5)
    cells = np.r_[rng.permutation(80)[:50], np.arange(30)]  # some cells stand twice
    group = np.r_[rng.integers(0, 3, 50), rng.integers(3, 6, 30)]
    source, target = edges_within(graph, cells, group)
    found = set(zip(source.tolist(), target.tolist(), strict=True))
    dense = graph.toarray()
    brute = {(s, t) for t in range(80) for s in range(80) if group[s] == group[t] and dense[cells[t], cells[s]]}
    assert found == brute


def test_a_far_cell_changes_nothing(rng):
    xy = rng.uniform(0, 100, (40, 2))
    far = np.vstack([xy, [[10_000.0, 10_000.0]]])
    np.testing.assert_array_equal(spatial_graph(xy).toarray(), spatial_graph(far).toarray()[:40, :40])
