import matplotlib.pyplot as plt
import numpy as np

from sigmma_sc.pl._tiles import draw_tiles


def test_squares_colours_and_outlines():
    figure, ax = plt.subplots()
    draw_tiles(ax, np.array([[0.0, 5], [10, 5]]), 10.0, np.array([1.0, np.nan]), "t", np.array([True, False]))
    tiles, outlined = ax.collections
    assert tiles.get_array().mask.tolist() == [False, True]
    assert [path.get_extents().bounds for path in tiles.get_paths()] == [(0, 5, 10, 10), (10, 5, 10, 10)]
    assert [path.get_extents().bounds for path in outlined.get_paths()] == [(0, 5, 10, 10)]
    assert ax.yaxis_inverted()
    plt.close(figure)
