"""Frozen networks run by ONNX Runtime on a CPU, where it is installed: the same features in less time."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from sigmma_sc._random import kept_random_state
from sigmma_sc._settings import logger, settings
from sigmma_sc.encoders.fingerprint import fixed_crop
from sigmma_sc.encoders.folding import TOLERANCE
from sigmma_sc.errors import EncoderWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    from sigmma_sc.encoders.encoder import ImageEncoder

MOST_BYTES = 2**31 - 2**20
"""Of the weights: a single ONNX file holds no more. Nobody runs such networks on a CPU."""


def run_by_onnx(encoder: ImageEncoder, size: int, n_crops: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What encodes ``n_crops`` uint8 crops ``(n_crops, 3, size, size)`` at a time as the encoder does, up to rounding.

    ``None`` where torch is to do it: ONNX Runtime is not installed or not wanted (``sg.settings.cpu_runtime``), the encoder
    has no weights or too many, or, with an :class:`EncoderWarning`, the network cannot be exported or would give other
    features. Both are compared on crops of noise and of colours.
    """
    if settings.cpu_runtime == "torch" or not all(map(find_spec, ("onnx", "onnxruntime"))):
        return None
    n_bytes = sum(weights.numel() * weights.element_size() for weights in encoder.parameters())
    if not isinstance(encoder.module, nn.Module) or not 0 < n_bytes < MOST_BYTES:
        return None
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(256, (n_crops, 3, size, size), generator=generator, dtype=torch.uint8)
    crops[-1:] = fixed_crop(size)
    try:
        with kept_random_state(encoder.device):
            run = _session(encoder, crops.flip(0))
            here, there = encoder.encode(crops), run(crops)
    except Exception as error:  # noqa: BLE001 - the code of any network runs, and any operator may be missing
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        _warn(encoder, f"it cannot be exported ({reason})")
        return None
    if here.shape != there.shape or not (here - there).abs().max() <= TOLERANCE * here.abs().max():
        _warn(encoder, "it gives other features there")
        return None
    logger.info("Image encoder %r runs on the CPU by ONNX Runtime %s.", encoder.name, version("onnxruntime"))
    return run


def _warn(encoder: ImageEncoder, reason: str) -> None:
    warnings.warn(
        f"Image encoder {encoder.name!r} is not run by ONNX Runtime: {reason}. torch runs it, which may be slower. "
        "sg.settings.cpu_runtime = 'torch' ends this warning.",
        EncoderWarning,
        stacklevel=3,
    )


def _session(encoder: ImageEncoder, crops: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A session of ONNX Runtime for crops of one shape, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that wait would take the core of the one that reads the image.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of tracing, whose result is compared
            torch.onnx.export(
                encoder, (crops,), str(path), input_names=["crops"], output_names=["features"], dynamo=False
            )
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(crops: torch.Tensor) -> torch.Tensor:
        (features,) = session.run(["features"], {"crops": np.ascontiguousarray(crops.numpy())})
        return torch.from_numpy(features)

    return run
