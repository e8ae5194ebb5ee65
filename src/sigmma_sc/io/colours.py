"""Colours of a TIFF: names of its channels, and YCbCr that is not converted by its codec."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from pathlib import Path

    import tifffile
    from numpy.typing import NDArray

APERIO_YCBCR = 33003
"""Compression of Aperio's JPEG 2000 that holds Y, Cb and Cr, whatever the file says of its colours."""

JPEG_2000 = (33003, 33004, 33005, 34712)
CONVERTED = (6, 7, 33007, 22610, 34934, 50001, 50002, 52546)
"""Compressions by JPEG 2000, and those by JPEG, JPEG XR, WebP and JPEG XL, whose decoders give RGB."""

GREY, RGB, YCBCR = 1, 2, 6
"""Photometric interpretations that can hold red, green and blue; planes of one channel each are grey."""


def channel_names(file: tifffile.TiffFile, series: int) -> list[str]:
    """Names that OME-XML or ImageJ give to the channels of an image; empty where they give none."""
    import tifffile

    names: list[str | None] = []
    if file.is_ome and file.ome_metadata is not None:
        images = _listed(tifffile.xml2dict(file.ome_metadata).get("OME", {}).get("Image"))
        if series < len(images):
            channels = _listed(images[series].get("Pixels", {}).get("Channel"))
            names = [channel.get("Name") for channel in channels]
    elif file.is_imagej and file.imagej_metadata is not None:
        names = _listed(file.imagej_metadata.get("Labels"))
    # One image cannot hold two channels of one name.
    return [str(name) for name in names] if all(names) and len(set(names)) == len(names) else []


def _listed(value: object) -> list:
    """One or several elements of XML as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def require_rgb(page: tifffile.TiffPage, path: Path) -> None:
    """Raise :class:`SetupError` if a file states colours other than RGB and YCbCr, such as CMYK."""
    if page.photometric not in (GREY, RGB, YCBCR):
        name = getattr(page.photometric, "name", page.photometric)
        raise SetupError(
            f"The colours of {path} are {name}, and H&E must be RGB. Convert the image to RGB, e.g. with the software that "
            "exported it."
        )


def is_ycbcr(page: tifffile.TiffPage) -> bool:
    """Whether pixels of an image come out of the decoder as Y, Cb and Cr."""
    if page.compression in CONVERTED:
        return False
    if page.photometric != YCBCR and page.compression != APERIO_YCBCR:
        return False
    return page.compression not in JPEG_2000 or not _has_colour_transform(_first_segment(page))


def _first_segment(page: tifffile.TiffPage) -> bytes:
    """The first tile or strip that a file holds, still compressed."""
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        if size:
            page.parent.filehandle.seek(offset)
            return page.parent.filehandle.read(size)
    return b""


def _has_colour_transform(codestream: bytes) -> bool:
    """Whether JPEG 2000 holds colours that its decoder turns to RGB (ISO/IEC 15444-1, A.6.1)."""
    start = codestream.find(b"\xff\x4f\xff\x51")
    style = codestream.find(b"\xff\x52", start)
    return 0 <= start < style and codestream[style + 8 : style + 9] == b"\x01"


def rgb_of_ycbcr(pixels: NDArray) -> NDArray:
    """RGB of pixels ``(…, 3)`` of Y, Cb and Cr in their full range (ITU-R BT.601, as in JPEG); a fourth channel is kept.

    Pixels of tiles that a file lacks are 0 in all three, and stay black.
    """
    high = np.iinfo(pixels.dtype).max
    y, cb, cr = np.moveaxis(pixels[..., :3].astype(np.float32), -1, 0)
    cb = cb - (high + 1) // 2
    cr = cr - (high + 1) // 2
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    rgb[(pixels[..., :3] == 0).all(axis=-1)] = 0
    rgb = rgb.round().clip(0, high).astype(pixels.dtype)
    return np.concatenate([rgb, pixels[..., 3:]], axis=-1)
