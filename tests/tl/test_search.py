import re
from dataclasses import replace

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import sigmma_sc as sg
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError, UnlikeWarning

PLANTED = [0] * 30 + [1] * 70
OTHERS = [1, 2, 3] * 40


@pytest.fixture(scope="module")
def index(make_index):
    """Kind 0 is planted on one slide, and on the other there is none of it."""
    return make_index({"planted": PLANTED, "others": OTHERS})


def alike(found, slide):
    """Names of the tiles of a slide that are alike."""
    return set(found["tile"][found["alike"] & (found["slide"] == slide)])


def names(slide, which):
    return {f"{slide}_{k}" for k in which}


@pytest.mark.parametrize("modality", ["image", "transcriptome"])
@pytest.mark.parametrize(
    ("query", "own"),
    [({"tiles": ["planted_0", "planted_1", "planted_2"]}, 3), ({"genes": ["g0", "g1", "g2"]}, 0), ({"kind": "k0"}, 10)],
)
def test_what_is_planted_is_found_and_nothing_where_there_is_none(index, query, own, modality):
    found = sg.tl.search(query, index, modality)
    assert len(found) == len(PLANTED) + len(OTHERS) - own
    assert found["similarity"].is_monotonic_decreasing
    hits = alike(found, "planted")
    assert len(hits & names("planted", range(30))) >= 0.8 * (30 - own)
    assert len(hits - names("planted", range(30))) <= 0.2 * len(hits)
    assert alike(found, "others") == set()
    assert found.attrs == {
        "undecided": [], "modality": modality, "scale": "all", "fdr": 0.1, "n_unrelated": found.attrs["n_unrelated"], "tile_size": 128.0
    }  # fmt: skip
    # Three of four kinds are unrelated to any.
    assert 280 <= found.attrs["n_unrelated"] <= 320


def test_where_too_few_unrelated_tiles_are_known_nothing_found_says_nothing(index):
    # Of 300 unrelated tiles the smallest p-value is 1 / 301, so that at 0.02 a slide of 120 tiles needs 20 to be alike.
    with pytest.warns(UnlikeWarning, match=r"Slide 'others': \d+ tiles of the model .* only if (19|20|21) of 120 are"):
        found = sg.tl.search({"kind": "k0"}, index, fdr=0.02)
    assert found.attrs["undecided"] == ["others"]
    assert alike(found, "planted")
    (_, empty) = sg.pl.search(found, show=False)
    assert empty.get_title() == "others: too little to tell"
    plt.close("all")


def test_the_similarity_is_the_mean_cosine_over_scales(index):
    found = sg.tl.search({"tiles": ["planted_0"]}, index, query_modality="transcriptome").set_index("tile")
    cosines = []
    for scale in ("micro", "macro"):
        query, tile = index.embeddings["transcriptome"][scale][0], index.embeddings["image"][scale][7]
        cosines.append(query @ tile / np.linalg.norm(query) / np.linalg.norm(tile))
    assert found.loc["planted_7", "similarity"] == pytest.approx(np.mean(cosines), abs=1e-6)
    one = sg.tl.search({"tiles": ["planted_0"]}, index, scale="macro", query_modality="transcriptome").set_index("tile")
    assert one.loc["planted_7", "similarity"] == pytest.approx(cosines[1], abs=1e-6)
    assert found.loc["planted_7", ["x", "y"]].tolist() == [64 + 7 * 128, 64]


def test_a_slide_of_unrelated_tiles_has_any_hit_at_most_as_often_as_the_level(make_index):
    """150 slides of 100 unrelated tiles, 15 models: p-values are at least uniform, and 10 % of slides or fewer have a hit."""
    p = []
    any_hit = []
    for seed in range(15):
        index = make_index({f"s{k}": [1, 2, 3] * 34 for k in range(10)}, seed=seed, noise=1.0)
        found = sg.tl.search({"genes": ["g0", "g1", "g2"]}, index)
        p.append(found["p_value"])
        any_hit += found.groupby("slide", observed=True)["alike"].any().tolist()
    p = np.concatenate(p)
    for level in (0.01, 0.05, 0.1, 0.5):
        # Tiles of one model share its unrelated tiles: their number limits what can be told.
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / (15 * 300))
    assert np.mean(any_hit) <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 150)


def test_tiles_unlike_the_training_tissue_are_not_tested(index):
    obs = index.obs.assign(sigmma_alike=np.where(np.arange(len(index.obs)) < 20, 0.005, 0.5))
    other = replace(index, obs=obs)
    found = sg.tl.search({"kind": "k0"}, other, n_tiles=1).set_index("tile")
    assert found.loc["planted_5", ["p_value", "alike"]].isna().tolist() == [True, False]
    assert not found.loc["planted_5", "alike"]
    assert found.loc["planted_25", "alike"]
    every = sg.tl.search({"kind": "k0"}, other, n_tiles=1, withhold=None).set_index("tile")
    assert every.loc["planted_5", "alike"]


