import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import sigmma_sc as sg
from sigmma_sc.errors import SetupError
from sigmma_sc.pl._scale import microns_of

mpl.use("agg")


@pytest.fixture
def adata():
    adata = AnnData(np.zeros((4, 1), np.float32), obs=pd.DataFrame(index=list("abcd")))
    adata.obsm["spatial"] = np.array([[0, 0], [9, 0], [9, 9], [0, 9]])
    adata.obs["sigmma_niche_meso"] = pd.Categorical(["0", "0", "1", "1"])
    return adata


def bars(ax):
    return [artist for artist in ax.artists if type(artist).__name__ == "ScaleBar"]


@pytest.mark.parametrize(("told", "measured", "expected"), [(0.5, 0.2, 0.5), (None, 0.2, 0.2), (None, None, None)])
def test_the_scale_bar_has_the_units_that_are_known(adata, tmp_path, told, measured, expected):
    if measured is not None:
        adata.uns["sigmma"] = {"microns_per_unit": measured}
    (ax,) = sg.pl.niches(adata, ["meso"], microns_per_unit=told, show=False, save=tmp_path / "f.png")
    assert [bar.dx for bar in bars(ax)] == ([] if expected is None else [expected])


def test_other_positions_than_those_measured_have_no_unit(adata):
    adata.uns["sigmma"] = {"microns_per_unit": 0.2}
    assert microns_of(adata, "spatial", None) == 0.2
    assert microns_of(adata, "X_umap", None) is None
    assert microns_of(adata, "X_umap", 2) == 2
    with pytest.raises(SetupError, match="microns_per_unit"):
        microns_of(adata, "spatial", -1)
