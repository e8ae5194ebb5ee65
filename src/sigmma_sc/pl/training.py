"""Losses of training, scale by scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sigmma_sc.errors import SetupError
from sigmma_sc.pl._finish import finish

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes


def training(
    history: Mapping[str, pd.DataFrame], *, show: bool | None = None, save: str | Path | None = None
) -> list[Axes]:
    """Plot the loss of each scale by epoch, and ln(batch), the loss of an untrained model.

    Training and validation batches differ in size, and so does their ln(batch). If the validation loss rises while retrieval
    still improves, the towers are overconfident but not worse. Use :meth:`sigmma_sc.SIGMMA.evaluate_retrieval` to compare
    models.

    Parameters
    ----------
    history
        Losses by name, ``model.history``.
    show
        Whether to show the figure; by default if it is not saved.
    save
        File to write the figure to.

    Returns
    -------
    Axes of each scale.

    Raises
    ------
    SetupError
        The history holds no losses.

    See Also
    --------
    sigmma_sc.SIGMMA.train : Train the model.

    Examples
    --------
    >>> axes = sg.pl.training(model.history, save="training.png")
    >>> [ax.get_title() for ax in axes]
    ['micro', 'meso', 'macro']
    """
    import matplotlib.pyplot as plt

    if not isinstance(history, Mapping):
        raise SetupError(f"history is a {type(history).__name__}. Pass model.history of a trained model.")
    first = "train_loss_"
    scales = [name.removeprefix(first) for name in history if name.startswith(first) and name != f"{first}epoch"]
    if not scales:
        raise SetupError("history holds no losses of a scale. Pass model.history of a trained model.")
    size = (3.6 * len(scales), 3.0)
    figure, axes = plt.subplots(1, len(scales), figsize=size, sharey=True, squeeze=False, layout="constrained")
    kinds = {"train": ("#0072B2", "training"), "validation": ("#D55E00", "validation")}
    for ax, scale in zip(axes[0], scales, strict=True):
        for kind, (colour, name) in kinds.items():
            if f"{kind}_loss_{scale}" not in history:
                continue
            loss = history[f"{kind}_loss_{scale}"].iloc[:, 0]
            chance = history[f"{kind}_ln_batch"].iloc[:, 0]
            ax.plot(loss.index, loss, color=colour, label=name)
            ax.plot(chance.index, chance, color=colour, lw=1, ls=":", label=f"ln(batch), {name}")
        ax.set_title(scale, fontsize=11)
        ax.set_xlabel("epoch")
        ax.spines[["top", "right"]].set_visible(False)
    # After the last curve: the panels share their limits, which no longer grow once one of them is set.
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].set_ylabel("InfoNCE")
    axes[0, -1].legend(frameon=False, fontsize=8)
    finish(figure, show, save)
    return list(axes[0])
