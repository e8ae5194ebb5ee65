"""Neighbours against brute force and scanpy."""

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from sigmma_sc.errors import SetupError
from sigmma_sc.niches import neighbours
from sigmma_sc.niches.neighbours import nearest, neighbour_graph


def embedding(n, d=64, seed=0):
    """Clusters on a curved surface of eight dimensions: every number a multiple of 1/1024."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, 8)) * 2
    inner = centres[rng.integers(12, size=n)] + rng.normal(size=(n, 8))
    outer = np.tanh(inner @ rng.normal(size=(8, 32)) / 3) @ rng.normal(size=(32, d)) / 6
    return (np.round((outer + 0.02 * rng.normal(size=(n, d))) * 1024) / 1024).astype(np.float32)


def brute(cells, k):
    """Nearest by distance and row, the cell itself first."""
    gaps = cdist(cells, cells)
    order = np.argsort(gaps + np.where(np.eye(len(cells), dtype=bool), -1, 0), axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(gaps, order, axis=1)


@pytest.fixture
def by_lists(monkeypatch):
    """The search for many cells, on few."""
    monkeypatch.setattr(neighbours, "MAX_EXACT", 100)
    monkeypatch.setattr(neighbours, "LIST_SIZE", 25)


class TestExact:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, int])
    def test_equals_brute_force(self, dtype):
        cells = (embedding(700) * 100).astype(dtype)
        indices, distances = nearest(np.asarray(cells, np.float64), 15)
        expected, gaps = brute(cells.astype(np.float64), 15)
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_allclose(distances, gaps, rtol=1e-6)
        graph = neighbour_graph(cells)
        rows = np.repeat(np.arange(700), 14)
        np.testing.assert_allclose(graph.distances[rows, expected[:, 1:].ravel()].A1, gaps[:, 1:].ravel(), rtol=1e-6)
        assert graph.distances.nnz == 700 * 14

    def test_copies_of_a_cell_are_neighbours_by_row(self):
        cells = embedding(400)
        copies = np.arange(7, 400, 8)  # 50 of them, more than have room
        cells[copies] = cells[7]
        indices, distances = nearest(cells, 15)
        for row in copies:
            assert indices[row].tolist() == [row, *[c for c in copies if c != row][:14]]
        assert (distances[copies] == 0).all()
        np.testing.assert_array_equal(indices, brute(cells, 15)[0])
        assert neighbour_graph(cells).distances.nnz == 400 * 14  # those of copies are stored zeros

    def test_ties_on_a_lattice_are_broken_by_row(self):
        cells = np.stack(np.meshgrid(np.arange(30.0), np.arange(30.0)), -1).reshape(-1, 2)
        np.testing.assert_array_equal(nearest(cells, 8)[0], brute(cells, 8)[0])

    def test_one_place_for_all(self):
        indices, distances = nearest(np.ones((60, 3)), 5)
        assert indices[0].tolist() == [0, 1, 2, 3, 4]
        assert indices[59].tolist() == [59, 0, 1, 2, 3]
        assert (distances == 0).all()
        weights = neighbour_graph(np.ones((60, 3)), 5).connectivities
        assert set(weights.data) == {1.0}


@pytest.mark.usefixtures("by_lists")
class TestLists:
    def test_nearly_all_are_the_nearest_and_their_distances_are_exact(self):
        cells = embedding(3000)
        indices, distances = nearest(cells, 15)
        expected, gaps = brute(cells, 15)
        shared = [np.intersect1d(a, b).size for a, b in zip(indices, expected, strict=True)]
        assert np.mean(shared) / 15 >= neighbours.RECALL
        np.testing.assert_allclose(distances, cdist(cells, cells)[np.arange(3000)[:, None], indices], rtol=1e-6)
        assert (indices[:, 0] == np.arange(3000)).all()
        assert (np.diff(distances, axis=1) >= 0).all()
        assert all(len(set(row)) == 15 for row in indices)

    def test_all_lists_hold_all(self, monkeypatch):
        monkeypatch.setattr(neighbours, "RECALL", 1.0)
        cells = embedding(1500)
        np.testing.assert_array_equal(nearest(cells, 15)[0], brute(cells, 15)[0])

    def test_as_few_lists_are_searched_as_hold_the_neighbours(self):
        cells = embedding(1500)
        centres = neighbours._centres(cells, 0)
        n_probes = neighbours._n_probes(cells, centres, 15, 0)
        home = cdist(cells, centres).argmin(axis=1)
        order = cdist(cells, centres).argsort(axis=1)
        enough = []
        for n in (n_probes - 1, n_probes):
            searched = [np.isin(home[near], lists[:n]) for near, lists in zip(brute(cells, 15)[0], order, strict=True)]
            of_cells = np.mean(searched, axis=1)
            most = np.mean(of_cells >= neighbours.MOST) >= neighbours.CELLS
            enough.append(most and of_cells.mean() >= neighbours.RECALL)
        assert enough == [False, True]

    def test_few_comparisons_are_made(self, monkeypatch):
        pairs = []

        def counted(cells, rows, members, *rest):
            pairs.append(len(rows) * len(members))
            compare(cells, rows, members, *rest)

        compare = neighbours._compare
        monkeypatch.setattr(neighbours, "_compare", counted)
        nearest(embedding(4000), 15)
        assert sum(pairs) < 0.4 * 4000**2

    def test_cells_far_from_zero_lose_nothing(self):
        cells = embedding(2000)
        moved = cells + np.float32(100)  # exact: multiples of 1/1024 below 128
        np.testing.assert_array_equal(moved - np.float32(100), cells)
        indices, distances = nearest(moved, 15)
        expected, gaps = brute(cells, 15)
        shared = [np.intersect1d(a, b).size for a, b in zip(indices, expected, strict=True)]
        assert np.mean(shared) / 15 >= neighbours.RECALL
        np.testing.assert_array_equal(distances, nearest(cells, 15)[1])

    def test_crowded_cells_are_told_apart(self, monkeypatch, rng):
        """Fifty crowds of thirty cells, a list holding several: within one, squared distances are 1e-6 of those beyond."""
        monkeypatch.setattr(neighbours, "LIST_SIZE", 150)
        crowds = np.repeat(rng.normal(size=(50, 16)), 30, axis=0)
        cells = (crowds + rng.normal(size=(1500, 16)) / 2**10).astype(np.float32)
        expected = brute(cells, 15)[0]
        np.testing.assert_array_equal(nearest(cells, 15)[0], expected)
        monkeypatch.setattr(neighbours, "ENOUGH", 0)
        assert not np.array_equal(nearest(cells, 15)[0], expected)  # float32 alone does not do

    def test_same_bits_each_time_and_with_any_number_of_threads(self):
        cells = embedding(1500)
        cells[::50] = cells[0]
        found = [nearest(cells, 15, seed=3) for _ in range(2)]
        for threads in (1, 2):
            with threadpool_limits(threads):
                found.append(nearest(cells, 15, seed=3))
        for indices, distances in found[1:]:
            np.testing.assert_array_equal(indices, found[0][0])
            np.testing.assert_array_equal(distances, found[0][1])

    def test_few_different_cells(self):
        cells = np.repeat(embedding(3), 200, axis=0)
        indices, distances = nearest(cells, 15)
        assert indices[0].tolist() == list(range(15))
        assert indices[599].tolist() == [599, *range(400, 414)]
        assert (distances == 0).all()

    def test_cells_alone_in_their_lists_find_most_of_their_neighbours(self):
        cells = np.concatenate([embedding(1500), 1000 * np.eye(20, 64, dtype=np.float32)])
        found = nearest(cells, 15)[0][-20:]
        shared = [np.intersect1d(a, b).size for a, b in zip(found, brute(cells, 15)[0][-20:], strict=True)]
        assert np.mean(np.array(shared) >= 12) > 0.6  # all but 0.5 % of the cells: seven of these twenty


class TestThreads:
    def test_exact_search(self):
        cells = embedding(1500)
        cells[::40] = cells[0]
        with threadpool_limits(1):
            one = nearest(cells, 15)
        with threadpool_limits(2):
            two = nearest(cells, 15)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


class TestFew:
    @pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (3, 2), (10, 6), (14, 8), (15, 15)])
    def test_fewer_cells_than_neighbours_count_half_of_them(self, n, k):
        graph = neighbour_graph(embedding(n), 15)
        assert graph.n_neighbors == k
        assert graph.distances.shape == graph.connectivities.shape == (n, n)
        assert (graph.distances.getnnz(axis=1) == k - 1).all()

    def test_two_cells_are_linked(self):
        graph = neighbour_graph([[0.0, 0.0], [3.0, 4.0]])
        np.testing.assert_array_equal(graph.distances.toarray(), [[0, 5], [5, 0]])
        np.testing.assert_array_equal(graph.connectivities.toarray(), [[0, 1], [1, 0]])


class TestRefusals:
    def test_of_numbers_that_are_not_finite(self):
        cells = embedding(30)
        cells[[4, 9], 2] = np.nan, np.inf
        with pytest.raises(SetupError, match="not finite in 2 of 30 rows, first 4"):
            neighbour_graph(cells)

    @pytest.mark.parametrize("shape", [(0, 3), (5,), (2, 3, 4)])
    def test_of_what_is_no_matrix(self, shape):
        with pytest.raises(SetupError, match="a row for each cell"):
            neighbour_graph(np.zeros(shape))

    @pytest.mark.parametrize("n_neighbors", [1, 0, 2.5])
    def test_of_too_few_neighbours(self, n_neighbors):
        with pytest.raises(SetupError, match=f"n_neighbors={n_neighbors}"):
            neighbour_graph(embedding(30), n_neighbors)


class TestScanpy:
    @pytest.mark.slow
    @pytest.mark.parametrize("n", [500, 8000])
    def test_is_what_scanpy_computes(self, n):
        cells = AnnData(embedding(n))
        sc.pp.neighbors(cells, use_rep="X")
        graph = neighbour_graph(cells.X)
        assert abs(graph.connectivities - cells.obsp["connectivities"]).max() < 1e-4
        assert abs(graph.distances - cells.obsp["distances"]).max() < 1e-4
        assert graph.connectivities.nnz == cells.obsp["connectivities"].nnz
        ours = AnnData(cells.X)
        graph.write(ours)
        written, expected = ours.uns["neighbors"], cells.uns["neighbors"]
        assert written["params"] | {"use_rep": "X"} == expected["params"]
        assert all(written[key] == expected[key] for key in ("distances_key", "connectivities_key"))
        for table in (cells, ours):
            sc.tl.leiden(table, resolution=0.5, flavor="igraph", n_iterations=2, directed=False)
        assert adjusted_rand_score(cells.obs["leiden"], ours.obs["leiden"]) > 0.95
