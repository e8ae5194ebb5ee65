"""Training that resumes where it was killed: one safetensors file after every epoch, no pickle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from sigmma_sc._checks import require_path
from sigmma_sc._files import fresh_file, require_writable, sweep, writing
from sigmma_sc._schema import require_schema
from sigmma_sc.encoders.fingerprint import identity_of, mismatch
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError, SigmmaError
from sigmma_sc.features.cache import checksum
from sigmma_sc.features.data import BEFORE, DataState
from sigmma_sc.tissue.identity import cells_identity, image_identity
from sigmma_sc.train.history import HistoryJson, history_from_json, history_to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from scvi.train import TrainRunner

    from sigmma_sc.features.data import TissueData
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.train.options import TrainOptions

FILE = "last.safetensors"
FORMAT = 6
READABLE = ("5", "6")
"""Formats that are read. Format 5 has no ``even_lattices``, see :data:`~sigmma_sc.features.data.BEFORE`."""
OURS = "sigmma"

NO_MATTER = {
    "accelerator", "devices", "num_nodes", "strategy", "callbacks", "plugins", "logger", "log_every_n_steps", "log_save_dir",
    "default_root_dir", "profiler", "enable_progress_bar", "progress_bar_refresh_rate", "simple_progress_bar",
    "enable_model_summary",
}  # fmt: skip
"""Arguments that decide where training runs and what is seen of it, not what it computes."""


class EncoderIdentity(TypedDict):
    """What tells one image encoder from another."""

    name: str
    input_size: int
    mean: list[float]
    std: list[float]
    fingerprint: str
    output: list[float]


class OursJson(TypedDict):
    """What a checkpoint has under the key of :data:`OURS`."""

    run: dict[str, Any]
    encoder: EncoderIdentity
    data: DataState
    history: HistoryJson
    stopped: bool


LIGHTNINGS = {
    "epoch": int, "global_step": int, "state_dict": dict[str, torch.Tensor], "optimizer_states": list, "lr_schedulers": list,
    "loops": dict, "callbacks": dict, OURS: OursJson,
}  # fmt: skip
"""What Lightning and we read of a checkpoint; Lightning keeps more."""


class SafetensorsIO(CheckpointIO):
    """Lightning's checkpoints as tensors and JSON, so that reading one can execute nothing."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint; a crash leaves the last one or this one."""
        from safetensors.torch import save_file

        tensors: dict[str, torch.Tensor] = {}
        tree = json.dumps(_to_json(checkpoint, tensors))
        with fresh_file(Path(path)) as part:
            save_file(tensors, part, {"format": str(FORMAT), "tree": tree, "checksum": checksum(tensors, tree)})

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint on to the CPU; Lightning moves what it takes from it."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Contents of a checkpoint, or :class:`SetupError` for a file that is something else or damaged."""
    from safetensors import SafetensorError, safe_open

    fix = "Give another, or delete it and train anew."
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            if told.get("format") not in READABLE:
                raise SetupError(
                    f"{path} has format {told.get('format')}, this version reads {' and '.join(READABLE)}. {fix}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if told["checksum"] != checksum(tensors, told["tree"]):
            raise SetupError(f"{path} is damaged: it is not what was written. {fix}")
        checkpoint = _from_json(json.loads(told["tree"]), tensors.__getitem__)
        if told["format"] == READABLE[0]:
            checkpoint[OURS]["data"] = {**BEFORE, **checkpoint[OURS]["data"]}
        return checkpoint
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        if isinstance(error, SigmmaError):
            raise
        raise SetupError(f"{path} is no checkpoint of sigmma-sc, or damaged ({error}). {fix}") from error


def require_checkpoint(checkpoint: object, path: Path) -> None:
    """Raise :class:`SetupError` unless a checkpoint has all that Lightning and :class:`SaveEpochs` read of it."""
    for name, schema in LIGHTNINGS.items():
        value = checkpoint.get(name) if isinstance(checkpoint, dict) else None
        require_schema(value, schema, f"{path}: {name}", "Give another checkpoint, or delete it and train anew.")


def _to_json(value: object, tensors: dict[str, torch.Tensor]) -> object:
    """Plain JSON for nested values, with the tensors set aside by number; a dict keeps the types of its keys."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        tensors[str(len(tensors))] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, dict):
        return {"dict": [[key, _to_json(part, tensors)] for key, part in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_to_json(part, tensors) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise SetupError(
        f"A checkpoint cannot hold {value!r}. The state_dict of a callback may hold tensors, numbers, words, lists and dicts."
    )


def _from_json(value: object, tensor: Callable[[str], torch.Tensor]) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, list):
        return [_from_json(part, tensor) for part in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensor(value["tensor"])
        return {key: _from_json(part, tensor) for key, part in value["dict"]}
    return value


class SaveEpochs(Checkpoint):
    """Write a checkpoint to ``folder`` after every epoch, and resume from ``ckpt_path`` or from the one there.

    ``run`` (see :func:`describe_run`) has to be the checkpoint's. Split and node features of a model that was never
    trained come from the checkpoint; ``restored`` then tells so.
    """

    def __init__(
        self,
        data: TissueData,
        run: Callable[[], dict[str, Any]],
        folder: str | Path | None,
        ckpt_path: str | Path | None,
    ):
        self.source, self.target = find_checkpoint(folder, ckpt_path)
        self.data = data
        self.run: dict[str, Any] = {}
        self.encoder: dict[str, Any] = {}
        self.restored = False
        if self.source or self.target:
            self.run = run()
            self.encoder = identity_of(data.pretrained.encoder)
        if self.source:
            checkpoint = read_checkpoint(self.source)
            require_checkpoint(checkpoint, self.source)
            stored = checkpoint[OURS]
            require_same_run(stored, self.run, self.encoder, self.source)
            if data.roles.split is None:
                data.restore(stored["data"], data.setup)
                self.restored = True

    def attach(self, runner: TrainRunner) -> None:
        """Have a runner of scvi-tools write and resume; as its own argument, it would ask for scvi-tools' checkpoints."""
        if self.source or self.target:
            runner.trainer.callbacks.append(self)
            runner.trainer.strategy.checkpoint_io = SafetensorsIO()
            runner.ckpt_path = self.source

    def on_train_epoch_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Write; callbacks that checkpoint come last, so early stopping has decided by now."""
        if self.target is not None:
            trainer.save_checkpoint(self.target, weights_only=False)

    def on_save_checkpoint(self, trainer: pl.Trainer, plan: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out."""
        history = history_to_json(_logged(trainer))
        # Lightning tells its logger of the training losses only after this.
        for name, value in trainer.logged_metrics.items():
            if name.startswith("train_"):
                part = history.setdefault(name, {"by": "epoch", "index": [], "values": []})
                part["index"].append(trainer.current_epoch)
                part["values"].append(float(value))
        checkpoint[OURS] = {
            "run": self.run,
            "encoder": self.encoder,
            "data": self.data.state(),
            "history": history,
            "stopped": trainer.should_stop,
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, plan: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give the logger its history back, and end at once a run that early stopping had ended."""
        stored = checkpoint[OURS]
        trainer.should_stop = stored["stopped"]
        _logged(trainer).update(history_from_json(stored["history"]))


def _logged(trainer: pl.Trainer) -> dict[str, pd.DataFrame]:
    """What scvi-tools' logger holds; nothing for another logger, which keeps its own, nor beside the first process."""
    data = getattr(getattr(trainer.logger, "experiment", None), "data", None)
    return data if isinstance(data, dict) else {}


def find_checkpoint(folder: str | Path | None, ckpt_path: str | Path | None) -> tuple[Path | None, Path | None]:
    """File to resume from, if any, and file to write to, if any; no other checkpoint in the folder may be lost."""
    for name, given in (("checkpoint_dir", folder), ("ckpt_path", ckpt_path)):
        if given is not None:
            require_path(given, name)
    target = None if folder is None else Path(folder).expanduser() / FILE
    if target is not None:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        require_writable(target)
        sweep(target.parent, re.escape(FILE))
    there = target if target is not None and target.exists() else None
    if target is None and str(ckpt_path) == "last":
        raise MissingKeyError("ckpt_path='last' is the checkpoint in checkpoint_dir. Give checkpoint_dir=… too.")
    if ckpt_path is None or str(ckpt_path) == "last":
        return there, target
    path = Path(ckpt_path).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.exists():
        raise MissingKeyError(f"ckpt_path={str(ckpt_path)!r} does not exist. Give a file or a checkpoint_dir.")
    if there is not None and not there.samefile(path):
        raise ExistsError(f"{there} exists and is not ckpt_path={str(ckpt_path)!r}. Choose another checkpoint_dir.")
    return path, target


def describe_run(
    data: TissueData, slides: Sequence[Slide], options: TrainOptions, extra: dict[str, Any], epochs: int
) -> dict[str, Any]:
    """What decides the outcome of training, by name, after ``epochs``; ``extra`` is for the model's class."""
    given = {name: value for name, value in options.described().items() if name not in NO_MATTER}
    run = {
        **data.config.to_json(),
        **extra,
        **json.loads(json.dumps(given, default=_named)),
        "tile_size": data.setup.tile_size,
        "grids": list(data.setup.grids),
        "epochs trained before": epochs,
        "slides": [slide.name for slide in slides],
    }
    for slide in slides:
        run[f"image of {slide.name}"] = image_identity(slide)
        run[f"cells of {slide.name}"] = cells_identity(slide)
    return run


def _named(value: object) -> object:
    """NumPy's values as Python's, and any other object by its type."""
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__


def require_same_run(stored: dict[str, Any], run: dict[str, Any], encoder: dict[str, Any], path: Path) -> None:
    """Raise :class:`SetupError`, naming what differs, unless a checkpoint is of the same run and the same image encoder."""
    before = stored["run"]
    different = [
        f"{name} ({_short(before.get(name))} there, {_short(run.get(name))} here)"
        for name in sorted(before.keys() | run.keys())
        if before.get(name) != run.get(name)
    ]
    different += [f"the image encoder's {what}" for what in mismatch(encoder, stored["encoder"])]
    if different:
        raise SetupError(
            f"{path} is a checkpoint of another run, which differs in {', '.join(different)}. Give the same values to "
            "resume it, or another checkpoint_dir to begin anew."
        )


def _short(value: object) -> str:
    words = str(value)
    return words if len(words) <= 40 else f"{words[:40]}…"
