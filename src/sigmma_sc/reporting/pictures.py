"""Pictures as ``data:`` addresses, which no host is asked for."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sigmma_sc.registration.windows import small_picture
from sigmma_sc.tissue.pixels import read_crops

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide

MOST_PIXELS = 1_500_000
"""Pixels of the images of all slides together."""

TILE = 112
"""Side of the picture of a tile, px."""

QUALITY = {"slide": 80, "tile": 75}
"""Quality of JPEG, of 95."""


def jpeg(pixels: NDArray[np.uint8], quality: int) -> str:
    """Address of RGB pixels ``(h, w, 3)``."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return _address("jpeg", buffer)


def slide_picture(slide: Slide, n_slides: int) -> str:
    """The whole image of one of some slides, reduced to its part of :data:`MOST_PIXELS`."""
    pixels = MOST_PIXELS / n_slides
    longer = max(slide.width, slide.height)
    size = int(longer * math.sqrt(pixels / (slide.width * slide.height)))
    return jpeg(small_picture(slide, min(size, longer)), QUALITY["slide"])


def tile_pictures(slide: Slide, tiles: NDArray[np.int64]) -> dict[int, str]:
    """Pictures of some covering tiles of a slide, by their number."""
    distinct = np.unique(tiles)
    if not len(distinct):
        return {}
    crops = np.column_stack([slide.tiles.origins[distinct], np.full(len(distinct), slide.tiles.side)])
    found = {}
    for index, pixels in read_crops(slide, crops, TILE):
        for k, crop in zip(index.tolist(), pixels, strict=True):
            found[int(distinct[k])] = jpeg(crop, QUALITY["tile"])
    return found


def figure_picture(figure: Figure) -> str:
    """A figure of matplotlib, which is closed."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return _address("png", buffer)


def _address(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
