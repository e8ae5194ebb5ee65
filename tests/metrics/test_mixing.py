import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy
from sklearn.metrics import silhouette_samples

from sigmma_sc.errors import SetupError
from sigmma_sc.metrics import niche_mixing


def test_mixing_and_silhouette_are_those_of_scipy_and_sklearn(rng):
    niche = rng.integers(0, 3, 400)
    donor = rng.integers(0, 4, 400)
    donor[niche == 2] = 1
    x = rng.normal(size=(400, 2)) + 3 * niche[:, None]
    found = niche_mixing(niche, donor, x)
    counts = pd.crosstab(niche, donor)
    shares = counts / counts.sum()
    np.testing.assert_allclose(found.mixing[:3], entropy(shares.to_numpy(), axis=1) / np.log(4))
    assert found.mixing["2"] == 0
    width = pd.Series(silhouette_samples(x, niche)).groupby(niche).mean()
    np.testing.assert_allclose(found.silhouette[:3], width)
    assert found.n_donors.tolist() == [4, 4, 1, 4]
    sizes = np.bincount(niche)
    np.testing.assert_allclose(
        found.loc["all", ["mixing", "silhouette"]].astype(float),
        [found.mixing[:3] @ sizes / 400, found.silhouette[:3] @ sizes / 400],
    )
    assert found.n_cells.tolist() == [*sizes, 400]


def test_a_donor_with_many_cells_weighs_no_more_than_others():
    niche = ["a"] * 30 + ["b"] * 30 + ["a", "b"]
    donor = ["d1"] * 60 + ["d2"] * 2
    found = niche_mixing(niche, donor, np.arange(62.0)[:, None])
    np.testing.assert_allclose(found.mixing, 1)


def test_cells_that_lack_something_are_left_out():
    niche = ["a", "a", "b", "b", None, "b", "c"]
    donor = ["x", "y", "x", "y", "x", None, "x"]
    x = np.array([[0], [1], [5], [6], [9], [9], [np.nan]])
    found = niche_mixing(niche, donor, x)
    assert found.index.tolist() == ["a", "b", "all"]
    assert found.n_cells.tolist() == [2, 2, 4]


def test_series_of_other_cells_are_told():
    labels = pd.Series(list("aabb"), index=list("wxyz"))
    donors = pd.Series(["d", "e", "d", "e"], index=list("wyxz"))
    with pytest.raises(SetupError, match=r"different indices; align them: donors.reindex\(labels.index\)"):
        niche_mixing(labels, donors, np.eye(4))


def test_refusals():
    for niche, donor, x in ((["a", "a"], ["x", "y"], [[0], [1]]), (["a", "b"], ["x", "x"], [[0], [1]])):
        with pytest.raises(SetupError, match="two of each"):
            niche_mixing(niche, donor, x)
    with pytest.raises(SetupError, match="must name the same cells"):
        niche_mixing(["a"], ["x", "y"], [[0], [1]])
