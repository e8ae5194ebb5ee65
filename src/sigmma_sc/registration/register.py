"""Find where the cells of a slide belong on its image, whatever its alignment says, or say that it cannot be told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import SetupError
from sigmma_sc.registration.certificate import (
    CANNOT_TELL,
    REGISTERED,
    Certificate,
    curvature_error,
    evidence,
    halves_error,
    refusal,
)
from sigmma_sc.registration.check import FINE_PITCH, SIGNIFICANT, lattice_pitch
from sigmma_sc.registration.coarse import Candidate, distinct, search
from sigmma_sc.registration.colour import read_colours
from sigmma_sc.registration.explain import explain
from sigmma_sc.registration.fine import prefers_affine, window_curves
from sigmma_sc.registration.haematoxylin import peak_of
from sigmma_sc.registration.held_out import BLOCK, blocks_of, held_out
from sigmma_sc.registration.pose import displacement, to_pixels
from sigmma_sc.registration.refine import refine
from sigmma_sc.registration.residuals import Residuals, residuals_of_blocks, residuals_of_windows
from sigmma_sc.registration.squares import N_COMPONENTS, Squares, expression_squares

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.registration.colour import ColourMap, ColourRaster
    from sigmma_sc.tissue.frame import Slide

KNOWN_SCALE = (0.97, 1.03)
UNKNOWN_SCALE = (0.78, 1.28)
"""Scales of the cells against the image that are searched: 2 % for a known pixel size, 0.8 to 1.25 for one not known."""

N_SQUARES = 450
"""Number of squares of the coarse search that the section is divided into, where their size allows."""

LARGEST = 256.0
SMALLEST = 48.0
"""Limits of the side of a coarse square, µm: tissue varies over less than that, and a square holds some cells."""

PER_FINE = 4
"""Number of cells that a fine square holds on average, at least."""

FINEST = 24.0
COARSEST_FINE = 100.0
"""Limits of the side of a fine square, µm."""

N_REFINED = 12
N_FINALISTS = 5
"""Number of poses of the coarse search that are refined, and of those refined again on fine squares."""

BIAS = 0.1
"""Error that halves of a section share, in squares: bins of a kidney are 2 µm from their nuclei by squares of 24 µm."""

LEAST_TISSUE = 0.02
"""Least share of an image that is tissue."""

NO_NUCLEI = ", but single nuclei do not confirm it: they are not visible, or the image is of another section"
"""What is said of cells whose pose nuclei do not confirm."""

N_WINDOWS = 120
"""Number of windows of the fine step by nuclei."""


@dataclass(frozen=True)
class Registered:
    """Pose of a slide's cells on its image, with the evidence for it."""

    # Affine (3, 3) over (x, y, 1) that takes ``slide.xy`` to where the cells belong, both px of level 0. None where there
    # is no pose at all; one that is not certified is the best found, and not to be used.
    matrix: NDArray[np.float64] | None
    certificate: Certificate
    by: str  # "nuclei" or "expression": what the last step went by
    affine: bool  # whether the pose is an affine rather than a similarity
    residuals: Residuals | None  # local shifts that would improve the pose
    # Best distinct poses of the search, px to px, with their scores, best first.
    landscape: list[Candidate]
    before: Certificate | None = None  # the same evidence for the alignment that the cells came with, None without any

    @property
    def certified(self) -> bool:
        """Whether the pose is certified."""
        return self.certificate.verdict == REGISTERED


