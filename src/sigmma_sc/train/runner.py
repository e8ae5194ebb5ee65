"""scvi-tools' trainer for towers that are no scvi-tools model."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sigmma_sc.errors import SetupError, SigmmaError

if TYPE_CHECKING:
    import pandas as pd
    from lightning.pytorch.callbacks import EarlyStopping
    from scvi.train import Trainer, TrainRunner

    from sigmma_sc.nn.towers import TwoTowers
    from sigmma_sc.train.options import TrainOptions

EARLY_STOPPING = {"monitor": "validation_loss", "min_delta": 0.0, "mode": "min", "warmup_epochs": 0}
"""scvi-tools' defaults."""


@dataclass
class RunnerModel:
    """What scvi-tools' runner reads and writes of a model."""

    module: TwoTowers | None
    history_: dict[str, pd.DataFrame]
    is_trained_: bool
    trainer: Trainer | None = None
    train_indices: Any = field(default=None)
    test_indices: Any = field(default=None)
    validation_indices: Any = field(default=None)

    def to_device(self, device: torch.device) -> None:
        """Move the towers."""
        if self.module is not None:
            self.module.to(device)


@contextmanager
def translated(options: TrainOptions) -> Iterator[None]:
    """Turn what Lightning refuses into :class:`SetupError` that names the arguments it was given."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except (TypeError, ValueError, AttributeError, RuntimeError, MisconfigurationException) as error:
        if isinstance(error, SigmmaError):
            raise
        given = {"accelerator": options.accelerator, "devices": options.devices, **options.trainer}
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise SetupError(f"The trainer cannot be made with {shown}: {error}. See scvi.train.Trainer.") from error


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Let Ctrl-C end the block with KeyboardInterrupt.

    Lightning catches it, ignores all further signals of the kind, and returns or exits.
    """
    here = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if here else None
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt from end
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        raise KeyboardInterrupt


def runner_for(
    towers: TwoTowers | None, history: dict[str, pd.DataFrame], options: TrainOptions
) -> tuple[TrainRunner, EarlyStopping | None]:
    """scvi-tools' runner, before there is anything to run: what Lightning refuses, it refuses before any compute.

    Early stopping is a callback beside it, as scvi-tools options its own off where there are several processes.
    """
    from scvi.train import LoudEarlyStopping, TrainRunner

    trainer = dict(options.trainer)
    early: dict[str, Any] = {"patience": options.early_stopping_patience}
    for name, default in EARLY_STOPPING.items():
        early[name] = trainer.pop(f"early_stopping_{name}", default)
    stopping = LoudEarlyStopping(**early) if options.early_stopping else None
    if options.has_own_bar:
        trainer["enable_progress_bar"] = False  # scvi-tools' would ask for ipywidgets in a notebook
    trainer.setdefault("check_val_every_n_epoch", 1)  # scvi-tools would not validate without its early stopping
    with translated(options):
        runner = TrainRunner(
            RunnerModel(towers, dict(history), is_trained_=towers is not None),
            training_plan=None,
            data_splitter=None,
            max_epochs=options.max_epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            precision=options.precision,
            use_distributed_sampler=False,  # batches are dealt out to the processes by our own sampler
            **trainer,
        )
    runner.device = runner.trainer.strategy.root_device  # of this process, not of the first
    return runner, stopping
