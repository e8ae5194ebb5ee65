import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

import sigmma_sc as sg
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError

MARKERS = {"islets": ["INS", "GCG"], "lymphoid": ["CD3E"]}


@pytest.fixture
def adata():
    """Three niches of two cells, each cell of 10 counts, and one cell without a niche."""
    counts = np.array(
        [[4, 2, 0, 4], [4, 2, 0, 4], [0, 0, 5, 5], [0, 0, 3, 7], [1, 1, 1, 7], [1, 1, 1, 7], [9, 0, 1, 0]], np.float32
    )
    adata = AnnData(counts, obs=pd.DataFrame(index=[f"c{k}" for k in range(7)]))
    adata.var_names = ["INS", "GCG", "CD3E", "ACTB"]
    adata.obs["sigmma_niche_meso"] = pd.Categorical(["0", "0", "1", "1", "2", "2", None])
    adata.obs["cell_type"] = ["beta", "alpha", "T", "T", "beta", "T", "T"]
    return adata


def change(inside, others):
    return np.log2((inside + 0.02) / (others + 0.02))


def test_names_have_the_highest_fold_change_against_all_other_cells(adata):
    before = adata.X.copy()
    table = sg.tl.name_niches(adata, MARKERS)
    # Means in the niche, and in the four other cells with a niche.
    islets = [
        (change(4, 0.5) + change(2, 0.5)) / 2,
        (change(0, 2.5) + change(0, 1.5)) / 2,
        (change(1, 2) + change(1, 1)) / 2,
    ]
    lymphoid = [change(0, 2.5), change(4, 0.5), change(1, 2)]
    np.testing.assert_allclose(table["log2fc"], [islets[0], lymphoid[1], islets[2]])
    np.testing.assert_allclose(table["runner_up_log2fc"], [lymphoid[0], islets[1], lymphoid[2]])
    assert table["name"].tolist() == ["islets", "lymphoid", "unclear"]
    assert table["best"].tolist() == ["islets", "lymphoid", "islets"]
    assert table["runner_up"].tolist() == ["lymphoid", "islets", "lymphoid"]
    assert table["n_cells"].tolist() == [2, 2, 2]
    written = adata.obs["sigmma_niche_meso_name"]
    assert written.astype(object).tolist()[:6] == ["islets"] * 2 + ["lymphoid"] * 2 + ["unclear"] * 2
    assert pd.isna(written.iloc[6])
    assert written.cat.categories.tolist() == ["islets", "lymphoid", "unclear"]
    np.testing.assert_array_equal(adata.X, before)


def test_the_depth_of_a_cell_does_not_matter(adata):
    table = sg.tl.name_niches(adata, MARKERS)
    adata.X[1] *= 7
    np.testing.assert_allclose(sg.tl.name_niches(adata, MARKERS)["log2fc"], table["log2fc"])


def test_cell_types_are_markers_too(adata):
    table = sg.tl.name_niches(adata, {"islets": ["alpha", "beta"], "lymphoid": ["T"]}, groupby="cell_type")
    assert table["name"].tolist() == ["islets", "lymphoid", "unclear"]
    np.testing.assert_allclose(table["log2fc"].iloc[:2], [(change(0.5, 0) + change(0.5, 0.25)) / 2, change(1, 0.25)])


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        ({"min_log2fc": 0, "min_margin": 0}, ["islets", "lymphoid", "unclear"]),
        ({"min_log2fc": 2.4}, ["islets", "lymphoid", "unclear"]),
        ({"min_log2fc": 2.6}, ["unclear", "lymphoid", "unclear"]),
        ({"min_margin": 9}, ["islets", "lymphoid", "unclear"]),
        ({"min_margin": 9.6}, ["unclear", "unclear", "unclear"]),
    ],
)
def test_a_name_needs_its_least_change_and_margin(adata, limits, names):
    assert sg.tl.name_niches(adata, MARKERS, **limits)["name"].tolist() == names


def test_one_set_has_no_runner_up(adata):
    table = sg.tl.name_niches(adata, {"islets": ["INS"]})
    assert table["name"].tolist() == ["islets", "unclear", "unclear"]
    assert table["runner_up_log2fc"].isna().all()


def test_absent_genes_are_left_out_and_logged(adata, caplog):
    table = sg.tl.name_niches(adata, {"islets": ["INS", "SST", "GCG"], "lymphoid": ["CD3E"]})
    assert "SST" in caplog.text
    pd.testing.assert_frame_equal(table, sg.tl.name_niches(adata, MARKERS))


def test_names_are_stored_and_replace_their_own_alone(adata, tmp_path):
    sg.tl.name_niches(adata, MARKERS)
    table = sg.tl.name_niches(adata, MARKERS, min_log2fc=3)
    adata.write_h5ad(tmp_path / "a.h5ad")
    kept = read_h5ad(tmp_path / "a.h5ad").uns["sigmma"]["named"]["sigmma_niche_meso_name"]
    assert kept["min_log2fc"] == 3
    assert kept["table"]["name"].tolist() == table["name"].tolist()
    adata.obs["mine"] = 1
    with pytest.raises(ExistsError, match="mine"):
        sg.tl.name_niches(adata, MARKERS, key_added="mine")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"markers": {"islets": ["SST"]}}, "none of SST"),
        ({"markers": {}}, "markers={}"),
        ({"markers": ["INS"]}, "must be a dict"),
        ({"markers": {"unclear": ["INS"]}}, "'unclear' is no name"),
        ({"markers": {"islets": "INS"}}, "islets"),
        ({"min_log2fc": -1}, "min_log2fc=-1"),
        ({"min_margin": float("nan")}, "min_margin=nan"),
    ],
)
def test_refusals(adata, changed, words):
    with pytest.raises(SetupError, match=words):
        sg.tl.name_niches(adata, **{"markers": MARKERS, **changed})


def test_missing_columns_and_a_single_niche(adata):
    for changed in ({"scale": "macro"}, {"groupby": "type"}, {"layer": "counts"}):
        with pytest.raises(MissingKeyError):
            sg.tl.name_niches(adata, MARKERS, **changed)
    with pytest.raises(SetupError, match="names 1 niches"):
        sg.tl.name_niches(adata[:2].copy(), MARKERS)
