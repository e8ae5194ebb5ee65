"""Figures of a benchmark: the mean of each method with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigmma_sc.errors import SetupError
from sigmma_sc.pl._finish import finish

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

METRICS = {
    "mean recall image→transcriptome": "mean recall, image → transcriptome",
    "mean recall transcriptome→image": "mean recall, transcriptome → image",
    "pcc default": "PCC of expression, ridge",
}


def benchmark(
    intervals: pd.DataFrame,
    metrics: Mapping[str, str] = METRICS,
    *,
    title: str = "",
    show: bool | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw intervals of a benchmark, one panel a metric, one row a method.

    Parameters
    ----------
    intervals
        Rows of one data set and split of the ``intervals.csv`` that :func:`sigmma_sc.benchmark.run` writes.
    metrics
        Names of the metrics to draw, and their labels in the figure.
    title
        Title of the figure.
    show
        Whether to show the figure; by default if it is not saved.
    save
        File to write the figure to.

    Returns
    -------
    Axes of each metric.

    Raises
    ------
    SetupError
        There are rows of several data sets or splits, or no rows.

    See Also
    --------
    sigmma_sc.benchmark.run : Compute the intervals.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = [("sigmma", "pcc default", 0.5, 0.4, 0.6), ("bleep", "pcc default", 0.4, 0.3, 0.5)]
    >>> intervals = pd.DataFrame(rows, columns=["method", "metric", "value", "low", "high"])
    >>> axes = sg.pl.benchmark(intervals, {"pcc default": "PCC, ridge"}, show=False)
    >>> [label.get_text() for label in axes[0].get_yticklabels()]
    ['sigmma', 'bleep']
    """
    import matplotlib.pyplot as plt

    for column in {"dataset", "split"} & set(intervals.columns):
        if intervals[column].nunique() > 1:
            raise SetupError(
                f"intervals have several of {column}: {', '.join(intervals[column].unique())}. Choose one."
            )
    if not len(intervals):
        raise SetupError("intervals hold no row.")
    methods = list(intervals.method.unique())
    size = (4.2 * len(metrics), 1.2 + 0.32 * len(methods))
    figure, axes = plt.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax, (metric, name) in zip(axes[0], metrics.items(), strict=True):
        scores = intervals[intervals.metric == metric].set_index("method")
        for row, method in enumerate(methods):
            if method not in scores.index:
                between = (0.5, row)
                ax.annotate(
                    "not defined", between, xycoords=ax.get_yaxis_transform(), va="center", fontsize=8, color="grey"
                )
                continue
            # The other methods are compared with the first; blue and grey differ with any colour vision.
            colour = "#0072B2" if row == 0 else "#4d4d4d"
            value, low, high = scores.loc[method, ["value", "low", "high"]]
            ax.plot([low, high], [row, row], color=colour, lw=2, solid_capstyle="butt")
            ax.plot(value, row, "o", color=colour, ms=6, clip_on=False)
        if methods[0] in scores.index:
            ax.axvline(scores.value[methods[0]], color="#0072B2", lw=0.8, ls=":")
        ax.set_xlabel(name, fontsize=10)
        ax.grid(axis="x", color="#dddddd", lw=0.6)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    figure.suptitle(title, fontsize=11)
    finish(figure, show, save)
    return list(axes[0])
