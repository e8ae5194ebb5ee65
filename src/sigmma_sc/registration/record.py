"""What an object keeps of a registration: the pose, those elsewhere and the residuals, in plain JSON types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc.registration.pose import displacement, linear_part

if TYPE_CHECKING:
    from sigmma_sc.registration.coarse import Candidate
    from sigmma_sc.registration.register import Registered
    from sigmma_sc.tissue.frame import Slide


def record_of(slide: Slide, found: Registered) -> dict[str, Any]:
    """The setup and the evidence of a registration, for :func:`sigmma_sc.pl.register`.

    ``matrix`` ``(3, 3)`` takes the cells to where they belong, both px of level 0. ``poses`` are the distinct ones of the
    search, best first. ``residuals`` ``(n, 4)`` are x and y of a window on the image and its shift along x and y, µm.
    """
    residuals = found.residuals
    moves = np.empty((0, 4)) if residuals is None else np.column_stack([residuals.xy, residuals.shift])
    return {
        "setup": slide.setup.to_json(),
        "matrix": None if found.matrix is None else found.matrix.tolist(),
        "poses": [_pose(slide, one, found.landscape[0]) for one in found.landscape],
        "residuals": np.round(moves, 2).tolist(),
    }


def _pose(slide: Slide, one: Candidate, best: Candidate) -> dict[str, Any]:
    """Score of a pose of the search, its distance from the best in µm, and how it turns the cells."""
    angle, scale, mirrored = linear_part(one.pose)
    return {
        "score": round(float(one.score), 4),
        "distance": round(displacement(one.pose, best.pose, slide.xy) * slide.microns_per_pixel, 1),
        "turn": round(float(np.rad2deg(angle)), 1),
        "scale": round(scale, 4),
        "mirrored": mirrored,
    }
