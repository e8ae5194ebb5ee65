"""A pose from landmarks: places on the image, and the same places among the cells, as a user marked them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc._checks import require_key
from sigmma_sc.errors import SetupError
from sigmma_sc.registration.certificate import REGISTERED, refusal
from sigmma_sc.registration.check import lattice_pitch
from sigmma_sc.registration.pose import scale_of
from sigmma_sc.registration.register import N_WINDOWS, NO_NUCLEI, Registered, by_nuclei
from sigmma_sc.registration.residuals import Residuals
from sigmma_sc.tissue.frame import affine_to, apply_affine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide

LEAST_PAIRS = 3
"""Two pairs fit a similarity and its mirror image alike."""

LEAST_WIDTH = 0.05
"""Least spread of landmarks across the line through them, as a share of that along it: on a line, a mirror fits alike."""

MOST_RESIDUAL = 0.05
LEAST_ALLOWED = 20.0
"""Largest residual of a landmark, as a share of their mean distance from their middle, and µm that are always allowed."""


@dataclass(frozen=True)
class Landmarks:
    """Pairs of places that belong together, both in px of level 0 of the image, the second under its alignment as it is."""

    image: NDArray[np.float64]  # (n, 2)
    cells: NDArray[np.float64]  # (n, 2)

    def __len__(self) -> int:
        return len(self.image)

    @property
    def pose(self) -> NDArray[np.float64]:
        """Similarity ``(3, 3)``, mirrored or not, that takes the cells to the image with the least squares."""
        fits = []
        for mirror in (1.0, -1.0):
            # As complex numbers, a similarity is multiplication and addition; a mirror changes the sign of y before.
            x, y = self.cells.T
            places = np.column_stack([x + 1j * mirror * y, np.ones(len(self))])
            (turn, shift), *_ = np.linalg.lstsq(places, self.image @ [1, 1j], rcond=None)
            a, b = turn.real, turn.imag
            fits.append(np.array([[a, -b * mirror, shift.real], [b, a * mirror, shift.imag], [0, 0, 1]]))
        return min(fits, key=lambda fit: float((self.off(fit) ** 2).sum()))

    def off(self, pose: NDArray[np.float64]) -> NDArray[np.float64]:
        """From where a pose takes the cells' landmarks to where they are on the image, px, ``(n, 2)``."""
        return self.image - apply_affine(pose, self.cells)

    def residuals(self, pose: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distances of the landmarks under a pose, px, ``(n,)``."""
        return np.hypot(*self.off(pose).T)

    def fit(self, least_allowed: float) -> bool:
        """Whether all landmarks are near where the pose takes them; ``least_allowed`` px are near in any case."""
        radius = np.hypot(*(self.image - self.image.mean(axis=0)).T).mean()
        return bool(self.residuals(self.pose).max() <= max(MOST_RESIDUAL * radius, least_allowed))

    def swapped(self, one: int, other: int) -> Landmarks:
        """The same with the places of two landmarks on the image exchanged."""
        image = self.image.copy()
        image[[one, other]] = image[[other, one]]
        return Landmarks(image, self.cells)

    def without(self, one: int) -> Landmarks:
        """The same without a pair."""
        return Landmarks(np.delete(self.image, one, axis=0), np.delete(self.cells, one, axis=0))


def pose_of_landmarks(slide: Slide, landmarks: Landmarks, seed: int) -> Registered:
    """Pose of a slide's cells by landmarks, refined by nuclei where haematoxylin peaks at the cells."""
    pose = landmarks.pose
    microns = _microns(slide, pose)
    told = ", ".join(f"{value:.1f}" for value in landmarks.residuals(pose) * microns)
    reason = f"{len(landmarks)} landmarks fit with residuals of {told} µm"
    error = _error(landmarks, slide) * microns
    certificate = replace(refusal(f"registered to ± {error:.1f} µm: {reason}"), verdict=REGISTERED, error=error)
    if np.isnan(lattice_pitch(slide.xy)):
        moved = replace(slide, xy=apply_affine(pose, slide.xy), microns_per_pixel=microns)
        refined = by_nuclei(moved, np.eye(3), N_WINDOWS, seed, replace(certificate, reason=reason), [])
        if refined is None or refined.matrix is None:
            certificate = replace(certificate, reason=certificate.reason + NO_NUCLEI)
        else:
            pose = refined.matrix @ pose
            microns = _microns(slide, pose)
            certificate = refined.certificate
    residuals = Residuals(apply_affine(pose, landmarks.cells) * microns, landmarks.off(pose) * microns)
    return Registered(pose, certificate, "landmarks", False, residuals, [])


def _microns(slide: Slide, pose: NDArray[np.float64]) -> float:
    """Size of a pixel in µm under a pose: as stated, or else it follows from the alignment and changes with it."""
    stated = slide.setup.microns_per_pixel is not None
    return slide.microns_per_pixel if stated else slide.microns_per_pixel / scale_of(pose)


def read_landmarks(slide: Slide, given: Any) -> Landmarks:  # noqa: ANN401 - what a user passes
    """Landmarks from pairs ``(n, 2, 2)``, two arrays ``(n, 2)`` or the names of two elements of points or circles.

    The first of a pair is on the image, the second among the cells. Arrays hold px of level 0 of the image, and units of
    the element that the table annotates. Elements bring their own transformations.

    Raises
    ------
    SetupError
        The landmarks are malformed, too few, on a line, or do not fit together.
    MissingKeyError
        There is no element of that name, or it has no transformation to the system of the slide.
    """
    names = isinstance(given, (list, tuple)) and len(given) == 2 and all(isinstance(one, str) for one in given)
    if names:
        image, cells = (_element_points(slide, name) for name in given)
    else:
        image, places = _arrays(given)
        cells = apply_affine(_region_to_pixels(slide), places)
    if len(image) != len(cells):
        raise SetupError(
            f"landmarks hold {len(image)} places on the image and {len(cells)} among the cells. Mark each place in both, in the "
            "same order."
        )
    if len(image) < LEAST_PAIRS:
        raise SetupError(f"landmarks hold {len(image)} pairs. At least {LEAST_PAIRS} are needed, and more are better.")
    for points, where in ((image, "on the image"), (cells, "among the cells")):
        wrong = np.flatnonzero(~np.isfinite(points).all(axis=1))
        if len(wrong):
            raise SetupError(
                f"Landmark {wrong[0]} {where} is {points[wrong[0]].tolist()}, which is no place. Remove the pair."
            )
        along, across = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
        if across <= LEAST_WIDTH * along:
            raise SetupError(
                f"The landmarks {where} are on a line, where a mirror image fits alike. Add one beside it."
            )
    landmarks = Landmarks(image, cells)
    _require_fit(landmarks, slide)
    return landmarks


def _arrays(given: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # noqa: ANN401 - what a user passes
    wanted = "Pass pairs (n, 2, 2) of (x, y) on the image and among the cells, two arrays (n, 2), or the names of two elements."
    try:
        if isinstance(given, (list, tuple)) and len(given) == 2:
            image, cells = (np.asarray(one, dtype=float) for one in given)
        else:
            image, cells = np.moveaxis(np.asarray(given, dtype=float), 1, 0)
    except (TypeError, ValueError) as error:
        raise SetupError(f"landmarks={given!r} are no pairs of places: {error}. {wanted}") from error
    for points in (image, cells):
        if points.ndim != 2 or points.shape[1] != 2:
            raise SetupError(f"landmarks hold an array of shape {points.shape}. {wanted}")
    return image, cells


def _element_points(slide: Slide, name: str) -> NDArray[np.float64]:
    """Points of an element in px of the image, in the order of the element."""
    elements = {**slide.sdata.points, **slide.sdata.shapes}
    require_key(name, elements, "landmarks", "Save landmarks as an element of points or circles.")
    element = elements[name]
    if hasattr(element, "geometry"):
        centroids = element.geometry.centroid
        points = np.column_stack([centroids.x, centroids.y])
    else:
        points = element[["x", "y"]].compute().to_numpy()
    to_system = affine_to(element, slide.coordinate_system, f"element {name!r}")
    return apply_affine(_system_to_pixels(slide) @ to_system, points)


def _region_to_pixels(slide: Slide) -> NDArray[np.float64]:
    sdata = slide.sdata
    elements = {**sdata.shapes, **sdata.points, **sdata.labels}
    if slide.region not in elements:
        raise SetupError(
            f"Region {slide.region!r} is no element of the object, so the units of the landmarks among its cells are not known. "
            "Save the landmarks as two elements, and pass their names."
        )
    to_system = affine_to(elements[slide.region], slide.coordinate_system, f"region {slide.region!r}")
    return _system_to_pixels(slide) @ to_system


def _system_to_pixels(slide: Slide) -> NDArray[np.float64]:
    image = slide.sdata.images[slide.image_key]
    to_system = affine_to(image, slide.coordinate_system, f"image {slide.image_key!r}")
    return np.asarray(np.linalg.inv(to_system), dtype=float)


def _require_fit(landmarks: Landmarks, slide: Slide) -> None:
    """Raise :class:`SetupError` unless the landmarks fit together; the message names those that do not, if they are few."""
    least = LEAST_ALLOWED / slide.microns_per_pixel
    if landmarks.fit(least):
        return
    off = landmarks.residuals(landmarks.pose) * slide.microns_per_pixel
    said = f"The landmarks do not fit together: their residuals are {', '.join(f'{one:.0f}' for one in off)} µm."
    for one, other in combinations(range(len(landmarks)), 2):
        if len(landmarks) > LEAST_PAIRS and landmarks.swapped(one, other).fit(least):
            raise SetupError(
                f"{said} They would if landmarks {one} and {other} (from 0) were swapped. Check their order."
            )
    for one in range(len(landmarks)):
        if len(landmarks) > LEAST_PAIRS + 1 and landmarks.without(one).fit(least):
            raise SetupError(f"{said} They would without landmark {one} (from 0). Mark it again, or remove it.")
    raise SetupError(f"{said} Check that each pair is the same place, in the same order on image and cells, as (x, y).")


def _error(landmarks: Landmarks, slide: Slide) -> float:
    """Expected error of the pose over the cells in px, 95 % of the time below it, by propagation of the residuals."""
    n = len(landmarks)
    pose = landmarks.pose
    variance = (landmarks.off(pose) ** 2).sum() / (2 * n - 4)
    middle = landmarks.cells.mean(axis=0)
    about = ((landmarks.cells - middle) ** 2).sum()
    reach = ((slide.xy - middle) ** 2).sum(axis=1).mean()
    return float(2 * np.sqrt(2 * variance * (1 / n + reach / about)))
