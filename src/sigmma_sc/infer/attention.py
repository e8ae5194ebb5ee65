"""Attention maps of a model's image encoder on tiles of a slide (paper, Fig. 3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from sigmma_sc.encoders.attention import cls_attention
from sigmma_sc.errors import SetupError
from sigmma_sc.features.patches import CPU_BATCH
from sigmma_sc.infer.tiles import tile_by_name
from sigmma_sc.tissue.pixels import read_crops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from xarray import Dataset

    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.tissue.frame import Slide


def tile_attention(
    encoder: ImageEncoder, slides: Sequence[Slide], tiles: str | Sequence[str], side: int, device: torch.device
) -> Dataset:
    """Attention maps of named tiles, each brought to ``side`` px; see :meth:`sigmma_sc.SIGMMA.get_attention`."""
    from xarray import Dataset

    names = [tiles] if isinstance(tiles, str) else list(tiles) if isinstance(tiles, Iterable) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise SetupError(f"tiles={tiles!r}: name rows of get_tile_representation(), e.g. tiles.obs_names[:4].")
    found = [tile_by_name(slides, name) for name in names]
    crops = np.array([(*tile.origins[0], tile.side) for _, tile in found])
    pixels = np.empty((len(names), side, side, 3), np.uint8)
    for slide in {slide.name: slide for slide, _ in found}.values():
        here = np.flatnonzero([one.name == slide.name for one, _ in found])
        for index, read in read_crops(slide, crops[here], side):
            pixels[here[index]] = read
    encoder.to(device)
    maps = [_maps(encoder, part) for part in np.split(pixels, range(CPU_BATCH, len(names), CPU_BATCH))]
    return Dataset(
        {
            "attention": (("tile", "head", "row", "column"), np.concatenate(maps)),
            "image": (("tile", "y", "x", "channel"), pixels),
        },
        coords={
            "tile": names,
            "slide": ("tile", [slide.name for slide, _ in found]),
            "image_key": ("tile", [slide.image_key for slide, _ in found]),
            "coordinate_system": ("tile", [slide.coordinate_system for slide, _ in found]),
            "microns_per_pixel": ("tile", [slide.microns_per_pixel for slide, _ in found]),
            "x0": ("tile", crops[:, 0]),
            "y0": ("tile", crops[:, 1]),
            "side": ("tile", crops[:, 2]),
        },
        attrs={"image_encoder": encoder.name},
    )


def _maps(encoder: ImageEncoder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return cls_attention(encoder, torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
