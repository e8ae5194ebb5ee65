import numpy as np
import torch
from scipy.sparse import csr_matrix

from sigmma_sc.features.moments import Moments
from sigmma_sc.features.tensors import GraphTensors, PatchTensors, ProfileTensors, SlideTensors
from sigmma_sc.tissue.tiling import covering_tiles

XY = np.array([[1.0, 1.0], [2.0, 1.0], [9.0, 9.0], [11.0, 1.0], [14.0, 3.0]])
"""Three cells in the first of two tiles of 10 px, two in the second."""


def two_tiles():
    tiles, _ = covering_tiles(XY, 20, 10, 10.0)
    assert tiles.n_cells.tolist() == [3, 2]
    return tiles


def graph():
    joined = np.ones((5, 5)) - np.eye(5)
    return GraphTensors(XY, torch.arange(10.0).view(5, 2), csr_matrix(joined), (2, 1))


def test_patches_of_some_tiles():
    patches = torch.arange(8.0).view(4, 2).half()
    moments = Moments(np.array([1.0, 1.0], np.float32), np.array([2.0, 4.0], np.float32))
    tensors = PatchTensors(patches, np.array([[0, 1], [2, 3], [1, 1]]), moments)
    assert tensors.n_features == 2
    got = tensors.part(two_tiles(), np.array([2, 0]))["patches"]
    expected = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[-0.5, 0.0], [0.5, 0.5]]])
    torch.testing.assert_close(got, expected)


def test_cells_of_some_tiles_and_edges_within_a_block():
    part = graph().part(two_tiles(), np.array([1, 0]))
    assert part["x"].tolist() == [[6, 7], [8, 9], [0, 1], [2, 3], [4, 5]]
    layout = part["layout"]
    assert (layout.n_tiles, layout.tile.tolist()) == (2, [0, 0, 1, 1, 1])
    # Cells 3 and 4 share a block of 5 px, and so do 0 and 1; cell 2 lies in another one.
    assert int(layout.micro.sum()) == 4


def test_each_cell_is_sampled_once():
    tiles = two_tiles()
    assert graph().sample(tiles, np.array([1, 0, 1])).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_profiles_of_some_tiles():
    tensors = ProfileTensors(csr_matrix(np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]], np.float32)))
    assert tensors.n_features == 3
    part = SlideTensors(two_tiles(), None, tensors).part(np.array([1]))
    assert part["profiles"].tolist() == [[0, 3, 0]]
    assert part["n_tiles"] == 1
