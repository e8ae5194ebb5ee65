"""What tells one image encoder from another: its name and sizes, its weights, and what it makes of a crop.

Encoders of equal weights may differ in a pooling or a padding alone. That shows in the output, which is compared and not hashed: rounded, it
would fall now on this and now on that side of a rounding border, by device and number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sigmma_sc.encoders.encoder import ImageEncoder

PROBED = 32
"""Numbers of a feature vector that are kept."""

TOLERANCE = 0.01
"""Devices, threads and versions of libraries move a feature by some thousandths at most, another network by far more."""


def identity_of(encoder: ImageEncoder) -> dict[str, Any]:
    """What to know an encoder again by, elsewhere and later; JSON-safe, for :func:`mismatch`.

    All weights are read, and a crop is encoded: keep it where the encoder does not change.
    """
    return {
        "name": encoder.name,
        "input_size": encoder.input_size,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "fingerprint": encoder.fingerprint(),
        "output": _probe(encoder),
    }


def mismatch(own: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    """In what two :func:`identity_of` differ; nothing if they are of the same encoder."""
    different = [key for key in ("name", "input_size", "mean", "std") if own[key] != identity[key]]
    if not different and own["fingerprint"] != identity["fingerprint"]:
        different.append("weights")
    return different if agree(own["output"], identity["output"]) else [*different, "output"]


def agree(found: list[float], expected: list[float]) -> bool:
    """Whether two outputs are of encoders that compute the same, to a hundredth."""
    if len(found) != len(expected):
        return False
    if np.array_equal(found, expected, equal_nan=True):
        return True  # infinite ones too
    difference = np.linalg.norm(np.subtract(found, expected))
    return bool(difference <= TOLERANCE * np.linalg.norm(expected))


def _probe(encoder: ImageEncoder) -> list[float]:
    """Some numbers of the feature of a crop that is always the same; generators of random numbers stay as they were."""
    place = encoder._mean.device
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        out = encoder.encode(_probe_crop(encoder.input_size))[0].cpu()
    return out[:: -(-len(out) // PROBED)].tolist()


def _probe_crop(size: int) -> Tensor:
    """A crop ``(1, 3, size, size)`` uint8, always the same: patches of colour, dark ones more often, under a fine grain."""

    def levels(n: int) -> Any:
        return np.arange(n) * 2654435761 % 2**32 >> 24  # scattered over 0 … 255, by no generator that may change

    place = np.arange(size) * 7 // size
    colours = (levels(3 * 49) ** 2 // 256).reshape(3, 7, 7)[:, place][:, :, place]
    grain = levels(3 * size * size).reshape(1, 3, size, size) // 8
    return torch.from_numpy((colours + grain).clip(0, 255).astype(np.uint8))
