import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sigmma_sc.cli.tables import marker_table, niche_table, write_tables


@pytest.fixture
def adata(rng):
    """Twenty cells of two niches; the first two genes of twelve mark one niche each. The last cell has no embedding."""
    niche = np.repeat([0, 1], 10)
    counts = rng.poisson(3, (20, 12)).astype(np.float32)
    counts[np.arange(20), niche] += 40
    obs = pd.DataFrame({"cell_id": [f"aa{k}-1" for k in range(20)], "region": "r"}, index=[str(k) for k in range(20)])
    for scale in ("micro", "macro"):
        labels = niche if scale == "micro" else 0 * niche
        obs[f"sigmma_niche_{scale}"] = pd.Categorical.from_codes(
            np.append(labels[:-1], -1), list("01")[: labels.max() + 1]
        )
        obs[f"sigmma_niche_{scale}_confidence"] = np.append(np.full(19, 0.8, np.float32), np.nan).astype(np.float32)
    named = {"region": "r", "region_key": "region", "instance_key": "cell_id"}
    adata = AnnData(counts, obs=obs, uns={"spatialdata_attrs": named})
    adata.var_names = [f"G{k}" for k in range(12)]
    return adata


def test_each_cell_has_its_row(adata):
    table = niche_table(adata, ["micro", "macro"])
    assert table.columns.tolist() == [
        "cell_id", "region", "niche_micro", "confidence_micro", "niche_macro", "confidence_macro",
    ]  # fmt: skip
    assert table.cell_id.tolist() == [f"aa{k}-1" for k in range(20)]
    assert table.niche_micro[:19].tolist() == ["0"] * 10 + ["1"] * 9
    assert pd.isna(table.niche_micro[19])
    assert np.isnan(table.confidence_macro[19])


def test_markers_are_those_of_each_niche_and_the_table_stays(adata):
    before = set(adata.uns) | set(adata.obs)
    table = marker_table(adata, ["micro", "macro"], None)
    assert set(table.scale) == {"micro"}  # a single niche has nothing to be compared with
    first = table.groupby("niche").first()
    assert first.gene.to_dict() == {"0": "G0", "1": "G1"}
    assert (first.log2_fold_change > 2).all()
    assert table.groupby("niche").size().tolist() == [12, 12]
    assert set(adata.uns) | set(adata.obs) == before
    assert marker_table(adata, ["macro"], None).empty


def test_a_table_without_counts_has_no_markers(adata, tmp_path):
    adata.X = adata.X - 100
    (sentence,) = write_tables(adata, ["micro"], None, tmp_path)
    assert sentence.startswith("No markers.csv is written. ")
    assert "negative" in sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["niches.csv", "niches.parquet"]
    read = pd.read_parquet(tmp_path / "niches.parquet")
    pd.testing.assert_frame_equal(read, niche_table(adata, ["micro"]), check_dtype=False)
