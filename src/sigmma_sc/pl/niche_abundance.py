"""Abundance of niches by condition, one dot a donor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import SetupError
from sigmma_sc.pl._cells import PALETTE
from sigmma_sc.pl._finish import finish

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from sigmma_sc.niches.compare import NicheComparison

GROUP = 0.7
"""Width of the dots of all conditions of a niche, of the distance between niches."""


def niche_abundance(
    comparison: NicheComparison,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the share of each niche in the cells of each donor: one dot a donor, a line at the mean of a condition.

    The q-value of each test is written above its niche.

    Parameters
    ----------
    comparison
        Result of :func:`sigmma_sc.tl.compare_niches`.
    ax
        Axes to draw on; ``None`` for a figure of its own.
    show
        Whether to show the figure; by default if it is not saved and has no axes of yours.
    save
        File to write the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    SetupError
        The comparison holds no donor.

    See Also
    --------
    sigmma_sc.tl.compare_niches : Compute the comparison.

    Examples
    --------
    >>> cells = adata.copy()
    >>> cells.obs["donor"] = [f"donor{k % 6}" for k in range(cells.n_obs)]
    >>> cells.obs["condition"] = ["treated" if k % 6 < 3 else "control" for k in range(cells.n_obs)]
    >>> found = sg.tl.compare_niches(cells, "condition", "donor", expression=False)
    >>> ax = sg.pl.niche_abundance(found, save="abundance.png")
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['control', 'treated']
    """
    import matplotlib.pyplot as plt

    from sigmma_sc.niches.compare import NicheComparison

    if not isinstance(comparison, NicheComparison):
        raise SetupError(f"comparison is a {type(comparison).__name__}. Pass the result of sg.tl.compare_niches.")
    shares = comparison.shares
    if not len(shares):
        raise SetupError("comparison holds no donor. Pass the result of sg.tl.compare_niches.")
    niches = [name for name in shares.columns if name != "condition"]
    conditions = list(shares.condition.cat.categories)
    own = ax is None
    if ax is None:
        width = 1.6 + max(3.0, 0.34 * len(niches) * len(conditions))
        ax = plt.subplots(figsize=(width, 3.4), layout="constrained")[1]
    step = GROUP / len(conditions)
    for number, condition in enumerate(conditions):
        values = shares.loc[(shares.condition == condition).to_numpy(), niches].to_numpy()
        middle = np.arange(len(niches)) + (number - (len(conditions) - 1) / 2) * step
        colour = PALETTE[number % len(PALETTE)]
        # Donors side by side in their order, so that dots of equal shares do not hide one another.
        aside = np.linspace(-0.3, 0.3, len(values)) * step if len(values) > 1 else np.zeros(1)
        x = middle[None] + aside[:, None]
        ax.scatter(x.ravel(), values.ravel(), s=18, color=colour, linewidths=0, label=str(condition))
        ax.hlines(values.mean(axis=0), middle - 0.4 * step, middle + 0.4 * step, color=colour, lw=1.5)
    top = shares[niches].to_numpy().max(axis=0)
    for number, niche in enumerate(niches):
        text = "\n".join(map(_q, comparison.abundance.loc[comparison.abundance.niche == niche, "q_value"]))
        ax.annotate(text, (number, top[number]), (0, 5), textcoords="offset points", ha="center", fontsize=8)
    ax.set_xticks(range(len(niches)), niches)
    ax.set(xlabel="niche", ylabel="share of a donor's cells", ylim=(0, 1.15 * top.max()))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    finish(ax.figure.figure, show, save, own)
    return ax


def _q(value: float) -> str:
    """A q-value as text."""
    if np.isnan(value):
        return "not tested"
    return "q < 0.001" if value < 0.001 else f"q = {value:.2g}"
