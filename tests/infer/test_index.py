import json

import numpy as np
import pandas as pd
import pytest

import sigmma_sc as sg
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError
from sigmma_sc.infer.index import fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("index") / "tissues"


@pytest.fixture(scope="module")
def index(fitted, unseen, alone, folder):
    """A slide with cells, and its image as another slide."""
    return fitted.build_index(folder, {"new": unseen, "image": alone}, labels=["niche"])


def test_tiles_are_those_of_the_model(fitted, unseen, index):
    for tower in ("image", "transcriptome"):
        tiles = fitted.get_tile_representation(unseen, tower, "meso")
        tiles.obs_names = "new/" + tiles.obs_names
        known = index.obs["slide"] == "new/cell_circles"
        rows = tiles[index.obs.index[known]]
        enough = (rows.obs["n_cells"] >= fitted.config.min_cells).to_numpy()
        expected = np.where(enough[:, None] | (tower == "image"), rows.X, np.nan)
        np.testing.assert_array_equal(index.embeddings[tower]["meso"][known], expected)
    np.testing.assert_allclose(index.obs.loc[known, ["x", "y"]], 0.5 * rows.obsm["spatial"])
    assert (rows.obs["tissue"] >= 0.05).all()
    left_out = tiles[~tiles.obs_names.isin(index.obs.index)]
    assert left_out.n_obs
    assert (left_out.obs["tissue"] < 0.05).all()
    np.testing.assert_array_equal(index.has_cells[known], enough)
    assert not index.has_cells[~known].any()


def test_shares_of_labels_are_those_of_the_cells(unseen, index, fitted):
    (slide,) = fitted.resolve({"new": unseen})
    share = index.shares["niche"]
    niche = unseen["table"].obs["niche"].iloc[slide.rows].astype(str).to_numpy()
    name = index.obs.index[index.has_cells][3]
    cells = slide.tile_of_cell == int(name.rpartition("_")[2])
    for label in share:
        assert share.loc[name, label] == pytest.approx((niche[cells] == label).mean())
    assert share[index.obs["slide"] == "image/he_image"].isna().all().all()


def test_a_duplicate_is_the_most_alike(index):
    """Each tile of the slide with cells is searched for by its image alone, on the other slide."""
    wanted = index.obs.index[index.obs["slide"] == "image/he_image"][10:40:6]
    for name in wanted:
        found = sg.tl.search({"tiles": [name]}, index, withhold=None)
        assert found["tile"][0] == name.replace("image/he_image", "new/cell_circles")
        assert found["similarity"][0] == pytest.approx(1, abs=1e-6)
        assert found["p_value"][0] == 1 / (found.attrs["n_unrelated"] + 1)


def test_what_is_read_is_what_was_built(index, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "tiles.safetensors"]
    again = sg.TileIndex.read(folder)
    pd.testing.assert_frame_equal(again.obs, index.obs)
    pd.testing.assert_frame_equal(again.shares["niche"], index.shares["niche"])
    for tower, values in index.embeddings.items():
        for scale, matrix in values.items():
            np.testing.assert_array_equal(again.embeddings[tower][scale], matrix)
    query = {"genes": index.genes[:2]}
    pd.testing.assert_frame_equal(sg.tl.search(query, folder), sg.tl.search(query, index))
    assert repr(again) == repr(index)
    assert "labels: niche" in repr(again)


def test_another_folder_is_never_replaced(fitted, folder, index, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ExistsError, match="is no saved index"):
        fitted.build_index(tmp_path, overwrite=True)
    with pytest.raises(ExistsError, match="overwrite=True"):
        fitted.build_index(folder)
    assert (tmp_path / "note.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": 99}, "has format 99, this version reads 1"),
        ({"checksum": "0"}, "tiles.safetensors is not the file that index.json describes"),
        ({"tile_size": "large"}, r"\['tile_size'\]='large' must be a number"),
        ({"temperatures": {"micro": 0.1, "other": 0.1}}, "KeyError"),
        ({"labels": {"niche": ["a"]}}, "is damaged"),
    ],
)
def test_a_damaged_index_is_told(index, folder, tmp_path, change, match):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "tiles.safetensors").symlink_to(folder / "tiles.safetensors")
    described = json.loads((folder / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps(described | change))
    with pytest.raises(SetupError, match=match):
        sg.TileIndex.read(copy)
    with pytest.raises(MissingKeyError, match="holds no saved index"):
        sg.TileIndex.read(tmp_path)


def test_a_query_of_another_model_is_known_by_its_weights(fitted, loaded, unseen, index):
    tiles = fitted.get_tile_representation({"new": unseen}, scale="all")
    assert tiles.uns["sigmma"] == {"modality": "image", "scale": "all", "model": index.model}
    assert fingerprint(loaded.module) == index.model
    assert len(sg.tl.search(tiles[20:24], index)) == len(index.obs)
