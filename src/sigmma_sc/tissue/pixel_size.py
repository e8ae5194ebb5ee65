"""Doubts about the size of a pixel: where it was inferred from, and whether cells are at distances that cells have."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc import _keys
from sigmma_sc.errors import MissingKeyError, PixelSizeWarning, SetupError
from sigmma_sc.tissue.frame import Slide, affine_to, axis_scale, image_levels, microns_per_unit
from sigmma_sc.tissue.levels import level_scales

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from spatialdata.models import SpatialElement

logger = logging.getLogger("sigmma_sc")

NEAREST = (2.0, 60.0)
"""Range of the median distance of a cell to the nearest other one, µm; a usual one is 4 to 12."""

PITCHES = (2.0, 8.0, 16.0, 55.0, 100.0, 200.0)
"""Distances of bins of Visium HD, and of spots of Visium and of Spatial Transcriptomics, µm."""

PITCH_TOLERANCE = 0.1
REGULAR = 0.16
FOURTH = 1.28
"""Largest relative error of a pitch. On a lattice, largest interquartile range of the nearest distances, and distance to the
fourth neighbour, as shares of their median. Spots as they were printed have at most 0.13 and 1.24, cells of tissue 0.35 and 1.7,
dense simulated cells at least 0.19 and 1.29."""

FEWEST_CELLS = 150
PATCHES = 4
PATCH = 500
"""Least cells to judge distances by; number of patches of neighbouring cells that are looked at, and cells in each."""

ALIKE = 0.02
"""Relative difference of two inferred sizes that is no contradiction."""


def tell_pixel_size(slide: Slide, stacklevel: int) -> None:
    """Log a pixel size that was inferred, and warn where it is doubtful."""
    if slide.region is None:
        return
    doubts = [_spacing(slide)]
    if slide.setup.microns_per_pixel is None and slide.cells_to_system is not None:
        logger.info(
            "Image %r: %.4g µm per pixel, inferred from the scale %.4g of the cells of %r to %r, as of cells in µm. Pass "
            "microns_per_pixel=… if it is another.",
            slide.image_key,
            slide.microns_per_pixel,
            axis_scale(slide.cells_to_system, "the cells"),
            slide.region,
            slide.coordinate_system,
        )
        doubts += [_pyramid(slide, slide.cells_to_system), *_contradictions(slide, slide.cells_to_system)]
    for doubt in filter(None, doubts):
        warnings.warn(
            f"Image {slide.image_key!r} with cells of {slide.region!r}: {slide.microns_per_pixel:.4g} µm per pixel may be wrong. "
            f"{doubt} Pass the size that the scanner wrote as microns_per_pixel=….",
            PixelSizeWarning,
            stacklevel=stacklevel + 1,
        )


def _pyramid(slide: Slide, cells_to_system: NDArray[np.float64]) -> str | None:
    """Whether the cells have the pixels of a level of the image as their unit, rather than µm."""
    image = slide.sdata.images[slide.image_key]
    image_to_system = affine_to(image, slide.coordinate_system, f"image {slide.image_key!r}")
    cells_to_image = np.linalg.solve(image_to_system, cells_to_system)
    ratio = cells_to_image[0, 0]
    shift = np.abs(cells_to_image[:2, 2]).max()
    if not np.allclose(cells_to_image[:2, :2], ratio * np.eye(2), atol=1e-3 * abs(ratio)) or shift > max(1, ratio):
        return None
    scales = level_scales(image_levels(slide.sdata, slide.image_key))
    for number, scale in enumerate(scales):
        if abs(ratio / scale - 1) < 1e-3:
            return (
                f"It is inferred from a scale of the cells that equals that of level {number} of the image. Cells that were "
                f"segmented on this level, in its pixels, would have the same scale whatever the size of a pixel is."
            )
    return None


def _contradictions(slide: Slide, cells_to_system: NDArray[np.float64]) -> Iterator[str]:
    """Other elements of the object whose scale gives another pixel size."""
    scale = axis_scale(cells_to_system, "the cells")
    for name, element in (*slide.sdata.shapes.items(), *slide.sdata.points.items()):
        if name == slide.region or name.startswith(_keys.TILES):
            continue
        other = _scale_of(element, slide.coordinate_system)
        if other is not None and abs(other / scale - 1) > ALIKE:
            yield (
                f"{name!r} has a scale of {other:.4g} to {slide.coordinate_system!r}, not {scale:.4g}, which gives "
                f"{slide.microns_per_pixel * scale / other:.4g} µm."
            )


def _scale_of(element: SpatialElement, system: str) -> float | None:
    """Scale of an element that is in µm, ``None`` for others and for those that have no similarity to the system."""
    try:
        unit = microns_per_unit(affine_to(element, system, "the element"))
    except (SetupError, MissingKeyError):
        return None
    return None if unit is None else 1 / unit


def _spacing(slide: Slide) -> str | None:
    """Whether the cells, bins or spots are at distances that none have."""
    if len(slide.xy) < FEWEST_CELLS:
        return None
    distances = _apart(slide.xy) * slide.microns_per_pixel
    if not len(distances):
        return None
    median = np.median(distances[:, 0])
    if _is_regular(distances):
        if np.abs(median / np.array(PITCHES) - 1).min() <= PITCH_TOLERANCE:
            return None
        known = ", ".join(f"{pitch:g}" for pitch in PITCHES)
        return (
            f"Bins or spots on a lattice are {median:.3g} µm apart with it, and those of the known assays {known} µm."
        )
    if NEAREST[0] <= median <= NEAREST[1]:
        return None
    return (
        f"The nearest cells are {median:.3g} µm apart with it, in the median, and in tissue {NEAREST[0]:g} to {NEAREST[1]:g} µm. A "
        "few cells that were drawn at random from a section are farther apart."
    )


def on_lattice(xy: NDArray[np.float64]) -> bool:
    """Whether positions ``(n, 2)`` are bins or spots on a lattice, which may have edges and holes; few are never."""
    if len(xy) < FEWEST_CELLS:
        return False
    distances = _apart(xy)
    return len(distances) > 0 and _is_regular(distances)


def _apart(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances to the four nearest other positions, of positions that share their place with none."""
    distances = nearest_distances(xy)
    return distances[distances[:, 0] > 0]


def _is_regular(distances: NDArray[np.float64]) -> bool:
    """Whether distances to the four nearest ``(m, 4)`` are those of a lattice."""
    low, median, high = np.quantile(distances[:, 0], (0.25, 0.5, 0.75))
    return bool(high - low < REGULAR * median and np.median(distances[:, -1]) < FOURTH * median)


def nearest_distances(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances to the four nearest other positions ``(m, 4)``, of positions ``(n, 2)`` in some patches of neighbours."""
    from scipy.spatial import cKDTree

    found = []
    for start in range(PATCHES):
        middle = xy[(2 * start + 1) * len(xy) // (2 * PATCHES)]
        square = ((xy - middle) ** 2).sum(axis=1)
        size = min(PATCH, len(xy))
        near = np.argpartition(square, size - 1)[:size]
        # The outer half of a patch may have neighbours outside of it.
        inner = near if size == len(xy) else near[square[near] <= np.median(square[near])]
        found.append(cKDTree(xy[near]).query(xy[inner], k=5)[0][:, 1:])
    return np.concatenate(found)
