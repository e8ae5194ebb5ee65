"""Cells on the image, and the curve of haematoxylin against shifts of the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc._checks import require_positive, require_whole
from sigmma_sc.errors import MissingKeyError, SetupError
from sigmma_sc.pl._finish import finish
from sigmma_sc.registration.check import Registration, checked_slides
from sigmma_sc.registration.verdict import by_expression
from sigmma_sc.registration.windows import overlay_windows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from sigmma_sc.tissue.setup import Tissue

CELL = "#FFE100"
MOVED = "#00E5FF"


def registration(
    sdata: Tissue,
    slide: str | None = None,
    n_windows: int = 3,
    window: float | None = None,
    seed: int = 0,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Show cells on the image in a few windows, and haematoxylin at the cells for shifts of them.

    The verdict is that of :func:`sigmma_sc.pp.check_registration`, which searches the pose where nuclei do not decide.

    Parameters
    ----------
    sdata
        Object, or objects by name, prepared with :meth:`sigmma_sc.SIGMMA.setup_spatialdata`.
    slide
        Name of a row of :func:`sigmma_sc.pp.check_registration`; by default the first.
    n_windows
        Number of windows around random cells.
    window
        Side of a window in µm; by default 100, or five bins where that is more.
    seed
        Seed of the random choice of windows.
    ax
        Axes to draw in, one for each window and one for the curve.
    show
        Whether to show the figure; by default if it is not saved and ``ax`` is not given.
    save
        File to write the figure to.

    Returns
    -------
    Axes of the windows, then of the curve.

    Raises
    ------
    SetupError
        The object has no setup, or the number of axes does not fit.
    MissingKeyError
        There is no such slide.

    See Also
    --------
    sigmma_sc.pp.check_registration : The measurements as a table.

    Examples
    --------
    >>> tissue = sg.datasets.simulate_tissue(n_cells=500)
    >>> SIGMMA.setup_spatialdata(tissue, tile_size=64)
    >>> axes = sg.pl.registration(tissue, n_windows=2, show=False)
    >>> axes[0].get_title()
    'cell_circles: registered'
    """
    import matplotlib.pyplot as plt

    require_whole(n_windows, "n_windows")
    require_whole(seed, "seed", 0)
    if window is not None:
        require_positive(window, "window")
    if ax is not None and len(ax) != n_windows + 1:
        raise SetupError(f"ax holds {len(ax)} axes; {n_windows} windows and the curve need {n_windows + 1}.")
    first = next(checked_slides(sdata, seed, slide), None)
    if first is None:
        raise MissingKeyError(f"slide={slide!r} does not exist. See the rows of sg.pp.check_registration(sdata).")
    one, by_nuclei = first
    report = by_expression(one, by_nuclei, seed)
    if ax is None:
        size = (3.4 * (n_windows + 1) + 0.8, 3.9)
        ax_grid = plt.subplots(1, n_windows + 1, figsize=size, squeeze=False, layout="constrained")[1]
    axes: list[Axes] = list(ax_grid.flat if ax is None else ax)
    windows = list(overlay_windows(one, n_windows, window, seed))
    for k, (pixels, points, extent) in enumerate(windows):
        _overlay(axes[k], pixels, points, extent, report)
        axes[k].set_title(f"window {k + 1}" if k else f"{one.name}: {report.verdict}", fontsize=10)
    for unused in axes[len(windows) : n_windows]:
        unused.set_axis_off()
    _curve(axes[-1], report)
    finish(axes[0].figure.figure, show, save, own=ax is None)  # the root figure, also for axes of a subfigure
    return axes


def _overlay(ax: Axes, pixels: np.ndarray, points: np.ndarray, extent: float, report: Registration) -> None:
    ax.imshow(pixels, extent=(0, extent, extent, 0))
    ax.scatter(points[:, 0], points[:, 1], s=14, c=CELL, edgecolors="black", linewidths=0.5, label="cells")
    if report.verdict == "shifted":
        moved = points + report.match.best_shift
        ax.scatter(
            moved[:, 0], moved[:, 1], s=14, c=MOVED, edgecolors="black", linewidths=0.5, label="moved to the peak"
        )
        ax.legend(loc="lower left", fontsize=7)
    ax.set(xlim=(0, extent), ylim=(extent, 0), xticks=[], yticks=[], xlabel=f"{extent:.0f} µm")


def _curve(ax: Axes, report: Registration) -> None:
    match = report.match
    if not np.isfinite(match.score):
        ax.set_axis_off()
        ax.text(0.5, 0.5, "spots this wide,\nor bins without counts,\nshow no shift", ha="center", va="center")
        return
    reach = match.shifts[-1] + (match.shifts[1] - match.shifts[0]) / 2
    drawn = ax.imshow(match.curve, extent=(-reach, reach, reach, -reach), cmap="magma")
    ax.figure.colorbar(drawn, ax=ax, shrink=0.8, label="haematoxylin above its surroundings")
    ax.plot(*match.best_shift, "o", mfc="none", mec=MOVED, ms=10)
    ax.axhline(0, color="white", lw=0.5)
    ax.axvline(0, color="white", lw=0.5)
    ax.set(xlabel="shift of the cells along x, µm", ylabel="along y, µm")
    ax.set_title(f"score {match.score:.1f} at zero, {match.best_score:.1f} at the peak", fontsize=10)
