"""Patch features of a frozen image encoder, computed once for each distinct crop."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sigmma_sc._checks import require_path
from sigmma_sc._progress import Display
from sigmma_sc._settings import settings
from sigmma_sc.encoders.device import computing_in, feature_type, fewer_crops
from sigmma_sc.encoders.fingerprint import identity_of
from sigmma_sc.encoders.folding import folded
from sigmma_sc.encoders.onnx import run_by_onnx
from sigmma_sc.errors import CacheWarning, EncoderError, SetupError, WriteError
from sigmma_sc.features.ahead import ahead, late
from sigmma_sc.features.cache import Crop, FeatureCache, cache_key, key_of_output
from sigmma_sc.features.crops import cut_crops
from sigmma_sc.tissue.byimage import ByImage
from sigmma_sc.tissue.identity import image_identity
from sigmma_sc.tissue.pixels import read_canvases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.tissue.frame import Slide

GPU_BATCH = 128
CPU_BATCH = 4
"""With channels last, within a tenth of the fastest for convolutional networks, transformers and stain-stats. From 8 on a layer's output is
so large that the allocator takes it from the system anew each time, in pages that are zeroed first."""

FLUSH_SECONDS = 30.0
"""Of encoding that a kill may lose."""


@dataclass
class _Known:
    """Features of one image: where each crop's row is."""

    places: dict[Crop, int]
    features: torch.Tensor
    cache: FeatureCache | None

    def add(self, crops: list[Crop], features: torch.Tensor) -> None:
        self.places.update(zip(crops, range(len(self.features), len(self.features) + len(crops)), strict=True))
        self.features = torch.cat([self.features, features])


