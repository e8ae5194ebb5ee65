"""Abundance of niches, and expression within them, between groups of donors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.counts import counts_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

PSEUDOCOUNT = 0.5
"""Added to the number of cells of every niche of a donor, and to the counts of a gene, before the logarithm.

A donor with more cells than the mean gets more, in proportion, as in edgeR's ``cpm``: with the same number for all, a rare
niche would seem more frequent in donors of few cells.
"""

FEWEST = 2.0
"""Cells of a niche, or counts of a gene, expected in a donor of either group for a test. With fewer, groups that differ
tenfold in depth seemed to differ in up to a third of simulated cohorts (page *Cohorts*)."""

PER_MILLION = 1e6

CONDITION = "condition"
"""Column of the shares with the condition of each donor."""


class NicheComparison(NamedTuple):
    """Result of :func:`sigmma_sc.tl.compare_niches`."""

    abundance: pd.DataFrame  # one row a niche and condition
    expression: pd.DataFrame | None  # one row a gene, niche and condition; None where it was not asked for
    shares: pd.DataFrame  # share of each niche in the cells of each donor, donors × niches, and the column "condition"


@dataclass(frozen=True)
class Donors:
    """The cells to compare, and the donors that they belong to."""

    rows: NDArray[np.int64]  # rows of the cells in the table, ascending, (n,)
    donor: pd.Categorical  # donor of each cell, (n,)
    niche: pd.Categorical  # niche of each cell, (n,)
    condition: pd.Series  # condition of each donor, in the order of the donors' categories
    reference: str  # condition that the others are compared with

    @property
    def others(self) -> list[str]:
        """The conditions that are compared with the reference."""
        return [name for name in self.condition.cat.categories if name != self.reference]

    def cells(self) -> pd.DataFrame:
        """Number of cells, donors × niches."""
        counts = np.zeros((len(self.donor.categories), len(self.niche.categories)), np.int64)
        np.add.at(counts, (self.donor.codes, self.niche.codes), 1)
        return pd.DataFrame(counts, self.donor.categories, self.niche.categories)


def compare(donors: Donors, table: AnnData | None, layer: str | None, min_cells: int) -> NicheComparison:
    """Both comparisons; of abundance alone without a table of counts."""
    cells = donors.cells()
    shares = cells.div(cells.sum(axis=1), axis=0)
    expression = None if table is None else expression_table(donors, table, layer, min_cells)
    shares[CONDITION] = donors.condition
    return NicheComparison(abundance_table(cells, donors.condition, donors.reference), expression, shares)


def log_ratios(cells: pd.DataFrame) -> NDArray[np.float64]:
    """Centred log ratios to base 2, donors × niches: logarithms of the cells less their mean over niches."""
    counts = cells.to_numpy()
    logs = np.log2(counts + _added(counts))
    return logs - logs.mean(axis=1, keepdims=True)


def _added(counts: NDArray) -> NDArray[np.float64]:
    """Pseudocount of each donor ``(n, 1)``."""
    totals = counts.sum(axis=1, keepdims=True)
    return PSEUDOCOUNT * totals / totals.mean()


def _too_few(counts: NDArray, here: NDArray[np.bool_], there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Columns of which fewer than :data:`FEWEST` are expected in a donor of either group, if the groups are alike."""
    totals = counts.sum(axis=1, keepdims=True)
    share = (counts / np.maximum(totals, 1))[here | there].mean(axis=0)
    depth = min(totals[group].mean() if group.any() else 0.0 for group in (here, there))
    return share * depth < FEWEST


def abundance_table(cells: pd.DataFrame, condition: pd.Series, reference: str) -> pd.DataFrame:
    """Welch's test of the log ratios of each niche, ``cells`` being donors × niches.

    Where one niche grows, the centred log ratios of all others fall by the same amount. Their median difference is that
    amount, and is taken away before the test, as in LinDA (Zhou et al. 2022, Genome Biology 23, 95; there the mode). Niches
    too rare for a test have no p-value.
    """
    ratios = log_ratios(cells)
    shares = cells.div(cells.sum(axis=1), axis=0)
    parts = []
    for other in condition.cat.categories:
        if other == reference:
            continue
        here = (condition == other).to_numpy()
        there = (condition == reference).to_numpy()
        shift = np.median(ratios[here].mean(axis=0) - ratios[there].mean(axis=0))
        part = _welch(ratios - shift * here[:, None], here, there)
        part.loc[_too_few(cells.to_numpy(), here, there), ["statistic", "p_value"]] = np.nan
        part.insert(0, "niche", list(cells.columns))
        part.insert(1, "condition", other)
        part.insert(2, "reference", reference)
        part.insert(3, "share", shares[here].mean().to_numpy())
        part.insert(4, "share_reference", shares[there].mean().to_numpy())
        parts.append(part)
    return _corrected(parts)


def expression_table(donors: Donors, table: AnnData, layer: str | None, min_cells: int) -> pd.DataFrame:
    """Welch's test of each gene within each niche, on the sums of counts of each donor."""
    cells = donors.cells().to_numpy()
    sums = _pseudobulk(donors, table, layer)
    condition = donors.condition
    parts = []
    for k, niche in enumerate(donors.niche.categories):
        counts = sums[:, k]
        enough = (cells[:, k] >= min_cells) & (counts.sum(axis=1) > 0)
        logs = np.full(counts.shape, np.nan)
        logs[enough] = _log_cpm(counts[enough])
        for other in donors.others:
            here = enough & (condition == other).to_numpy()
            there = enough & (condition == donors.reference).to_numpy()
            part = _welch(logs, here, there)
            part.loc[_too_few(counts, here, there), ["statistic", "p_value"]] = np.nan
            part.insert(0, "gene", table.var_names)
            part.insert(1, "niche", niche)
            part.insert(2, "condition", other)
            part.insert(3, "reference", donors.reference)
            parts.append(part)
    return _corrected(parts)


