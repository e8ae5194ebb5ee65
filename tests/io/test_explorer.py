import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sigmma_sc as sg
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError


@pytest.fixture
def adata():
    obs = pd.DataFrame({"niche": pd.Categorical(["1", None, "0,a", "1"]), "cell_id": ["aaab-1", "b", "c", "d"]})
    adata = ad.AnnData(np.ones((4, 2)), obs=obs.set_index(pd.Index(list("wxyz"))))
    adata.uns["niche_colors"] = ["#ff0000", "blue"]
    return adata


def test_groups_come_back_with_their_colours(adata, tmp_path):
    sg.io.to_xenium_explorer(adata, tmp_path / "new" / "niches.csv", "niche")
    found = pd.read_csv(tmp_path / "new" / "niches.csv", dtype=str)
    rows = [["aaab-1", "1", "#0000ff"], ["c", "0,a", "#ff0000"], ["d", "1", "#0000ff"]]
    pd.testing.assert_frame_equal(found, pd.DataFrame(rows, columns=["cell_id", "group", "color"]), check_dtype=False)


def test_names_of_rows_without_a_column_and_no_colours(adata, tmp_path):
    del adata.obs["cell_id"], adata.uns["niche_colors"]
    sg.io.to_xenium_explorer(adata, tmp_path / "a.csv", "niche")
    found = pd.read_csv(tmp_path / "a.csv", dtype=str)
    assert list(found) == ["cell_id", "group"]
    assert found["cell_id"].tolist() == ["w", "y", "z"]


def test_what_cannot_be_written(adata, tmp_path):
    file = tmp_path / "a.csv"
    with pytest.raises(MissingKeyError, match="column='nope'"):
        sg.io.to_xenium_explorer(adata, file, "nope")
    with pytest.raises(SetupError, match="Pass a table of cells"):
        sg.io.to_xenium_explorer(None, file)
    adata.obs["empty"] = pd.Categorical([None] * 4, ["a"])
    with pytest.raises(SetupError, match="labels no cell"):
        sg.io.to_xenium_explorer(adata, file, "empty")
    adata.obs["twice"] = ["a", "b", "c", "a"]
    with pytest.raises(SetupError, match="'a' occurs twice"):
        sg.io.to_xenium_explorer(adata, file, "niche", cell_id="twice")
    assert not list(tmp_path.iterdir())
    sg.io.to_xenium_explorer(adata, file, "niche")
    with pytest.raises(ExistsError, match="overwrite=True"):
        sg.io.to_xenium_explorer(adata, file, "niche")
    sg.io.to_xenium_explorer(adata, file, "niche", overwrite=True)
