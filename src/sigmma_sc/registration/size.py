"""The size of a pixel where the transformations do not tell it, and the search for the pose at each likely size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.registration.check import lattice_pitch
from sigmma_sc.registration.coarse import Candidate
from sigmma_sc.registration.pose import scale_of
from sigmma_sc.registration.register import KNOWN_SCALE, UNKNOWN_SCALE, Registered, find_pose
from sigmma_sc.tissue.frame import PLAUSIBLE_MICRONS, affine_to, axis_scale, microns_per_unit
from sigmma_sc.tissue.mask import tissue_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide

ALIKE = 1.2
"""Largest ratio of two sizes of a pixel that one search covers, with a margin to its range of scales."""

BLOCK = 50.0
"""Side of the squares, µm, that the area of a section is counted in: cells of loose tissue are no further apart."""


def find_at_likely_sizes(slide: Slide, seed: int = 0) -> tuple[Slide, Registered]:
    """Search the pose at each likely size of a pixel until one is certified; the slide has the size of that search.

    If none is, the search at the size of the alignment is returned. The positions of the slide's cells and the pose's
    matrix are in px of the image, as they were.
    """
    searches = []
    for microns, scales in likely_sizes(slide):
        sized, found = _find_at(slide, microns, scales, seed)
        searches.append((sized, found))
        if found.certified and found.matrix is not None:
            break
    else:
        return next(one for one in searches if one[0].microns_per_pixel == slide.microns_per_pixel)
    if scales == UNKNOWN_SCALE:
        # A certified pose tells the size. With it, windows and errors are as large as they say.
        again = _find_at(slide, _implied(slide) / scale_of(found.matrix), KNOWN_SCALE, seed)
        if again[1].certified:
            return again
    return sized, found


def _find_at(slide: Slide, microns: float, scales: tuple[float, float], seed: int) -> tuple[Slide, Registered]:
    """The slide with a size of its pixels, and the pose that is found with it."""
    ratio = _implied(slide) / microns
    # Cells keep their place in µm, and so their distance in px changes with the size of a pixel.
    found = find_pose(replace(slide, microns_per_pixel=microns, xy=slide.xy * ratio), scales, seed=seed)
    back = np.diag([ratio, ratio, 1.0])
    found = replace(
        found,
        matrix=None if found.matrix is None else found.matrix @ back,
        landscape=[Candidate(one.pose @ back, one.score) for one in found.landscape],
        # At another size of a pixel, the cells were not where their alignment puts them.
        before=found.before if ratio == 1 else None,
    )
    return replace(slide, microns_per_pixel=microns), found


def likely_sizes(slide: Slide) -> Iterator[tuple[float, tuple[float, float]]]:
    """Sizes of a pixel in µm to try, most likely first, and the range of scales to search about each.

    A size that is stated is the only one. That by a transformation of the image comes first. An identity transformation
    gives the size of the system's units, which another scanner's pixels need not have: then the size at which tissue is as
    large on the image as among the cells comes first. It comes last for other transformations, which may be wrong.
    """
    size = slide.microns_per_pixel
    known = slide.setup.microns_per_pixel is not None
    guessed = identity(slide)
    if known or not guessed:
        yield size, KNOWN_SCALE
    if known:
        return
    by_area = size_by_area(slide)
    low, high = PLAUSIBLE_MICRONS
    if low <= by_area <= high and max(by_area / size, size / by_area) > ALIKE:
        yield by_area, UNKNOWN_SCALE
    if guessed:
        yield size, UNKNOWN_SCALE


def identity(slide: Slide) -> bool:
    """Whether the image has an identity transformation, as after reading a file without its alignment."""
    return np.allclose(affine_to(slide.sdata.images[slide.image_key], slide.coordinate_system, "image"), np.eye(3))


def size_by_area(slide: Slide) -> float:
    """Size of a pixel in µm for which the image holds as much tissue as the cells cover."""
    xy = slide.xy * _implied(slide)
    pitch = lattice_pitch(xy)
    side = float(np.nanmax([BLOCK, 1.5 * pitch]))
    cells = len(np.unique(np.floor(xy / side), axis=0)) * side**2
    found = tissue_mask(slide)
    tissue = _closed(found.mask).sum() * found.scale**2
    return float(np.sqrt(cells / max(tissue, 1)))


def _closed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without the gaps and lumina of tissue, of up to a hundredth of its longer side."""
    from scipy.ndimage import binary_closing

    steps = max(1, max(mask.shape) // 200)
    padded = np.pad(mask, steps)
    return binary_closing(padded, iterations=steps)[steps:-steps, steps:-steps]


def _implied(slide: Slide) -> float:
    """Size of a pixel in µm by the transformations of cells in µm and of the image, or the slide's where these do not tell."""
    if slide.setup.microns_per_pixel is None or slide.cells_to_system is None:
        return slide.microns_per_pixel
    unit = microns_per_unit(slide.cells_to_system)
    if unit is None:
        return slide.microns_per_pixel
    image = affine_to(slide.sdata.images[slide.image_key], slide.coordinate_system, "image")
    return unit * axis_scale(image, "image")
