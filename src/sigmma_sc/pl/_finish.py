"""The end of every plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure


def finish(figure: Figure, show: bool | None, save: str | Path | None, own: bool = True) -> None:
    """Save and show a figure; by default show it if it is not saved and has no axes of the user (``own``)."""
    import matplotlib.pyplot as plt

    if save is not None:
        figure.savefig(save, dpi=150)
    if show or (show is None and save is None and own):
        plt.show()
    elif save is not None and own:
        plt.close(figure)
