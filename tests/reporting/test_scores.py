import anndata as ad
import numpy as np
import pandas as pd

from sigmma_sc.reporting.scores import gallery, retrieval, roles_of_tiles, scored_tiles


def tiles_of(split):
    n = len(split)
    obs = pd.DataFrame({"slide": ["a"] * n, "split": split}, index=[f"a_{k}" for k in range(n)])
    same = np.eye(n, dtype=np.float32)
    return ad.AnnData(obs=obs, obsm={"image_meso": same, "transcriptome_meso": np.roll(same, 1, axis=0)})


def test_roles_and_reasons_are_counted():
    obs = pd.DataFrame({"slide": list("aaab"), "split": ["train", "unused", "unused", "test"]})
    usable, tissue = np.array([True, False, False, True]), np.array([True, True, False, True])
    found = roles_of_tiles(obs, usable, tissue)
    assert found.loc["a"].to_dict() == {"test": 0, "too few cells": 1, "too little tissue": 1, "train": 1}
    assert found.loc["b", "test"] == 1


def test_scored_are_the_usable_test_tiles_or_all():
    tiles = tiles_of(["train", "test", "test", "test"])
    usable = np.array([True, True, False, True])
    assert scored_tiles(tiles, usable, ["meso"]).rows.tolist() == [1, 3]
    everything = scored_tiles(tiles_of(["train"] * 4), usable, ["meso"])
    assert (everything.split, everything.rows.tolist()) == ("all", [0, 1, 3])


def test_the_gallery_shows_what_is_most_similar():
    tiles = tiles_of(["test"] * 4)
    scored = scored_tiles(tiles, np.ones(4, bool), ["meso"])
    queries = gallery(tiles, scored)
    assert len(queries) == 3
    for query in queries:
        assert query.hits[0] == (query.row + 1) % 4  # whose cells were rolled to it
        assert query.similarity[0] == 1.0
        assert query.pool == 4
    table = retrieval(tiles, scored)
    assert table["pool"].eq(4).all()
    assert gallery(tiles_of(["test"]), scored_tiles(tiles_of(["test"]), np.ones(1, bool), ["meso"])) == []
