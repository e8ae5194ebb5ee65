import numpy as np
import pandas as pd
import pytest

from sigmma_sc.reporting.niches import nesting, niches_of


def test_niches_are_counted_from_the_table(run):
    sdata, model = run
    table = sdata["table"]
    slides = model.resolve()
    found = niches_of(table, "sigmma_niche_meso", "kind", slides, 3)
    labels = table.obs["sigmma_niche_meso"]
    assert [niche.name for niche in found] == list(labels.cat.categories)
    for niche in found:
        here = labels == niche.name
        assert niche.n_cells == here.sum()
        assert niche.share == pytest.approx(here.sum() / labels.notna().sum())
        assert niche.confidence == pytest.approx(table.obs["sigmma_niche_meso_confidence"][here].mean(), rel=1e-5)
        shares = table.obs["kind"][here].value_counts(normalize=True)
        assert [share for _, share in niche.types] == pytest.approx(shares[shares > 0].head(6).to_list())
        assert all(shares[name] == pytest.approx(share) for name, share in niche.types)


def test_example_tiles_have_the_largest_share(run):
    sdata, model = run
    (slide,) = model.resolve()
    labels = sdata["table"].obs["sigmma_niche_micro"]
    tile = pd.Series(slide.tile_of_cell, labels.index)
    counts = pd.crosstab(tile[labels.notna()], labels[labels.notna()])
    shares = counts.div(counts.sum(axis=1), axis=0)[counts.sum(axis=1) >= 3].drop(index=-1, errors="ignore")
    for niche in niches_of(sdata["table"], "sigmma_niche_micro", None, [slide], 3):
        best = shares[niche.name].sort_values(ascending=False).head(3)
        assert shares.loc[[t for _, t in niche.tiles], niche.name].to_list() == best[best > 0].to_list()
        assert niche.types == []


def test_nesting_rows_add_up_to_one(run):
    table = run[0]["table"]
    found = nesting(table, "sigmma_niche_micro", "sigmma_niche_macro")
    np.testing.assert_allclose(found.sum(axis=1), 1)
    both = table.obs[["sigmma_niche_micro", "sigmma_niche_macro"]].dropna()
    first, second = found.index[0], found.columns[1]
    of_first = both[both.iloc[:, 0] == first]
    assert found.loc[first, second] == pytest.approx((of_first.iloc[:, 1] == second).mean())
