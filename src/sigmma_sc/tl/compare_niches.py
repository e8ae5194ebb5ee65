"""Niches between conditions, with donors as the units."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigmma_sc._checks import require_key, require_whole
from sigmma_sc.tissue.table import require_table

if TYPE_CHECKING:
    from anndata import AnnData

    from sigmma_sc.niches.compare import NicheComparison


def compare_niches(
    adata: AnnData,
    condition: str,
    donor: str,
    scale: str = "meso",
    *,
    key: str = "sigmma_niche",
    reference: str | None = None,
    expression: bool = True,
    layer: str | None = None,
    min_cells: int = 10,
) -> NicheComparison:
    """Compare the abundance of niches, and the expression within them, between conditions; donors are the units.

    Cells of one donor are no independent observations, so each donor counts once: several slides of a donor are pooled.
    Both tests are Welch's t-test on one value a donor, with q-values by Benjamini and Hochberg. The niches have to be the
    same for all donors: of one call of :func:`sigmma_sc.tl.niches`, or of :func:`sigmma_sc.tl.assign_niches`.

    Parameters
    ----------
    adata
        Table with niches of all donors. Cells without a niche, condition or donor are left out.
    condition
        Column of ``obs`` with the condition, the same for all cells of a donor.
    donor
        Column of ``obs`` with the donor.
    scale
        Scale of the niches.
    key
        Prefix of the columns of niches, ``key_added`` of :func:`sigmma_sc.tl.niches`.
    reference
        Condition that each other one is compared with; the first of two by default.
    expression
        Whether to compare expression too, which needs raw counts.
    layer
        Layer of raw counts; ``None`` for ``X``.
    min_cells
        Fewest cells of a niche with which a donor takes part in the comparison of expression within it.

    Returns
    -------
    Named tuple of three data frames:

    ``abundance`` has one row a niche and condition. ``share`` and ``share_reference`` are mean shares of the donors' cells.
    ``log2_fold_change`` is the difference of the mean log ratios that are tested, see Notes.

    ``expression`` has one row a gene, niche and condition; ``None`` with ``expression=False``. The value of a donor is log2
    of the counts per million of the summed cells. ``log2_fold_change`` is the difference of its means.

    Both have ``statistic``, ``p_value``, ``q_value``, ``n_donors`` and ``n_donors_reference``. A test that fewer than two
    donors of a condition take part in, or in which nothing varies, is NaN and does not count in the correction. Neither do
    niches and genes of which fewer than two cells or counts are expected in a donor of either condition.

    ``shares`` holds the share of each niche in the cells of each donor, and the ``condition``.

    Raises
    ------
    MissingKeyError
        There is no such column.
    SetupError
        A donor has several conditions, a condition fewer than two donors, or there are more than two conditions and no
        ``reference``. Or the values are not counts.

    See Also
    --------
    sigmma_sc.pl.niche_abundance : Plot of the abundance.

    Notes
    -----
    Shares add up to one: where one niche grows, the shares of all others shrink. The value of a donor is therefore the
    centred log ratio: log2(cells + ½) of the niche less the mean over niches. The ½ stands for a niche that a donor lacks.
    It is more for donors with more cells than the mean, in proportion, as in edgeR (Robinson et al. 2010).
    From the differences between conditions their median is taken away, so that one niche that grows does not make the
    others fall, as in LinDA (Zhou et al. 2022, Genome Biology 23, 95). This needs most niches to stay as they are, and
    works less well with fewer than six niches (page *Cohorts*).

    Niches are found on the same expression, so a gene that shifts may also move cells to another niche. Read abundance
    before expression.

    Examples
    --------
    >>> cells = adata.copy()
    >>> cells.obs["donor"] = [f"donor{k % 6}" for k in range(cells.n_obs)]
    >>> cells.obs["condition"] = ["treated" if k % 6 < 3 else "control" for k in range(cells.n_obs)]
    >>> found = sg.tl.compare_niches(cells, "condition", "donor")
    >>> found.abundance[["niche", "condition", "reference", "n_donors"]].head(2)
      niche condition reference  n_donors
    0     0   treated   control         3
    1     1   treated   control         3
    >>> bool((found.abundance.q_value < 0.05).any())  # the same tissue in both
    False
    """
    from sigmma_sc.niches.compare import compare, donors_of

    require_table(adata)
    column = f"{key}_{scale}"
    require_key(column, adata.obs, "column", "Call sg.tl.niches(adata) first.")
    require_key(condition, adata.obs, "condition")
    require_key(donor, adata.obs, "donor")
    require_whole(min_cells, "min_cells")
    donors = donors_of(adata.obs, column, condition, donor, reference)
    return compare(donors, adata if expression else None, layer, int(min_cells))