@dataclass(frozen=True)
class SquareSizes:
    """Sizes of squares for one section, µm."""

    coarse: float
    fine: float
    pitch: float  # distance of bins or spots, NaN for cells

    @classmethod
    def of(cls, slide: Slide) -> SquareSizes:
        """Coarse squares divide the section into some 450; fine ones hold a few cells, or one spot."""
        xy = slide.xy * slide.microns_per_pixel
        pitch = lattice_pitch(slide.xy) * slide.microns_per_pixel
        unit = np.nanmax([200.0, 2 * pitch])
        area = len(np.unique(np.floor(xy / unit), axis=0)) * unit**2
        wide = pitch > FINE_PITCH
        fine = pitch / 2 if wide else np.sqrt(PER_FINE * area / len(xy))
        coarse = float(np.clip(np.sqrt(area / N_SQUARES), SMALLEST, LARGEST))
        fine = float(np.clip(max(fine, coarse / 3), FINEST, COARSEST_FINE))
        return cls(max(coarse, 1.25 * pitch) if wide else max(coarse, 2 * fine), fine, pitch)


def find_pose(
    slide: Slide, scales: tuple[float, float] = KNOWN_SCALE, n_windows: int = N_WINDOWS, seed: int = 0
) -> Registered:
    """Search the pose of a slide's cells on its image by expression and colour, refine it, and certify it.

    Parameters
    ----------
    slide
        Slide whose cells have raw counts. Its alignment is ignored, apart from the size of a pixel.
    scales
        Smallest and largest factor between the sizes of cells and image.
    n_windows
        Number of windows of 200 µm in the fine step by nuclei.
    seed
        Seed of the windows held out and of those of the fine step.

    Raises
    ------
    SetupError
        The slide has no genes, or its counts are not raw.
    """
    if slide.table.n_vars == 0:
        raise SetupError(f"The table of slide {slide.name!r} has no genes, by which its cells could be registered.")
    sizes = SquareSizes.of(slide)
    raster = read_colours(slide)
    if raster.tissue.mean() < LEAST_TISSUE:
        return _refused(f"only {raster.tissue.mean():.1%} of the image is tissue, the rest is glass")
    squares = expression_squares(slide, sizes.fine)
    if len(squares) < 4 * N_COMPONENTS:
        return _refused(f"{len(squares)} squares of {sizes.fine:.0f} µm that hold cells are too few")
    blocks = blocks_of(squares.xy, BLOCK * sizes.coarse)
    held = held_out(blocks, seed)
    found = candidates(squares.take(~held), raster, sizes, scales)
    if not found:
        return _refused("no pose puts half of the cells on tissue")
    colours = raster.smoothed(sizes.fine)
    certificate = evidence(squares, held, colours, found[0], found[1] if len(found) > 1 else None, seed)
    before = _as_it_is(squares, held, colours, found, 2 * sizes.coarse, seed)
    landscape = [Candidate(to_pixels(one.pose, slide.microns_per_pixel), one.score) for one in found]
    if certificate.verdict == CANNOT_TELL:
        return Registered(landscape[0].pose, certificate, "expression", False, None, landscape, before)
    start = refine(squares, colours, found[0].pose, scales, sizes.fine / 4, 0.2).pose
    cells = bool(np.isnan(sizes.pitch))
    done = by_nuclei(slide, start, n_windows, seed, certificate, landscape) if cells else None
    if done is None:
        certificate = replace(certificate, reason=certificate.reason + NO_NUCLEI * cells)
        done = _by_expression(slide, squares, raster, start, sizes, scales, seed, certificate, landscape)
    return replace(done, before=before)


def _as_it_is(
    squares: Squares, held: NDArray[np.bool_], colours: ColourMap, found: list[Candidate], apart: float, seed: int
) -> Certificate:
    """Evidence for the alignment that the cells came with, against the best pose more than ``apart`` µm from it."""
    here = Candidate(np.eye(3), explain(squares.take(~held), colours, np.eye(3)).score)
    far = next((one for one in found if displacement(one.pose, here.pose, squares.xy) > apart), None)
    return evidence(squares, held, colours, here, far, seed)


def _refused(reason: str) -> Registered:
    return Registered(None, refusal(reason), "expression", False, None, [])


