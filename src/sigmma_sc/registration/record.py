"""What an object keeps of a registration: the pose, those elsewhere and the residuals, in plain JSON types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc import _keys
from sigmma_sc.registration.certificate import REGISTERED
from sigmma_sc.registration.pose import displacement, linear_part
from sigmma_sc.tissue.frame import affine_to

if TYPE_CHECKING:
    from sigmma_sc.registration.coarse import Candidate
    from sigmma_sc.registration.register import Registered
    from sigmma_sc.tissue.frame import Slide


def record_of(slide: Slide, found: Registered) -> dict[str, Any]:
    """The setup and the evidence of a registration, for :func:`sigmma_sc.pl.register`.

    ``matrix`` ``(3, 3)`` takes the cells to where they belong, both px of level 0. ``poses`` are the distinct ones of the
    search, best first. ``alignment`` of the image is added once it is placed. ``residuals`` ``(n, 4)`` are x and y of a window on the image and its shift along x and y, µm.
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


def alignment(slide: Slide) -> list[list[float]]:
    """The affine ``(3, 3)`` of a slide's image to its coordinate system, as it is now."""
    return affine_to(slide.sdata.images[slide.image_key], slide.coordinate_system, "image").tolist()


def confirmed(slide: Slide) -> bool:
    """Whether the image lies where a certified registration put it, or found it."""
    told = slide.sdata.attrs.get(_keys.REGISTRATION, {}).get(slide.region, {})
    return bool(
        told.get("verdict") == REGISTERED
        and "alignment" in told
        and np.allclose(told["alignment"], alignment(slide), rtol=1e-9)
    )
