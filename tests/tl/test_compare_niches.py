import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix
from scipy.stats import false_discovery_control, ttest_ind
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

import sigmma_sc as sg
from sigmma_sc.errors import MissingKeyError, SetupError
from sigmma_sc.niches.compare import _log_cpm, _too_few, abundance_table

CELLS = pd.DataFrame(
    {
        "a": [40, 50, 30, 90, 80, 85],
        "b": [30, 35, 40, 30, 28, 33],
        "c": [20, 22, 18, 21, 19, 24],
        "d": [10, 0, 12, 9, 11, 8],
    },
    index=[f"d{k}" for k in range(6)],
)
CONDITION = pd.Series(pd.Categorical(["control"] * 3 + ["treated"] * 3), index=CELLS.index)


def table(cells=CELLS, condition=CONDITION, seed=0, raised=None):
    """A cell for each count, ten genes; ``raised`` names a niche in which gene g0 is four times as high if treated."""
    donor = np.repeat(cells.index, cells.sum(axis=1))
    niche = np.concatenate([np.repeat(cells.columns, row) for row in cells.to_numpy()])
    treated = (condition.loc[donor] == "treated").to_numpy()
    mean = np.full((len(donor), 10), 2.0)
    mean[treated & (niche == raised), 0] *= 4
    counts = np.random.default_rng(seed).poisson(mean)
    counts[:, 9] = 0
    obs = pd.DataFrame(
        {"donor": donor, "sigmma_niche_meso": pd.Categorical(niche), "condition": condition.loc[donor].to_numpy()}
    )
    obs.index = [f"c{k}" for k in range(len(obs))]
    adata = AnnData(csr_matrix(counts.astype(np.float32)), obs=obs)
    adata.var_names = [f"g{k}" for k in range(10)]
    return adata


def test_abundance_is_welchs_test_of_centred_log_ratios_less_their_median_difference():
    found = sg.tl.compare_niches(table(), "condition", "donor", expression=False)
    totals = CELLS.sum(axis=1)
    logs = np.log2(CELLS.add(0.5 * totals / totals.mean(), axis=0))
    ratios = logs.sub(logs.mean(axis=1), axis=0).to_numpy(copy=True)
    difference = ratios[3:].mean(axis=0) - ratios[:3].mean(axis=0)
    ratios[3:] -= np.median(difference)
    rows = found.abundance.set_index("niche")
    for k, niche in enumerate(CELLS):
        means = CompareMeans(DescrStatsW(ratios[3:, k]), DescrStatsW(ratios[:3, k]))
        statistic, p_value, _ = means.ttest_ind(usevar="unequal")
        np.testing.assert_allclose(rows.loc[niche, ["statistic", "p_value"]].astype(float), [statistic, p_value])
    np.testing.assert_allclose(rows.log2_fold_change, difference - np.median(difference), atol=1e-12)
    np.testing.assert_allclose(rows.q_value, multipletests(rows.p_value, method="fdr_bh")[1])
    np.testing.assert_allclose(rows.share_reference["a"], np.mean([0.4, 50 / 107, 0.3]))
    assert rows.n_donors.tolist() == rows.n_donors_reference.tolist() == [3] * 4
    assert found.expression is None


def test_expression_is_welchs_test_of_the_pseudobulk_of_each_donor():
    adata = table(raised="b")
    found = sg.tl.compare_niches(adata, "condition", "donor", min_cells=15).expression
    assert len(found) == 40
    sums = np.zeros((6, 10))
    for k, donor in enumerate(CELLS.index):
        here = ((adata.obs.donor == donor) & (adata.obs.sigmma_niche_meso == "b")).to_numpy()
        sums[k] = adata.X[here].sum(axis=0)
    totals = sums.sum(axis=1, keepdims=True)
    added = 0.5 * totals / totals.mean()
    logs = np.log2(1e6 * (sums + added) / (totals + 2 * added))
    rows = found[found.niche == "b"].set_index("gene")
    expected = ttest_ind(logs[3:, :9], logs[:3, :9], equal_var=False)
    np.testing.assert_allclose(rows.p_value[:9], expected.pvalue, rtol=1e-6)
    assert rows.log2_fold_change.idxmax() == "g0"
    assert 1.2 < rows.log2_fold_change["g0"] < 2.2
    best = found.loc[found.q_value.idxmin()]
    assert (best.gene, best.niche) == ("g0", "b")
    # A gene without counts is not tested, nor a niche with fewer cells: their NaN do not spread to the others.
    untested = (found.gene == "g9") | (found.niche == "d")
    assert found.p_value.isna().equals(untested)
    np.testing.assert_allclose(
        found.q_value[~untested], false_discovery_control(found.p_value[~untested].to_numpy()), rtol=1e-12
    )


