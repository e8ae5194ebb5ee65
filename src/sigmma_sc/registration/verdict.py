"""The verdict on an alignment by expression and colour, where nuclei do not decide: spots, bins, cells without a peak."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import SetupError
from sigmma_sc.registration.certificate import LEAST_R2
from sigmma_sc.registration.check import (
    CANNOT_TELL,
    FINE_PITCH,
    FIX,
    MISREGISTERED,
    REGISTERED,
    TOLERANCE,
    Registration,
    lattice_pitch,
    share_under,
)
from sigmma_sc.registration.place import moved
from sigmma_sc.registration.size import find_at_likely_sizes

if TYPE_CHECKING:
    from sigmma_sc.registration.certificate import Certificate
    from sigmma_sc.registration.register import Registered
    from sigmma_sc.tissue.frame import Slide

NEAR = 50.0
"""Largest distance in µm of the best pose of a search from that of the cells for the two to agree, if there are no spots."""


def by_expression(slide: Slide, quick: Registration, seed: int) -> Registration:
    """The verdict with the search of a pose behind it, unless nuclei decided or there are no raw counts."""
    if quick.decided or slide.table.n_vars == 0:
        return quick
    try:
        sized, found = find_at_likely_sizes(slide, seed)
    except SetupError as error:
        return replace(quick, advice=f"{quick.advice} Expression was not used: {error}")
    return judged(quick, found, moved(sized, found), lattice_pitch(slide.xy) * slide.microns_per_pixel)


def judged(quick: Registration, found: Registered, distance: float, pitch: float) -> Registration:
    """The verdict on cells that the best pose of a search would move by ``distance`` µm.

    ``pitch`` is the distance of bins or spots in µm, NaN for cells.
    """
    best = found.certificate
    before = found.before
    share = share_under(quick.match)
    verdict = quick.verdict
    advice = f"{quick.advice} Expression does not decide: {best.reason}."
    if found.certified and distance <= best.error + TOLERANCE:
        verdict = REGISTERED
        advice = f"image and cells are registered, within {distance:.0f} µm of the best pose: {best.reason}.{share}"
    elif found.certified:
        verdict = MISREGISTERED
        advice = f"the cells belong elsewhere on the image, {distance:.0f} µm away: {best.reason}.{share} {FIX}"
    elif before is not None and _agrees(before, distance, pitch):
        verdict = REGISTERED if pitch > FINE_PITCH else CANNOT_TELL
        precise = (
            "to within half the distance of spots" if pitch > FINE_PITCH else "but nuclei do not show how precisely"
        )
        advice = (
            f"{verdict}: of all poses searched, the one that explains most colour is {distance:.0f} µm from that of the cells, "
            f"{precise}.{share}"
        )
    elif before is not None and before.r2 <= before.r2_shuffled and not np.isnan(best.error):
        # The pose found holds in squares held out and has no rival, but is not precise.
        verdict = MISREGISTERED
        advice = (
            "expression explains the colour no better than shuffled expression does, and much better at a pose "
            f"{distance:.0f} µm away.{share} {FIX}"
        )
    return replace(quick, verdict=verdict, advice=advice, found=found, distance=distance)


def _agrees(before: Certificate, distance: float, pitch: float) -> bool:
    """Whether a search over all poses, which knows nothing of the alignment, ends where the cells are.

    Small sections cannot be certified, because some of their squares are held out. The best poses of twenty sections of wide
    spots with the spots of others were 410 µm and more from where these were.
    """
    near = pitch / 2 if pitch > FINE_PITCH else NEAR
    return distance <= near and before.r2 >= max(LEAST_R2, before.r2_shuffled)