def _log_cpm(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts per million to base 2, donors × genes."""
    if not len(counts):
        return counts
    added = _added(counts)
    return np.log2((counts + added) / (counts.sum(axis=1, keepdims=True) + 2 * added) * PER_MILLION)


def _pseudobulk(donors: Donors, table: AnnData, layer: str | None) -> NDArray[np.float64]:
    """Counts summed over the cells of each donor and niche, ``(n_donors, n_niches, n_genes)``."""
    from scipy.sparse import csr_matrix

    n_donors, n_niches = len(donors.donor.categories), len(donors.niche.categories)
    group = donors.donor.codes.astype(np.int64) * n_niches + donors.niche.codes
    total = np.zeros((n_donors * n_niches, table.n_vars))
    for some, counts in counts_of(table, donors.rows, layer):
        ones = np.ones(counts.shape[0])
        member = csr_matrix((ones, (group[some], np.arange(len(ones)))), shape=(len(total), len(ones)))
        total += (member @ counts).toarray()
    return total.reshape(n_donors, n_niches, table.n_vars)


def _welch(values: NDArray[np.float64], here: NDArray[np.bool_], there: NDArray[np.bool_]) -> pd.DataFrame:
    """Welch's test of each column between two groups of rows; NaN where a group has one row, or nothing varies."""
    from scipy.stats import ttest_ind

    n_columns = values.shape[1]
    found = pd.DataFrame(
        {
            "log2_fold_change": np.full(n_columns, np.nan),
            "statistic": np.full(n_columns, np.nan),
            "p_value": np.full(n_columns, np.nan),
            "n_donors": here.sum(),
            "n_donors_reference": there.sum(),
        }
    )
    if not here.any() or not there.any():
        return found
    found["log2_fold_change"] = values[here].mean(axis=0) - values[there].mean(axis=0)
    varies = (np.ptp(values[here], axis=0) > 0) | (np.ptp(values[there], axis=0) > 0)
    if here.sum() > 1 and there.sum() > 1 and varies.any():
        test = ttest_ind(values[here][:, varies], values[there][:, varies], equal_var=False)
        found.loc[varies, "statistic"] = test.statistic
        found.loc[varies, "p_value"] = test.pvalue
    return found


def _corrected(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """All tests in one table, with ``q_value`` by Benjamini and Hochberg over those that have a p-value."""
    from scipy.stats import false_discovery_control

    table = pd.concat(parts, ignore_index=True)
    table["q_value"] = np.nan
    tested = np.isfinite(table.p_value.to_numpy())
    if tested.any():
        table.loc[tested, "q_value"] = false_discovery_control(table.p_value[tested])
    return table


def donors_of(obs: pd.DataFrame, niche: str, condition: str, donor: str, reference: str | None) -> Donors:
    """Cells with niche, condition and donor, or :class:`SetupError` where the donors cannot be compared."""
    known = obs[[niche, condition, donor]].notna().all(axis=1).to_numpy()
    rows = np.flatnonzero(known)
    cells = obs.iloc[rows]
    labels = {name: _categories(cells[name]) for name in (niche, condition, donor)}
    names = list(labels[condition].categories)
    pairs = pd.DataFrame({"donor": labels[donor], "condition": labels[condition]}).drop_duplicates()
    twice = pairs.donor[pairs.donor.duplicated()]
    if len(twice):
        raise SetupError(
            f"Donor {twice.iloc[0]!r} has cells of several conditions of obs[{condition!r}]. The test compares different donors; "
            "compare one condition a donor."
        )
    sizes = pairs.condition.value_counts()
    if len(names) < 2 or sizes.min() < 2:
        found = ", ".join(f"{name!r} ({sizes[name]})" for name in names) or "none"
        raise SetupError(
            f"obs[{condition!r}] needs two conditions of two donors or more each among the cells with a niche; found {found}."
        )
    if reference is None and len(names) > 2:
        raise SetupError(
            f"obs[{condition!r}] has {len(names)} conditions. Pass the one to compare with as reference=…: {', '.join(map(repr, names))}."
        )
    if reference is not None and reference not in names:
        raise SetupError(
            f"reference={reference!r} is no condition of obs[{condition!r}]: {', '.join(map(repr, names))}."
        )
    if CONDITION in labels[niche].categories:
        raise SetupError(
            f"A niche of obs[{niche!r}] is named {CONDITION!r}, as a column of the result is. Rename the niche."
        )
    if len(labels[niche].categories) < 2:
        raise SetupError(f"obs[{niche!r}] names {len(labels[niche].categories)} niche: nothing to compare.")
    by_donor = pairs.set_index("donor").condition.reindex(labels[donor].categories)
    return Donors(rows, labels[donor], labels[niche], by_donor, names[0] if reference is None else reference)


def _categories(labels: pd.Series) -> pd.Categorical:
    """Labels as strings, categories in their own order and only those that occur."""
    own = labels.astype("category").cat.remove_unused_categories()
    names = [str(name) for name in own.cat.categories]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SetupError(
            f"obs[{labels.name!r}] holds {min(twice)!r} as a text and as something else, such as a number. Make all one type: "
            f"obs[{labels.name!r}].astype(str)."
        )
    return pd.Categorical.from_codes(own.cat.codes, names)
