"""Poses: affine matrices ``(3, 3)`` over (x, y, 1) that take cells to the image, both in µm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.tissue.frame import apply_affine

if TYPE_CHECKING:
    from numpy.typing import NDArray


def similarity(
    angle: float,
    scale: float,
    mirrored: bool,
    source: NDArray[np.float64] | tuple[float, float],
    target: NDArray[np.float64] | tuple[float, float],
) -> NDArray[np.float64]:
    """Pose ``(3, 3)`` that mirrors x if asked, turns by ``angle`` in radians, scales, and takes ``source`` to ``target``."""
    cosine = scale * np.cos(angle)
    sine = scale * np.sin(angle)
    matrix = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    if mirrored:
        matrix[:, 0] *= -1
    matrix[:2, 2] = np.asarray(target) - matrix[:2, :2] @ np.asarray(source)
    return matrix


def scale_of(pose: NDArray[np.float64]) -> float:
    """Side of the square that a pose makes of a unit square."""
    return float(np.sqrt(abs(np.linalg.det(pose[:2, :2]))))


def linear_part(pose: NDArray[np.float64]) -> tuple[float, float, bool]:
    """Angle in radians, scale, and whether mirrored, of the similarity nearest to a pose."""
    mirrored = bool(np.linalg.det(pose[:2, :2]) < 0)
    matrix = pose[:2, :2] * ([-1, 1] if mirrored else [1, 1])
    angle = np.arctan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1])
    return float(angle), scale_of(pose), mirrored


def nudged(pose: NDArray[np.float64], step: NDArray[np.float64], middle: NDArray[np.float64], radius: float) -> NDArray:
    """A pose after a small similarity or affine about the image of ``middle``, a point of the cells' frame.

    ``step`` holds µm: shift along x and y, then the displacement at ``radius`` by a turn and by a scale; of six, the last
    two are those by the two shears.
    """
    about = apply_affine(pose, middle[None])[0]
    turn, grow = step[2:4] / radius
    change = np.exp(grow) * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    if len(step) > 4:
        stretch, shear = step[4:] / radius
        change = change @ np.array([[1 + stretch, shear], [shear, 1 - stretch]])
    moved = np.eye(3)
    moved[:2, :2] = change
    moved[:2, 2] = about + step[:2] - change @ about
    return moved @ pose


def spread(xy: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Middle ``(2,)`` of points and their root mean square distance from it."""
    middle = xy.mean(axis=0)
    return middle, float(np.sqrt(((xy - middle) ** 2).sum(axis=1).mean()))


def displacement(one: NDArray[np.float64], other: NDArray[np.float64], xy: NDArray[np.float64]) -> float:
    """Root mean square distance in µm between where two poses take the points ``xy``."""
    apart = apply_affine(one, xy) - apply_affine(other, xy)
    return float(np.sqrt((apart**2).sum(axis=1).mean()))


def to_pixels(pose: NDArray[np.float64], microns_per_pixel: float) -> NDArray[np.float64]:
    """The same pose between positions in px."""
    matrix = pose.copy()
    matrix[:2, 2] /= microns_per_pixel
    return matrix