@pytest.mark.parametrize("share", [0.0005, 0.001, 0.003, 0.01])
def test_donors_of_few_cells_do_not_seem_to_have_more_of_a_rare_niche(share):
    """The same tissue in both conditions, a tenth of the cells in one: with ½ for all donors, nearly every cohort differed."""
    rng = np.random.default_rng(0)
    niches = np.r_[share, np.full(7, (1 - share) / 7)]
    condition = pd.Series(pd.Categorical(["control"] * 6 + ["treated"] * 6))
    wrong = []
    for _ in range(60):
        cells = [rng.multinomial(n, niches) for n in [1500] * 6 + [150] * 6]
        found = abundance_table(pd.DataFrame(cells, columns=list("abcdefgh")), condition, "control")
        wrong.append((found.q_value < 0.05).any())
        assert np.isnan(found.p_value[0]) == (found.share.iloc[0] + found.share_reference.iloc[0] < 2 * 2 / 150)
    assert np.mean(wrong) < 0.2


def test_genes_of_few_counts_are_not_tested_and_a_gene_without_counts_has_no_change():
    rng = np.random.default_rng(0)
    donors = pd.Series(pd.Categorical(["control"] * 6 + ["treated"] * 6))
    counts = np.array([rng.poisson([0.002 * n, 5 * n, 5 * n, 0]) for n in [1000] * 6 + [100] * 6])
    few = _too_few(counts, (donors == "treated").to_numpy(), (donors == "control").to_numpy())
    assert few.tolist() == [True, False, False, True]
    logs = _log_cpm(counts)
    np.testing.assert_allclose(logs[:, 3], logs[0, 3], rtol=1e-12)
    np.testing.assert_allclose(logs[:, 1], np.log2(5e5), atol=0.2)


def test_slides_of_a_donor_are_pooled_and_cells_without_a_label_left_out():
    adata = table()
    expected = sg.tl.compare_niches(adata, "condition", "donor", expression=False)
    adata = adata[np.random.default_rng(1).permutation(adata.n_obs)].copy()
    stray = adata[:30].copy()
    stray.obs_names = [f"s{k}" for k in range(30)]
    stray.obs["sigmma_niche_meso"] = pd.Categorical([None] * 30, categories=list("abcd"))
    import anndata

    both = anndata.concat([adata, stray])
    both.obs["sigmma_niche_meso"] = pd.Categorical(both.obs["sigmma_niche_meso"], categories=list("abcd"))
    found = sg.tl.compare_niches(both, "condition", "donor", expression=False)
    pd.testing.assert_frame_equal(found.abundance, expected.abundance)
    pd.testing.assert_frame_equal(found.shares, expected.shares)


def test_each_condition_is_compared_with_the_reference():
    names = ["x", "x", "y", "y", "z", "z"]
    condition = pd.Series(pd.Categorical(names), index=CELLS.index)
    adata = table(condition=condition)
    with pytest.raises(
        SetupError, match="has 3 conditions. Pass the one to compare with as reference=…: 'x', 'y', 'z'"
    ):
        sg.tl.compare_niches(adata, "condition", "donor")
    found = sg.tl.compare_niches(adata, "condition", "donor", reference="y", expression=False).abundance
    assert found[["condition", "reference"]].drop_duplicates().to_numpy().tolist() == [["x", "y"], ["z", "y"]]
    with pytest.raises(SetupError, match="reference='w' is no condition"):
        sg.tl.compare_niches(adata, "condition", "donor", reference="w")


def test_refusals():
    adata = table()
    for argument in ("condition", "donor"):
        with pytest.raises(MissingKeyError, match=f"{argument}='nothing'"):
            sg.tl.compare_niches(adata, **{"condition": "condition", "donor": "donor", argument: "nothing"})
    with pytest.raises(MissingKeyError, match="sigmma_niche_macro"):
        sg.tl.compare_niches(adata, "condition", "donor", scale="macro")
    mixed = adata.copy()
    mixed.obs.loc[mixed.obs_names[0], "condition"] = "treated"
    with pytest.raises(SetupError, match="Donor 'd0' has cells of several conditions"):
        sg.tl.compare_niches(mixed, "condition", "donor")
    with pytest.raises(SetupError, match=r"found 'control' \(3\), 'treated' \(1\)"):
        sg.tl.compare_niches(adata[adata.obs.donor.isin(["d0", "d1", "d2", "d3"])].copy(), "condition", "donor")
    with pytest.raises(SetupError, match=r"found 'control' \(3\)"):
        sg.tl.compare_niches(adata[adata.obs.condition == "control"].copy(), "condition", "donor")
    mixed = adata.copy()
    mixed.obs["donor"] = pd.Series(mixed.obs["donor"].astype(object)).replace({"d0": 1, "d1": "1"}).to_numpy()
    with pytest.raises(SetupError, match=r"obs\['donor'\] holds '1' as a text and as something else"):
        sg.tl.compare_niches(mixed, "condition", "donor")
    mixed = adata.copy()
    mixed.obs["sigmma_niche_meso"] = mixed.obs["sigmma_niche_meso"].cat.rename_categories({"a": "condition"})
    with pytest.raises(SetupError, match="is named 'condition'"):
        sg.tl.compare_niches(mixed, "condition", "donor")
    adata.X = adata.X * 0.5
    with pytest.raises(SetupError, match="normalised already"):
        sg.tl.compare_niches(adata, "condition", "donor")