class PatchFeatures:
    """Features of image crops by a frozen encoder, remembered by image and crop as long as the image is there.

    ``cache_dir`` keeps features from one session to the next; it is made if it does not exist.
    """

    def __init__(self, encoder: ImageEncoder, cache_dir: str | Path | None = None):
        self.encoder = encoder
        if cache_dir is not None:
            require_path(cache_dir, "cache_dir")
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        if self.cache_dir is not None and self.cache_dir.exists() and not self.cache_dir.is_dir():
            raise SetupError(f"cache_dir={str(cache_dir)!r} is a file. Give a folder.")
        self.most = GPU_BATCH  # crops of a batch that the memory of the device holds
        self._known = ByImage()
        # What encodes crops of a size on a CPU under a setting of cpu_runtime.
        self._on_cpu: dict[tuple[int, str], Callable[[torch.Tensor], torch.Tensor]] = {}

    def __call__(
        self,
        slide: Slide,
        crops: NDArray[np.float64],
        device: torch.device,
        sizes: NDArray[np.int64] | None = None,
        single: bool = False,
    ) -> torch.Tensor:
        """Features ``(n_crops, d)`` float16 of crops ``(n_crops, 3)`` as (x, y, side) in px; only new ones are encoded.

        Crops are rounded to a thousandth of a pixel. ``sizes`` ``(n_crops,)`` are the sides in px at which they reach
        the encoder, its input size by default. A GPU computes in the half type that it is fast in, unless ``single``;
        see :func:`~sigmma_sc.encoders.device.feature_type`.
        """
        crops = np.round(crops, 3)
        sizes = np.full(len(crops), self.encoder.input_size) if sizes is None else sizes
        kind = feature_type(device, single)
        out = torch.empty(len(crops), self.encoder.dim, dtype=torch.float16)
        for size in np.unique(sizes):
            some = np.flatnonzero(sizes == size)
            out[torch.from_numpy(some)] = self._of_size(slide, crops[some], device, int(size), kind)
        return out

    def once(
        self, slide: Slide, crops: NDArray[np.float64], device: torch.device, size: int, single: bool = False
    ) -> torch.Tensor:
        """Features ``(n_crops, d)`` float16 of crops that are not asked for again, and so not remembered."""
        return self._encode(slide, np.round(crops, 3), device, None, size, feature_type(device, single))

    def _of_size(
        self, slide: Slide, crops: NDArray[np.float64], device: torch.device, size: int, kind: torch.dtype
    ) -> torch.Tensor:
        known = self._of(slide, size, kind)
        keys = [tuple(key) for key in crops.tolist()]
        new = [k for k, key in enumerate(keys) if key not in known.places]
        if new and known.cache is not None:
            found, features = known.cache.read([keys[k] for k in new])
            known.add([keys[new[k]] for k in found], features)
            new = [k for k in new if keys[k] not in known.places]
        if new:
            known.add([keys[k] for k in new], self._encode(slide, crops[new], device, known.cache, size, kind))
        return known.features[[known.places[key] for key in keys]]

    def _of(self, slide: Slide, size: int, kind: torch.dtype) -> _Known:
        known: dict[tuple[int, torch.dtype], _Known] = self._known.get(slide, dict)
        if (size, kind) not in known:
            cache = None
            if self.cache_dir is not None:
                key = cache_key(image_identity(slide), self._identity["fingerprint"], size, kind)
                cache = self._cache(self.cache_dir, key)
            known[size, kind] = _Known({}, torch.empty(0, self.encoder.dim, dtype=torch.float16), cache)
        return known[size, kind]

    def _cache(self, folder: Path, key: str) -> FeatureCache | None:
        """Features under a key; ``None``, with a warning, where none are and none can be written."""
        try:
            key = key_of_output(folder, key, self._identity["output"])
        except WriteError as error:
            warnings.warn(f"{error} Features are computed and not kept.", CacheWarning, stacklevel=2)
            return None
        return FeatureCache(folder, key, self.encoder.dim)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Of the encoder, whose weights are read once for all slides and sizes."""
        return identity_of(self.encoder)

    @cached_property
    def _folded(self) -> ImageEncoder:
        """The encoder as torch runs it on a CPU: batch normalisation took a fifth of the time of MobileNetV2 there."""
        return folded(self.encoder)

    def _run_on_cpu(self, images: torch.Tensor) -> torch.Tensor:
        """Features of a full batch ``(CPU_BATCH, 3, S, S)``, by ONNX Runtime or torch."""
        size = images.shape[-1]
        key = size, settings.cpu_runtime
        if key not in self._on_cpu:
            self._on_cpu[key] = run_by_onnx(self.encoder, size, len(images)) or self._folded.encode
        return self._on_cpu[key](images)

    def _encode(
        self,
        slide: Slide,
        crops: NDArray[np.float64],
        device: torch.device,
        cache: FeatureCache | None,
        size: int,
        kind: torch.dtype,
    ) -> torch.Tensor:
        """Encode crops; what is done goes to the cache now and then, and as one shard in the end."""
        self.encoder.to(device)
        out = torch.empty(len(crops), self.encoder.dim, dtype=torch.float16)
        canvases = read_canvases(slide, crops, size)
        if device.type in ("cpu", "mps"):
            groups = ahead(cut_crops(canvases, len(crops), size, torch.device("cpu")))
        else:
            # Pixels reach the device once, however many crops hold them.
            groups = cut_crops(ahead(canvases), len(crops), size, device)
        batches = self._batches(groups, device, kind)
        if device.type != "cpu":
            batches = late(batches)
        waiting, shards, flushed = [], [], time.monotonic()
        with Display(f"Encoding {slide.name}", len(crops), "crops") as display:
            for index, features in batches:
                out[torch.from_numpy(index)] = self._stored(features, slide, kind)
                display.advance(len(index))
                waiting += index.tolist()
                if cache is not None and time.monotonic() - flushed > FLUSH_SECONDS:
                    shard = cache.write(crops[waiting], out[waiting])
                    shards += [] if shard is None else [shard]
                    waiting, flushed = [], time.monotonic()
        if cache is not None and cache.write(crops, out) is not None:
            for shard in shards:
                shard.unlink(missing_ok=True)
        return out

    def _batches(
        self, groups: Iterable[tuple[NDArray[np.int64], torch.Tensor]], device: torch.device, kind: torch.dtype
    ) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
        """Cut the reader's groups into batches, and encode them; features ``(k, d)`` are on the device."""
        for index, pixels in groups:
            begin = 0
            while begin < len(index):
                end = begin + self._batch_size(device)
                try:
                    features = self._features(pixels[begin:end], device, kind)
                except torch.OutOfMemoryError:
                    self.most = fewer_crops(self._batch_size(device), self.encoder.name)
                    continue
                yield index[begin:end], features
                begin = end

    def _batch_size(self, device: torch.device) -> int:
        return min(self.most, CPU_BATCH if device.type == "cpu" else GPU_BATCH)

    def _features(self, pixels: torch.Tensor, device: torch.device, kind: torch.dtype) -> torch.Tensor:
        # A full batch of one size every time: kernels differ between sizes in their last bits, a crop's features must not.
        if missing := self._batch_size(device) - len(pixels):
            pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
        images = pixels.permute(0, 3, 1, 2)  # channels last in memory
        if device.type == "cpu" and kind == torch.float32:
            return self._run_on_cpu(images)[: len(pixels) - missing]
        with computing_in(kind, device):
            return self.encoder.encode(images.to(device, non_blocking=True))[: len(pixels) - missing]

    def _stored(self, features: torch.Tensor, slide: Slide, kind: torch.dtype) -> torch.Tensor:
        """Features as float16 on the CPU, or an error if that cannot hold them."""
        features = features.cpu()
        stored = features.half()
        if torch.isfinite(stored).all():
            return stored
        if torch.isfinite(features).all():
            largest = features.flatten()[features.abs().argmax()].item()
            raise EncoderError(
                f"Image encoder {self.encoder.name!r} gives {largest:.6g} on {slide.name}; features are kept as float16, which ends "
                f"at {torch.finfo(torch.float16).max:.0f}. Scale or normalise its output."
            )
        odd = features[~torch.isfinite(features)][0].item()
        if kind == torch.float16:
            raise EncoderError(
                f"Image encoder {self.encoder.name!r} gives {odd} on {slide.name} in float16, in which this GPU computes features. "
                "Pass precision='32-true' to train(), or to encode_patches()."
            )
        raise EncoderError(
            f"Image encoder {self.encoder.name!r} itself gives {odd} on {slide.name}. Check its weights, mean and std, and what it "
            "makes of a crop of one colour."
        )
