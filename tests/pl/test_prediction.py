import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import sigmma_sc as sg
from sigmma_sc.errors import MissingKeyError, SetupError


@pytest.fixture
def predicted():
    """Three tiles of 10 px in a row, the last withheld."""
    corner = np.array([[0.0, 0], [10, 0], [20, 0]])
    obs = pd.DataFrame(
        {"slide": "a", "x": corner[:, 0], "y": corner[:, 1], "sigmma_alike": [1.0, 0.5, 0.0]},
        index=["a_0", "a_1", "a_2"],
    )
    var = pd.DataFrame({"reliability": [0.5, 0.25]}, index=["g", "h"])
    x = np.array([[1.0, 2], [3, 4], [np.nan, np.nan]], np.float32)
    out = ad.AnnData(x, obs, var, obsm={"spatial": corner + 5}, layers={"lower": x - 1, "upper": x + 1})
    out.uns["sigmma"] = {
        "interval": 0.9,
        "unlike": "33% of the tiles with tissue are unlike the training tissue: stain.",
    }
    return out


def shown(ax):
    (tiles,) = ax.collections
    return tiles.get_array()


def test_values_widths_and_likeness(predicted):
    axes = sg.pl.prediction(predicted, ["h", "g"], show=False)
    assert [ax.get_title() for ax in axes] == [
        "h, reliability 0.25", "g, reliability 0.50",
        "sigmma_alike, 33% of the tiles with tissue are unlike the training tissue: stain.",
        "h, width of the 90% interval", "g, width of the 90% interval",
    ]  # fmt: skip
    np.testing.assert_array_equal(shown(axes[0])[:2], [2, 4])
    assert shown(axes[0]).mask.tolist() == [False, False, True]
    np.testing.assert_array_equal(shown(axes[2]), [1, 0.5, 0])
    np.testing.assert_array_equal(shown(axes[4])[:2], [2, 2])
    box = axes[0].collections[0].get_paths()[1].get_extents()
    assert (box.x0, box.x1, box.y0, box.y1) == (10, 20, 0, 10)
    plt.close("all")


def test_rounding_is_not_drawn_as_a_difference(predicted):
    """Intervals are of one width everywhere, up to the last bits."""
    predicted.layers["upper"] = predicted.layers["lower"] + np.array([[2], [2 * (1 + 1e-7)], [np.nan]])
    axes = sg.pl.prediction(predicted, ["g"], show=False)
    assert axes[2].collections[0].get_clim() == pytest.approx((0, 2), rel=1e-5)
    assert axes[0].collections[0].get_clim() == (1, 3)
    plt.close("all")


def test_without_intervals_and_likeness_there_are_genes_alone(predicted, tmp_path):
    del predicted.layers["upper"], predicted.obs["sigmma_alike"]
    axes = sg.pl.prediction(predicted, ["g"], save=tmp_path / "map.png")
    assert len(axes) == 1
    assert (tmp_path / "map.png").stat().st_size > 0


def test_refusals(predicted):
    with pytest.raises(MissingKeyError, match="gene='k'"):
        sg.pl.prediction(predicted, ["k"])
    with pytest.raises(MissingKeyError, match=r"column='x' .*model\.predict_expression"):
        sg.pl.prediction(ad.AnnData(np.ones((2, 1)), var=pd.DataFrame(index=["g"])), ["g"])
    predicted.obs["slide"] = ["a", "a", "b"]
    with pytest.raises(
        SetupError, match=r"tiles of 2 slides\. Show one: expression\[expression.obs\['slide'\] == 'a'\]"
    ):
        sg.pl.prediction(predicted, ["g"])
