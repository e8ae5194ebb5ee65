"""The device that training runs on: its precision, what fits into its memory, and whether it can train at all."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device

from sigmma_sc._random import kept_random_state
from sigmma_sc.encoders.device import computing_in, crops_in_memory, feature_type, free_memory, has_bfloat16
from sigmma_sc.errors import SetupError
from sigmma_sc.features.patches import CPU_BATCH
from sigmma_sc.nn.layout import cell_layout
from sigmma_sc.train.runner import translated

if TYPE_CHECKING:
    from collections.abc import Callable

    from sigmma_sc.features.data import TissueData
    from sigmma_sc.nn.part import Part
    from sigmma_sc.nn.towers import TwoTowers
    from sigmma_sc.nn.trainable import TrainableEncoder
    from sigmma_sc.train.options import TrainOptions

logger = logging.getLogger("sigmma_sc")
_told: set[str] = set()

TRUSTED = ("cpu", "cuda")
"""Kinds of devices of which torch implements all that the towers need; others are tried."""

UNKNOWN_CHUNK = 16
"""Crops at once on a device that does not say how much memory is free (our choice)."""

SINGLE = ("32", "32-true")


def precision_of(options: TrainOptions) -> str:
    """Precision to train in: what was asked for, or bfloat16 autocast on a GPU that computes in it."""
    from scvi.model._utils import parse_device_args

    precision = str(options.precision)
    if precision != "auto":
        return precision
    with translated(options):
        device = parse_device_args(options.accelerator, options.devices, return_device="torch")[2]
    return "bf16-mixed" if has_bfloat16(torch.device(device)) else "32-true"


def autocast_type(precision: str) -> torch.dtype:
    """Number type of Lightning's autocast for a precision; float32 where it casts nothing."""
    return {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.removesuffix("-mixed"), torch.float32)


def chunk_of(encoder: TrainableEncoder, device: torch.device, precision: str) -> int:
    """How many crops to encode at once while the encoder is trained."""
    if device.type == "cpu":
        return CPU_BATCH
    if device.type != "cuda":
        return UNKNOWN_CHUNK
    encoder.to(device)
    with computing_in(autocast_type(precision), device):
        return crops_in_memory(encoder.encoder, max(encoder.crop_sizes), free_memory(device))


def describe_device(device: torch.device, precision: str, data: TissueData, chunk: int | None) -> None:
    """Log once what was chosen: device, precision, number type of features, crops at once."""
    name = "the CPU" if device.type == "cpu" else str(device)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        name = f"{torch.cuda.get_device_name(device)} ({memory:.0f} GiB)"
    kind = str(feature_type(device, data.single_precision)).removeprefix("torch.")
    line = f"Training on {name}: precision {precision}, features of the image encoder in {kind}"
    if chunk is not None:
        line += f", {chunk} crops at once"
    if line not in _told:
        _told.add(line)
        logger.info("%s", line)


def require_trainable(build: Callable[[int, TissueData], TwoTowers], data: TissueData, device: torch.device) -> None:
    """Try one small step on a device that torch may not implement in full, before any compute.

    Raises :class:`SetupError` with the reason if an operation is missing.
    """
    if device.type in TRUSTED:
        return
    width = len(getattr(data.node_features, "genes", None) or ()) or 8
    try:
        with kept_random_state():
            encoder = data.features.encoder.to(device)
            encoder.encode(torch.zeros(2, 3, encoder.input_size, encoder.input_size, dtype=torch.uint8, device=device))
            towers = build(width, data).to(device).train()
            if towers.encoder is not None:
                towers.encoder.augment = True
            part = move_data_to_device(_small_part(width, data, encoder.dim), device)
            loss = towers.total(towers.losses(towers([part])))
            loss.backward()
            finite = bool(torch.isfinite(loss))
    except Exception as error:
        raise SetupError(
            f"Device {str(device)!r} cannot train this model, {type(error).__name__}: {error}. Use accelerator='cpu', or an NVIDIA "
            "GPU with accelerator='gpu'."
        ) from error
    if not finite:
        raise SetupError(f"Device {str(device)!r} gives a loss that is not finite. Use accelerator='cpu'.")


def _small_part(width: int, data: TissueData, dim: int) -> Part:
    """Four tiles with six cells each."""
    grids = data.setup.grids
    rng = np.random.default_rng(0)
    n_tiles, n_cells = 4, 6
    tile = np.repeat(np.arange(n_tiles), n_cells)
    xy = rng.uniform(size=(len(tile), 2))
    blocks = np.stack([(np.floor(xy * grid) @ [1, grid]).astype(np.int64) for grid in grids])
    first, second = np.arange(0, len(tile), n_cells), np.arange(1, len(tile), n_cells)
    blocks[:, second] = blocks[:, first]  # so that they can have an edge
    side = 32 * grids[0]
    return {
        "n_tiles": n_tiles,
        "x": torch.from_numpy(rng.normal(size=(len(tile), width)).astype(np.float32)),
        "layout": cell_layout(np.arange(n_tiles + 1) * n_cells, blocks, first, second),
        "profiles": torch.from_numpy(rng.uniform(size=(n_tiles, width)).astype(np.float32)),
        "patches": torch.from_numpy(rng.normal(size=(n_tiles, sum(g * g for g in grids), dim)).astype(np.float32)),
        "pixels": torch.from_numpy(rng.integers(0, 256, (n_tiles, 3, side, side), dtype=np.uint8)),
    }
