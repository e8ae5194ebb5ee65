"""What tells one image encoder from another: its name and sizes, its weights, and its output for one crop.

Encoders of equal weights may differ in a pooling or a padding alone, which shows in the output. The output is compared and
not hashed: rounded values would differ between devices and numbers of threads wherever they lie at the border of rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sigmma_sc._random import kept_random_state

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.encoders.encoder import ImageEncoder

N_KEPT = 32
"""Numbers of a feature vector that are kept."""

TOLERANCE = 0.01
"""Devices, threads and versions of libraries move a feature by some thousandths at most, another network by far more."""


def identity_of(encoder: ImageEncoder) -> dict[str, Any]:
    """Describe an encoder in JSON-safe values, so that it can be recognised elsewhere and later, by :func:`mismatch`.

    All weights are read and a crop is encoded: keep the result where the encoder does not change.
    """
    return {
        "name": encoder.name,
        "input_size": encoder.input_size,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "fingerprint": encoder.fingerprint(),
        "output": _output(encoder),
    }


def mismatch(own: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    """Name in what two results of :func:`identity_of` differ; empty if they are of the same encoder."""
    different = [key for key in ("name", "input_size", "mean", "std") if own[key] != identity[key]]
    if not different and own["fingerprint"] != identity["fingerprint"]:
        different.append("weights")
    if not agree(own["output"], identity["output"]):
        different.append("output")
    return different


def agree(found: list[float], expected: list[float]) -> bool:
    """Whether two outputs for one crop are of encoders that compute the same, to a hundredth of their norm."""
    if len(found) != len(expected):
        return False
    if np.array_equal(found, expected, equal_nan=True):
        return True  # also where both are infinite
    difference = np.linalg.norm(np.subtract(found, expected))
    return bool(difference <= TOLERANCE * np.linalg.norm(expected))


def _output(encoder: ImageEncoder) -> list[float]:
    """Some numbers of the feature vector of a fixed crop; generators of random numbers stay as they were."""
    with kept_random_state(encoder.device):
        features = encoder.encode(fixed_crop(encoder.input_size))[0].cpu()
    step = -(-len(features) // N_KEPT)
    return features[::step].tolist()


def fixed_crop(size: int) -> Tensor:
    """Fixed crop ``(1, 3, size, size)`` uint8: patches of colour, dark ones more often, under a fine grain."""
    place = np.arange(size) * 7 // size
    colours = (_scattered(3 * 49) ** 2 // 256).reshape(3, 7, 7)[:, place][:, :, place]
    grain = _scattered(3 * size * size).reshape(1, 3, size, size) // 8
    return torch.from_numpy((colours + grain).clip(0, 255).astype(np.uint8))


def _scattered(n: int) -> NDArray[np.int64]:
    """Whole numbers scattered over 0 … 255, by no generator that a new version may change."""
    return np.arange(n) * 2654435761 % 2**32 >> 24
