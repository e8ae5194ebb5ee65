import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import sigmma_sc as sg
from sigmma_sc.errors import SetupError
from sigmma_sc.niches.compare import NicheComparison, abundance_table

mpl.use("agg")


@pytest.fixture
def comparison():
    cells = pd.DataFrame([[40, 60, 0], [50, 50, 5], [20, 70, 5], [25, 75, 5]], list("wxyz"), ["n0", "n1", "n2"])
    condition = pd.Series(pd.Categorical(["b", "b", "a", "a"]), index=cells.index)
    shares = cells.div(cells.sum(axis=1), axis=0).assign(condition=condition)
    return NicheComparison(abundance_table(cells, condition, "a"), None, shares)


def test_each_donor_is_a_dot_and_each_mean_a_line(comparison, tmp_path):
    ax = sg.pl.niche_abundance(comparison, save=tmp_path / "f.png")
    dots = {
        one.get_label(): one.get_offsets() for one in ax.collections if isinstance(one, mpl.collections.PathCollection)
    }
    assert list(dots) == ["a", "b"]
    for name, offsets in dots.items():
        own = comparison.shares[(comparison.shares.condition == name).to_numpy()]
        np.testing.assert_allclose(offsets[:, 1].reshape(2, 3), own[["n0", "n1", "n2"]])
        np.testing.assert_array_equal(np.round(offsets[:, 0]).reshape(2, 3), [[0, 1, 2]] * 2)
    lines = [one for one in ax.collections if isinstance(one, mpl.collections.LineCollection)]
    heights = [segment[0, 1] for line in lines for segment in line.get_segments()]
    means = comparison.shares.groupby("condition", observed=True)[["n0", "n1", "n2"]].mean()
    np.testing.assert_allclose(heights, means.to_numpy().ravel())
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["n0", "n1", "n2"]
    assert (tmp_path / "f.png").stat().st_size > 3000


def test_q_values_are_written_above_the_niches(comparison):
    comparison.abundance["q_value"] = [0.0004, 0.034, np.nan]
    own = mpl.figure.Figure().subplots()
    assert sg.pl.niche_abundance(comparison, ax=own, show=False) is own
    assert [text.get_text() for text in own.texts] == ["q < 0.001", "q = 0.034", "not tested"]


def test_a_comparison_without_donors_is_refused(comparison):
    with pytest.raises(SetupError, match="holds no donor"):
        sg.pl.niche_abundance(comparison._replace(shares=comparison.shares[:0]))
