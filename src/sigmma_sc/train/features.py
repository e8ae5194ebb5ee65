"""Patch features of a frozen image encoder, computed once for each distinct crop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sigmma_sc.tissue.pixels import read_crops

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.nn.encoders import ImageEncoder
    from sigmma_sc.tissue.frame import Slide

GPU_BATCH = 128
CPU_BATCH = 8
"""With channels last, within a tenth of the fastest of 4 to 32 for convolutional networks, transformers and stain-stats."""


class PatchFeatures:
    """Features of image crops, remembered by slide and crop.

    Parameters
    ----------
    encoder
        Frozen encoder.
    progress
        Show a progress bar.
    """

    def __init__(self, encoder: ImageEncoder, progress: bool = True):
        self.encoder, self.progress = encoder, progress
        self._known: dict[tuple[int, str], tuple[object, dict[tuple[float, ...], int], torch.Tensor]] = {}

    def __call__(self, slide: Slide, crops: NDArray[np.float64], device: torch.device) -> torch.Tensor:
        """Features ``(n_crops, d)`` float16 of crops ``(n_crops, 3)`` as (x, y, side) in px; only new crops are encoded."""
        name = (id(slide.sdata), slide.image_key)
        # The object is kept beside its features, so that its id cannot come to mean another one.
        _, places, stored = self._known.get(
            name, (slide.sdata, {}, torch.empty(0, self.encoder.dim, dtype=torch.float16))
        )
        keys = [tuple(key) for key in np.round(crops, 3).tolist()]
        new = np.array([k for k, key in enumerate(keys) if key not in places], dtype=np.int64)
        if len(new):
            fresh = self._encode(slide, crops[new], device)
            places = {**places, **{keys[k]: len(stored) + n for n, k in enumerate(new)}}
            stored = torch.cat([stored, fresh])
            self._known[name] = (slide.sdata, places, stored)
        return stored[[places[key] for key in keys]]

    def _encode(self, slide: Slide, crops: NDArray[np.float64], device: torch.device) -> torch.Tensor:
        from rich.progress import track

        self.encoder.to(device)
        out = torch.empty(len(crops), self.encoder.dim, dtype=torch.float16)
        batch = CPU_BATCH if device.type == "cpu" else GPU_BATCH
        groups = read_crops(slide, crops, self.encoder.input_size)
        total = len(crops)
        for index, pixels in track(
            _chunks(groups, batch), f"Encoding {slide.name}", total=total / batch, disable=not self.progress
        ):
            # A full batch of one size every time: kernels differ between sizes in their last bits, a crop's features must not.
            filled = np.concatenate([pixels, np.zeros((batch - len(pixels), *pixels.shape[1:]), np.uint8)])
            images = torch.from_numpy(filled).permute(0, 3, 1, 2)  # channels last in memory
            out[torch.from_numpy(index)] = self.encoder.encode(images.to(device))[: len(index)].cpu().half()
        return out


def _chunks(groups, batch: int):
    """Cut the reader's groups into batches."""
    for index, pixels in groups:
        for start in range(0, len(index), batch):
            yield index[start : start + batch], pixels[start : start + batch]
