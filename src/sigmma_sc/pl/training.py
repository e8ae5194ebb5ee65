"""Losses of training, scale by scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigmma_sc.errors import SetupError
from sigmma_sc.pl._finish import finish

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes


def training(
    history: Mapping[str, pd.DataFrame],
    *,
    show: bool | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw each scale's loss by epoch, and ln(batch) beside it: a scale whose loss stays there has learned nothing.

    Training and validation batches differ in size, so each has a ln(batch) of its own. Where the validation loss rises while
    retrieval still gains, the towers grow overconfident rather than worse; judge by
    :meth:`sigmma_sc.SIGMMA.evaluate_retrieval`.

    Parameters
    ----------
    history
        ``model.history``.
    show
        Show the figure; by default when it is not saved.
    save
        File to write.

    Returns
    -------
    One Axes a scale.

    Raises
    ------
    SetupError
        The history holds no losses.

    Examples
    --------
    >>> axes = sg.pl.training(model.history, save="training.png")
    >>> [ax.get_title() for ax in axes]
    ['micro', 'meso', 'macro']
    """
    import matplotlib.pyplot as plt

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
            loss, chance = (history[f"{kind}_{what}"].iloc[:, 0] for what in (f"loss_{scale}", "ln_batch"))
            ax.plot(loss.index, loss, color=colour, label=name)
            ax.plot(chance.index, chance, color=colour, lw=1, ls=":", label=f"ln(batch), {name}")
        ax.set_title(scale, fontsize=11)
        ax.set_xlabel("epoch")
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("InfoNCE")
    axes[0, -1].legend(frameon=False, fontsize=8)
    finish(figure, show, save)
    return list(axes[0])