def candidates(
    squares: Squares, raster: ColourRaster, sizes: SquareSizes, scales: tuple[float, float]
) -> list[Candidate]:
    """Distinct poses, best first: searched on coarse squares, refined on them, then on fine squares."""
    coarse = raster.smoothed(sizes.coarse)
    large = squares.smoothed(sizes.coarse)
    found = search(squares, coarse, scales, N_REFINED)
    found = [refine(large, coarse, one.pose, scales, sizes.coarse / 4, sizes.coarse / 40) for one in found]
    apart = 2 * sizes.coarse
    found = distinct(found, squares.xy, apart, N_FINALISTS)
    fine = raster.smoothed(sizes.fine)
    found = [refine(squares, fine, one.pose, scales, sizes.fine / 2, sizes.fine / 100) for one in found]
    return distinct(found, squares.xy, apart, N_FINALISTS)


def by_nuclei(
    slide: Slide,
    pose: NDArray[np.float64],
    n_windows: int,
    seed: int,
    certificate: Certificate,
    landscape: list[Candidate],
) -> Registered | None:
    """Put cells on their nuclei, from wide to narrow shifts; ``None`` if haematoxylin does not peak at the cells."""
    wide = window_curves(slide, pose, 24.0, 4.0, None, n_windows // 2, seed)
    if not len(wide):
        return None
    start = pose.copy()
    start[:2, 2] += wide.common_shift()
    pose = wide.best_pose(start, 4, 3.0)
    curves = window_curves(slide, pose, 12.0, 1.5, None, n_windows, seed + 1)
    if len(curves) < 4:
        return None
    far = curves.curves.shape[1] // 2
    nuclei = peak_of(curves.curves.sum(axis=0), np.arange(-far, far + 1) * curves.pitch, 0.0)[0]
    if nuclei < SIGNIFICANT:
        return None
    affine = prefers_affine(curves, pose, seed)
    n_parameters = 6 if affine else 4
    pose = curves.best_pose(pose, n_parameters, 1.0)
    # Two standard deviations, and what half a pixel may hide.
    error = 2 * curves.split_error(pose, n_parameters, seed) + curves.pitch / 2
    residuals = residuals_of_windows(window_curves(slide, pose, 12.0, 1.5, None, n_windows, seed + 2))
    reason = f"registered to ± {error:.1f} µm: {certificate.reason}, and haematoxylin peaks at the cells (score {nuclei:.0f})"
    matrix = to_pixels(pose, slide.microns_per_pixel)
    certificate = replace(certificate, error=error, nuclei=nuclei, reason=reason)
    return Registered(matrix, certificate, "nuclei", affine, residuals, landscape)


def _by_expression(
    slide: Slide,
    squares: Squares,
    raster: ColourRaster,
    pose: NDArray[np.float64],
    sizes: SquareSizes,
    scales: tuple[float, float],
    seed: int,
    certificate: Certificate,
    landscape: list[Candidate],
) -> Registered:
    """Refine the pose of bins on the finest squares, and that of spots and of cells without visible nuclei as it is."""
    if sizes.pitch <= FINE_PITCH and sizes.fine > FINEST:
        squares = expression_squares(slide, FINEST)
        pose = refine(squares, raster.smoothed(FINEST), pose, scales, FINEST / 4, 0.2).pose
    colours = raster.smoothed(squares.side)
    blocks = blocks_of(squares.xy, BLOCK * sizes.coarse)
    halves = halves_error(squares, blocks, colours, pose, scales, seed)
    curvature = curvature_error(squares, colours, pose, len(squares))
    error = 2 * max(halves, curvature) + BIAS * squares.side
    residuals = residuals_of_blocks(squares, blocks, colours, pose)
    if not error < sizes.coarse / 2:
        certificate = replace(
            certificate, verdict=CANNOT_TELL, error=error, reason="halves of the section do not agree on a pose"
        )
    else:
        reason = f"registered to ± {error:.0f} µm: {certificate.reason}"
        certificate = replace(certificate, error=error, reason=reason)
    return Registered(to_pixels(pose, slide.microns_per_pixel), certificate, "expression", False, residuals, landscape)