def test_tiles_without_cells_are_searched_by_their_image_alone(index):
    cells = {scale: values.copy() for scale, values in index.embeddings["transcriptome"].items()}
    for values in cells.values():
        values[:40] = np.nan
    other = replace(index, embeddings=index.embeddings | {"transcriptome": cells})
    assert len(sg.tl.search({"genes": ["g0"]}, other, "transcriptome")) == len(index.obs) - 40
    assert len(sg.tl.search({"genes": ["g0"]}, other)) == len(index.obs)
    with pytest.raises(SetupError, match="'planted_3' has too few cells"):
        sg.tl.search({"tiles": ["planted_3"]}, other, query_modality="transcriptome")
    with pytest.raises(SetupError, match="label='k0': no tile with cells has it"):
        sg.tl.search({"kind": "k0"}, other)


def a_region(index, scale="all", model="abc"):
    x = np.concatenate([index.embeddings["image"][s][:5] for s in ("micro", "macro")], axis=1)
    return ad.AnnData(x, uns={"sigmma": {"modality": "image", "scale": scale, "model": model}})


def test_tiles_of_another_slide_are_searched_for(index):
    found = sg.tl.search(a_region(index), index)
    assert len(found) == len(index.obs)
    assert names("planted", range(30)) <= alike(found, "planted")


@pytest.mark.parametrize(
    ("query", "error", "match"),
    [
        ({"tiles": ["planted_999"]}, MissingKeyError, "tile='planted_999' .*index.obs"),
        ({"genes": ["g0", "NOPE"]}, MissingKeyError, "gene='NOPE'"),
        ({"type": "k0"}, MissingKeyError, "query='type' .*build_index"),
        ({"kind": "k9"}, MissingKeyError, "label='k9'"),
        ({"tiles": ["planted_0"], "genes": ["g0"]}, SetupError, "must have one key"),
    ],
)
def test_queries_that_the_index_cannot_answer(index, query, error, match):
    with pytest.raises(error, match=match):
        sg.tl.search(query, index)


def test_tiles_that_cannot_be_compared_are_refused(index):
    with pytest.raises(SetupError, match="another model"):
        sg.tl.search(a_region(index, model="xyz"), index)
    with pytest.raises(SetupError, match="scale='macro', and scale='all' is searched"):
        sg.tl.search(a_region(index, scale="macro"), index)
    with pytest.raises(SetupError, match="is not of model.get_tile_representation"):
        sg.tl.search(ad.AnnData(np.ones((2, 3))), index)
    with pytest.raises(SetupError, match="is not of model.get_tile_representation"):
        sg.tl.search(a_region(index)[:0], index)


def test_too_few_unrelated_tiles_for_a_level(make_index):
    small = make_index({"a": [0, 1]}, n_reference=20)
    with pytest.raises(SetupError, match=r"fdr=0.01 needs 99 tiles .* unrelated to the query, and there are 1\d"):
        sg.tl.search({"genes": ["g0"]}, small, fdr=0.01)
    sg.tl.search({"genes": ["g0"]}, small)


def test_genes_that_never_vary_are_refused(index):
    constant = index.reference.expression.copy()
    constant[:, 4] = 1
    other = replace(index, reference=replace(index.reference, expression=constant))
    with pytest.raises(SetupError, match=re.escape("Genes ['g4']")):
        sg.tl.search({"genes": ["g4"]}, other)
    both = sg.tl.search({"genes": ["g4", "g0"]}, other)
    pd.testing.assert_frame_equal(both, sg.tl.search({"genes": ["g0"]}, other))


def test_the_result_is_written_if_asked(index):
    obs = pd.DataFrame(index=["planted_1", "planted_0", "elsewhere_0", "others_4"])
    sdata = sd.SpatialData(tables={"sigmma_tiles": ad.AnnData(np.zeros((4, 1)), obs)})
    found = sg.tl.search({"tiles": ["planted_0"]}, index, sdata=sdata, key_added="like_it").set_index("tile")
    written = sdata["sigmma_tiles"].obs
    assert written["like_it"].tolist() == [True, pd.NA, pd.NA, False]
    assert written["like_it_similarity"].iloc[0] == found.loc["planted_1", "similarity"]
    with pytest.raises(ExistsError, match="'like_it'"):
        sg.tl.search({"tiles": ["planted_0"]}, index, sdata=sdata, key_added="like_it")
    with pytest.raises(SetupError, match="go together"):
        sg.tl.search({"tiles": ["planted_0"]}, index, sdata=sdata)
