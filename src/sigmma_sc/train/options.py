"""Options of one call of :meth:`sigmma_sc.SIGMMA.train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sigmma_sc._checks import is_number, require_choice, require_divides, require_positive, require_whole
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.split import Split, get_split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sigmma_sc.config import Config
    from sigmma_sc.tissue.setup import Setup

PRECISIONS = ("auto", "32", "32-true", "bf16", "bf16-mixed", "16", "16-mixed")
"""Lightning's, but for those that cast the weights."""

ENCODER_LR = {"frozen": 0.0, "lora": 1e-4, "last_k": 2e-5, "full": 2e-5}
"""Learning rate of the image encoder by regime (our choices)."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Arguments of :meth:`sigmma_sc.SIGMMA.train`; ``trainer`` are further ones of :class:`scvi.train.Trainer`."""

    max_epochs: int
    batch_size: int
    split: str | Mapping[str, Sequence[str]]
    accelerator: str
    devices: int | list[int] | str
    precision: str
    stride: float
    lr: float
    weight_decay: float
    encoder_lr: float | None
    augment: bool
    chunk_size: int | None
    early_stopping: bool
    early_stopping_patience: int
    checkpoint_dir: str | Path | None
    ckpt_path: str | Path | None
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_whole(self.max_epochs, "max_epochs")
        require_whole(self.batch_size, "batch_size")
        if isinstance(self.split, Split):
            raise SetupError(
                f"split={self.split!r} must be a name. Call sg.register_split and pass {self.split.name!r}."
            )
        split = get_split(self.split)
        if isinstance(self.split, Mapping):
            # Plain lists, whatever the samples came in. Fields of a frozen dataclass can be set only in this way.
            object.__setattr__(self, "split", split.to_json())
        if self.batch_size < 2:
            raise SetupError(f"batch_size={self.batch_size} leaves no negatives; use at least 2, better 64 or more.")
        require_positive(self.lr, "lr")
        if not is_number(self.weight_decay) or self.weight_decay < 0:
            raise SetupError(f"weight_decay={self.weight_decay!r} must be 0 or more.")
        if self.encoder_lr is not None:
            require_positive(self.encoder_lr, "encoder_lr")
        if self.chunk_size is not None:
            require_whole(self.chunk_size, "chunk_size")
        for name in ("augment", "early_stopping"):
            if not isinstance(getattr(self, name), bool):
                raise SetupError(f"{name}={getattr(self, name)!r} must be True or False.")
        require_whole(self.early_stopping_patience, "early_stopping_patience")
        _check_trainer(self.trainer)
        if str(self.precision) not in PRECISIONS:
            raise SetupError(
                f"precision={str(self.precision)!r} is not one of 'auto', '32-true', 'bf16-mixed' and '16-mixed'; weights stay in "
                "float32."
            )

    def check(self, config: Config, setup: Setup) -> None:
        """Compare with the model: encoder options need an image encoder in training, and the stride divides a tile."""
        for name in ("encoder_lr", "augment", "chunk_size"):
            value = getattr(self, name)
            if value and config.regime == "frozen":
                raise SetupError(
                    f"{name}={value!r} is for an image encoder in training, and this one is frozen. Make the model with "
                    "regime='lora', 'last_k' or 'full'."
                )
        require_divides(self.stride, setup.tile_size)

    @property
    def has_own_bar(self) -> bool:
        """Whether epochs are shown by this package, and not by a bar of Lightning that was asked for."""
        return bool(self.trainer.get("simple_progress_bar", True))

    @property
    def shows_progress(self) -> bool:
        """Whether progress of this call is shown."""
        return bool(self.trainer.get("enable_progress_bar", True) and self.trainer.get("progress_bar_refresh_rate", 1))

    def described(self) -> dict[str, Any]:
        """Values by name, for the comparison of checkpoints; places aside."""
        given = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in PLACES}
        return {**given, **self.trainer}


def _check_trainer(given: Mapping[str, Any]) -> None:
    """Raise :class:`SetupError` for a further argument that would train on nothing, or stop by nothing."""
    if "early_stopping_monitor" in given:
        monitor = given["early_stopping_monitor"]
        if not isinstance(monitor, str) or not monitor.startswith(("validation_loss", "train_loss")):
            raise SetupError(
                f"early_stopping_monitor={monitor!r} is not logged. Name 'validation_loss', 'validation_loss_<scale>', "
                "'train_loss_epoch' or 'train_loss_<scale>'."
            )
    if "early_stopping_mode" in given:
        require_choice(given["early_stopping_mode"], ("min", "max"), "early_stopping_mode")
    if "early_stopping_warmup_epochs" in given:
        require_whole(given["early_stopping_warmup_epochs"], "early_stopping_warmup_epochs", 0)
    delta = given.get("early_stopping_min_delta", 0.0)
    if not is_number(delta) or delta < 0:
        raise SetupError(f"early_stopping_min_delta={delta!r} must be a number, 0 or more.")
    for name in ("limit_train_batches", "gradient_clip_val", "accumulate_grad_batches"):
        if given.get(name) is not None:
            require_positive(given[name], name)


PLACES = ("checkpoint_dir", "ckpt_path", "trainer")
