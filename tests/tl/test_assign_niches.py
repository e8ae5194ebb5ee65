import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import sigmma_sc as sg
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError


def table(x, **obs):
    adata = AnnData(obs=pd.DataFrame(obs, index=[f"c{k}" for k in range(len(x))]))
    for scale in ("micro", "meso"):
        adata.obsm[f"X_sigmma_{scale}"] = np.asarray(x, np.float32)
    return adata


@pytest.fixture
def known(rng):
    x = rng.normal(size=(300, 4)) + 12 * np.eye(4)[np.arange(300) % 3]
    labels = pd.Categorical([f"n{k % 3}" for k in range(300)])
    return x, sg.NichePrototypes.fit({"micro": x, "meso": x}, {"micro": labels, "meso": labels})


def test_columns_are_written_for_every_scale(known):
    x, prototypes = known
    adata = table(np.r_[x[:6], np.full((1, 4), 99.0), np.full((1, 4), np.nan)])
    sg.tl.assign_niches(adata, prototypes, key_added="mine")
    assert list(adata.obs) == ["mine_micro", "mine_micro_score", "mine_meso", "mine_meso_score"]
    for scale in ("micro", "meso"):
        niche = adata.obs[f"mine_{scale}"]
        assert list(niche.cat.categories) == ["n0", "n1", "n2", "unlike any"]
        assert niche.tolist()[:7] == ["n0", "n1", "n2", "n0", "n1", "n2", "unlike any"]
        assert niche.isna().tolist() == [False] * 7 + [True]
        score = adata.obs[f"mine_{scale}_score"]
        assert (score[:6] > 0.5).all()
        assert score[6:].isna().all()


def test_columns_are_replaced_only_on_request(known):
    x, prototypes = known
    adata = table(x[:6], sigmma_niche_meso=list("abcdef"))
    with pytest.raises(ExistsError, match="'sigmma_niche_meso' already"):
        sg.tl.assign_niches(adata, prototypes)
    assert list(adata.obs) == ["sigmma_niche_meso"]
    sg.tl.assign_niches(adata, prototypes, scales=["meso"], overwrite=True)
    assert adata.obs["sigmma_niche_meso"].tolist() == ["n0", "n1", "n2"] * 2


def test_refusals_before_anything_is_written(known):
    x, prototypes = known
    adata = table(x[:6])
    del adata.obsm["X_sigmma_meso"]
    with pytest.raises(MissingKeyError, match="X_sigmma_meso"):
        sg.tl.assign_niches(adata, prototypes)
    with pytest.raises(MissingKeyError, match="scale='macro'"):
        sg.tl.assign_niches(adata, prototypes, scales=["macro"])
    with pytest.raises(SetupError, match="prototypes is a dict"):
        sg.tl.assign_niches(adata, prototypes.to_dict())
    with pytest.raises(SetupError, match="Leave sample_key out"):
        sg.tl.assign_niches(adata, prototypes, scales=["micro"], sample_key="slide")
    adata.obsm["X_sigmma_meso"] = np.zeros((6, 3), np.float32)
    with pytest.raises(SetupError, match="the prototypes have 4 columns"):
        sg.tl.assign_niches(adata, prototypes)
    assert not list(adata.obs)


def test_slides_are_standardised_where_the_niches_were(known):
    x, _ = known
    labels = pd.Categorical([f"n{k % 3}" for k in range(300)])
    from sigmma_sc.niches.standardise import standardise

    z = standardise(x, ["first"] * 300)
    prototypes = sg.NichePrototypes.fit({"meso": z}, {"meso": labels}, by_sample=True, quantile=1.0)
    adata = table(5 * x + 3, slide=["new"] * 300)
    sg.tl.assign_niches(adata, prototypes, sample_key="slide")
    assert (adata.obs["sigmma_niche_meso"].astype(str) == np.asarray(labels)).mean() > 0.99
    with pytest.raises(MissingKeyError, match="sample_key='nothing'"):
        sg.tl.assign_niches(adata, prototypes, sample_key="nothing", overwrite=True)


def test_cells_are_assigned_by_the_embedding_that_the_niches_were_found_on(known, tmp_path):
    x, _ = known
    adata = table(np.zeros_like(x), sigmma_covered=True)
    adata.obsm["X_pca"] = x.astype(np.float32)
    found = sg.tl.niches(adata, ["own"], resolution=0.1, use_rep={"own": "X_pca"})
    found.save(tmp_path / "niches.safetensors")
    others = table(np.zeros_like(x))
    others.obsm["X_pca"] = x.astype(np.float32)
    for prototypes in (found, sg.NichePrototypes.load(tmp_path / "niches.safetensors")):
        sg.tl.assign_niches(others, prototypes, overwrite=True)
        here, there = others.obs["sigmma_niche_own"].astype(str), adata.obs["sigmma_niche_own"].astype(str)
        assert (here == there)[here != "unlike any"].all()
        assert (here != "unlike any").mean() > 0.95
    with pytest.raises(MissingKeyError, match="X_pca"):
        sg.tl.assign_niches(table(x), found)


def test_the_confidence_of_niches_that_are_replaced_goes_with_them(known):
    x, prototypes = known
    adata = table(x, sigmma_niche_meso="a", sigmma_niche_meso_confidence=1.0)
    with pytest.raises(ExistsError, match="sigmma_niche_meso_confidence"):
        sg.tl.assign_niches(adata, prototypes, ["meso"])
    sg.tl.assign_niches(adata, prototypes, ["meso"], overwrite=True)
    assert list(adata.obs) == ["sigmma_niche_meso", "sigmma_niche_meso_score"]
