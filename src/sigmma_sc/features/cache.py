"""Patch features on disk: a folder of shards for each image and encoder, which any number of processes may fill at once."""

from __future__ import annotations

import hashlib
import json
import uuid
import warnings
import zlib
from itertools import count
from typing import TYPE_CHECKING

import torch

from sigmma_sc._files import fresh_file, require_writable, sweep, writing
from sigmma_sc.encoders.fingerprint import agree
from sigmma_sc.errors import CacheWarning, SetupError, WriteError

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from safetensors import safe_open

FORMAT = 3
"""Raised when the same crop of the same image would get other features: another resampling, say."""

OUTPUT = "output.json"
OWN_FILES = r"output\.json|[0-9a-f]{32}\.safetensors"
"""Names of the files of a cache, as a regular expression."""

Crop = tuple[float, ...]


def cache_key(image: str, encoder: str, size: int, kind: torch.dtype) -> str:
    """Hash over an image's identity, an encoder's fingerprint, the side of the crops in px and the number type."""
    name = "" if kind == torch.float32 else f" {kind}".replace("torch.", "")
    what = f"{FORMAT} {image} {size} {encoder}{name}"
    return hashlib.sha256(what.encode()).hexdigest()[:32]


def key_of_output(folder: Path, key: str, output: list[float]) -> str:
    """The key, or one beside it where an encoder of equal weights and another output for the same crop has it.

    A cache that cannot be written raises :class:`WriteError`, unless it knows the output.
    """
    name = key
    for n in count(1):
        stored = folder / name / OUTPUT
        if stored.is_dir():
            raise SetupError(
                f"{stored} is a folder, where the cache has a file. Move it away, or pass another cache_dir."
            )
        known = _output(stored) if stored.exists() else None
        if known is None:
            with writing(stored):
                stored.parent.mkdir(parents=True, exist_ok=True)
            with fresh_file(stored) as part:
                part.write_text(json.dumps(output))
            known = _output(stored)
        if known is not None and agree(known, output):
            break
        name = f"{key}-{n}"
    return name


def _output(stored: Path) -> list[float] | None:
    """Output of the encoder for one crop, as a cache keeps it; ``None``, with a warning, of a file that is damaged."""
    try:
        output = json.loads(stored.read_text())
    except ValueError:
        output = None
    if isinstance(output, list) and output and all(isinstance(value, (int, float)) for value in output):
        return output
    warnings.warn(f"{stored} is damaged and is written again.", CacheWarning, stacklevel=2)
    return None


class FeatureCache:
    """Features ``(n, dim)`` of the crops of one image by one encoder, in a folder named by :func:`key_of_output`.

    Shards are only ever added, each whole or not at all, under a name that no other process takes. A process may be
    killed at any moment, and others may read and write meanwhile. Crops are stored one by one, whatever tiles they
    belong to, so other tilings and models take what they have in common. A cache that cannot be written, or on a disk
    that is full, is read and not written, with a warning.
    """

    def __init__(self, folder: Path, key: str, dim: int):
        self.folder, self.key, self.dim = folder / key, key, dim
        self._sound: set[Path] = set()  # shards whose checksum was right
        self.writable = True
        try:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            require_writable(self.folder / OUTPUT)
        except WriteError as error:
            self._stop_writing(error)
        sweep(self.folder, OWN_FILES)

    def read(self, crops: list[Crop]) -> tuple[list[int], torch.Tensor]:
        """Which of some crops ``(x, y, side)`` are stored, and their features ``(n, d)`` float16."""
        wanted = {crop: k for k, crop in enumerate(crops)}
        found = []
        parts = [torch.empty(0, self.dim, dtype=torch.float16)]
        for path in sorted(self.folder.glob("*.safetensors")):
            if not wanted:
                break
            here, features = self._shard(path, wanted)
            found += [wanted.pop(crop) for crop in here]
            parts.append(features)
        return found, torch.cat(parts)

    def _stop_writing(self, error: WriteError) -> None:
        warnings.warn(f"{error} Features that are missing there are computed and not kept.", CacheWarning, stacklevel=2)
        self.writable = False

    def write(self, crops: NDArray[np.float64], features: torch.Tensor) -> Path | None:
        """Add a shard of crops ``(n, 3)`` and their features ``(n, d)`` float16; ``None`` where that cannot be."""
        from safetensors.torch import save_file

        if not self.writable:
            return None
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        tensors = {"crops": torch.from_numpy(crops), "features": features.contiguous()}
        try:
            with fresh_file(path) as part:
                save_file(tensors, part, {"key": self.key, "checksum": checksum(tensors)})
        except WriteError as error:
            self._stop_writing(error)
            return None
        return path

    def _shard(self, path: Path, wanted: Container[Crop]) -> tuple[list[Crop], torch.Tensor]:
        """Those crops of a shard that are wanted, and their features; none, with a warning, of one that is damaged.

        The checksum takes a reading of the whole shard, so it is checked once.
        """
        from safetensors import SafetensorError, safe_open

        nothing: tuple[list[Crop], torch.Tensor] = [], torch.empty(0, self.dim, dtype=torch.float16)
        try:
            with safe_open(path, "pt") as file:
                if path not in self._sound and not self._is_sound(file):
                    raise SafetensorError("not what was written")
                self._sound.add(path)
                rows = {
                    crop: row
                    for row, crop in enumerate(map(tuple, file.get_tensor("crops").tolist()))
                    if crop in wanted
                }
                return (list(rows), file.get_tensor("features")[list(rows.values())]) if rows else nothing
        except FileNotFoundError:
            return nothing  # merged by the process that wrote it
        except (SafetensorError, OSError):
            warnings.warn(
                f"{path} is damaged or belongs elsewhere: its features are computed again. Delete it.",
                CacheWarning,
                stacklevel=2,
            )
            return nothing

    def _is_sound(self, file: safe_open) -> bool:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("key") != self.key or metadata.get("checksum") != checksum(tensors):
            return False
        if tensors.keys() != {"crops", "features"}:
            return False
        crops, features = tensors["crops"], tensors["features"]
        kinds = crops.dtype == torch.float64 and features.dtype == torch.float16
        return kinds and crops.shape[1:] == (3,) and features.shape == (len(crops), self.dim)


def checksum(tensors: dict[str, torch.Tensor], text: str = "") -> str:
    """CRC-32 of tensors in the order of their names, and of a text."""
    value = zlib.crc32(text.encode())
    for _, tensor in sorted(tensors.items()):
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
