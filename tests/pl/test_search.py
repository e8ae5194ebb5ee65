import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import sigmma_sc as sg
from sigmma_sc.errors import MissingKeyError, SetupError


@pytest.fixture
def found():
    out = pd.DataFrame(
        {
            "slide": ["a", "a", "b"],
            "tile": ["a_0", "a_1", "b_0"],
            "x": [64.0, 192.0, 64.0],
            "y": [64.0, 64.0, 64.0],
            "similarity": [0.9, 0.5, 0.1],
            "p_value": [0.01, np.nan, 0.5],
            "alike": [True, False, False],
        }
    )
    out.attrs["tile_size"] = 128.0
    return out


def test_maps_of_slides_with_the_most_hits_first(found, tmp_path):
    axes = sg.pl.search(found.iloc[::-1], show=False)
    assert [ax.get_title() for ax in axes] == ["a: 1 of 2 tiles alike", "b: nothing alike"]
    tiles, outlined = axes[0].collections
    assert [path.get_extents().bounds for path in outlined.get_paths()] == [(0, 0, 128, 128)]
    assert sorted(tiles.get_array().mask) == [False, True]  # that without a p-value
    plt.close("all")
    (only,) = sg.pl.search(found, ["b"], save=tmp_path / "b.png")
    assert only.get_title().startswith("b")
    assert (tmp_path / "b.png").stat().st_size > 0


def test_refusals(found):
    with pytest.raises(MissingKeyError, match="slide='c'"):
        sg.pl.search(found, ["c"])
    with pytest.raises(SetupError, match=r"no result of sg\.tl\.search"):
        sg.pl.search(pd.DataFrame({"a": [1]}))
    with pytest.raises(SetupError, match=r"no result of sg\.tl\.search"):
        sg.pl.search(found[["tile"]])
