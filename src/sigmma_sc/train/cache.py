"""Patch features on disk: a folder of shards for each image and encoder, which any number of processes may fill at once."""

from __future__ import annotations

import hashlib
import uuid
import warnings
import zlib
from typing import TYPE_CHECKING

import torch

from sigmma_sc._files import fresh_file, sweep
from sigmma_sc.errors import CacheWarning

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from sigmma_sc.nn.encoders import ImageEncoder

FORMAT = 1
"""Raised when the same crop of the same image would get other features: another resampling, say."""

Crop = tuple[float, ...]


def cache_key(image: str, encoder: ImageEncoder, size: int, half: bool) -> str:
    """Hash over an image's identity and all that decides what an encoder makes of it, at crops of ``size`` px."""
    what = f"{FORMAT} {image} {size} {encoder.fingerprint()}" + (" bfloat16" if half else "")
    return hashlib.sha256(what.encode()).hexdigest()[:32]


class FeatureCache:
    """Features of the crops of one image by one encoder.

    Shards are only ever added, each whole or not at all, under a name that no other process takes: a process may be killed
    at any moment, and others may read and write meanwhile. Crops are stored one by one, whatever tiles they belong to, so
    other tilings and models take what they have in common.

    Parameters
    ----------
    folder
        Folder of the cache.
    key
        Of image and encoder, see :func:`cache_key`.
    dim
        Width of the features.
    """

    def __init__(self, folder: Path, key: str, dim: int):
        self.folder, self.key, self.dim = folder / key, key, dim
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)

    def read(self, crops: list[Crop]) -> tuple[list[int], torch.Tensor]:
        """Which of some crops ``(x, y, side)`` are stored, and their features ``(n, d)`` float16."""
        wanted = {crop: k for k, crop in enumerate(crops)}
        found, parts = [], [torch.empty(0, self.dim, dtype=torch.float16)]
        for path in sorted(self.folder.glob("*.safetensors")):
            if not wanted:
                break
            stored, features = self._shard(path)
            rows = {crop: row for row, crop in enumerate(stored) if crop in wanted}
            found += [wanted.pop(crop) for crop in rows]
            parts.append(features[list(rows.values())])
        return found, torch.cat(parts)

    def write(self, crops: NDArray[np.float64], features: torch.Tensor) -> Path:
        """Add a shard of crops ``(n, 3)`` and their features ``(n, d)`` float16."""
        from safetensors.torch import save_file

        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        tensors = {"crops": torch.from_numpy(crops), "features": features.contiguous()}
        with fresh_file(path) as part:
            save_file(tensors, part, {"key": self.key, "checksum": _checksum(tensors)})
        return path

    def _shard(self, path: Path) -> tuple[list[Crop], torch.Tensor]:
        """Crops and features of a shard; none, with a warning, of one that is damaged: they can be computed again."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                told, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return [], torch.empty(0, self.dim, dtype=torch.float16)  # merged by the process that wrote it
        except SafetensorError:
            told, tensors = {}, {}
        if told.get("key") != self.key or told.get("checksum") != _checksum(tensors):
            warnings.warn(
                f"{path} is damaged or belongs elsewhere: its features are computed again. Delete it.",
                CacheWarning,
                stacklevel=2,
            )
            return [], torch.empty(0, self.dim, dtype=torch.float16)
        return list(map(tuple, tensors["crops"].tolist())), tensors["features"]


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    value = 0
    for _, tensor in sorted(tensors.items()):
        value = zlib.crc32(tensor.view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
