"""Do the cells lie on their nuclei? Haematoxylin at the centroids, against the same centroids shifted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.tissue.frame import image_levels
from sigmma_sc.tissue.pixels import read_window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide

REGISTERED, SHIFTED, MISREGISTERED, CANNOT_TELL = "registered", "shifted", "misregistered", "cannot tell"

REACH, STEP = 40.0, 2.0
"""Largest shift and step of the curve, µm."""

TOLERANCE = 6.0
"""A peak within this many µm of zero counts as zero: about a nucleus."""

SIGNIFICANT = 5.0
"""Peak height in standard deviations of the far shifts that counts as a peak."""

MIN_ON_IMAGE = 0.9


@dataclass(frozen=True)
class Registration:
    """What :func:`registration` found.

    Attributes
    ----------
    verdict
        ``"registered"``, ``"shifted"``, ``"misregistered"`` or ``"cannot tell"``.
    advice
        The verdict in words, with what to do.
    on_image
        Share of cells under the image.
    score
        Haematoxylin at zero shift, in standard deviations of the curve at far shifts.
    best_shift
        Shift (x, y) of the cells in µm at which the curve peaks.
    best_score
        Height of that peak, on the scale of ``score``.
    shifts
        Shifts of the curve along x and y, µm, ``(n,)``.
    curve
        Mean haematoxylin at the shifted centroids, ``(n, n)`` as (y, x).
    """

    verdict: str
    advice: str
    on_image: float
    score: float
    best_shift: tuple[float, float]
    best_score: float
    shifts: NDArray[np.float64]
    curve: NDArray[np.float64]


def registration(slide: Slide, n_windows: int = 40, seed: int = 0) -> Registration:
    """Check one slide on windows of 200 µm around random cells, so that the cost does not grow with the slide.

    Parameters
    ----------
    slide
        Slide with cells.
    n_windows
        Number of windows read.
    seed
        Of the choice of windows.
    """
    on_image = float(slide.under_image.mean())
    shifts = np.arange(-REACH, REACH + STEP / 2, STEP)
    curve = _shift_curve(slide, shifts, n_windows, seed)
    zero = len(shifts) // 2
    smooth = _box3(curve)
    far = np.maximum(*np.abs(np.meshgrid(shifts, shifts))) > REACH / 2
    spread = smooth[far].std() + 1e-12
    z = (smooth - smooth[far].mean()) / spread
    by, bx = np.unravel_index(np.argmax(z), z.shape)
    best = (float(shifts[bx]), float(shifts[by]))
    score, best_score = float(z[zero, zero]), float(z[by, bx])
    verdict = _verdict(slide, on_image, score, best, best_score)
    return Registration(
        verdict, _advice(verdict, on_image, score, best, best_score), on_image, score, best, best_score, shifts, curve
    )


def _verdict(slide: Slide, on_image: float, score: float, best: tuple[float, float], best_score: float) -> str:
    if on_image < MIN_ON_IMAGE:
        return MISREGISTERED
    if _on_lattice(slide):
        return CANNOT_TELL
    if score >= SIGNIFICANT and np.hypot(*best) <= TOLERANCE:
        return REGISTERED
    if best_score >= SIGNIFICANT and np.hypot(*best) > TOLERANCE:
        return SHIFTED
    return MISREGISTERED


def _advice(verdict: str, on_image: float, score: float, best: tuple[float, float], best_score: float) -> str:
    if verdict == REGISTERED:
        return f"image and cells are registered: haematoxylin peaks at the centroids (score {score:.1f})."
    if verdict == CANNOT_TELL:
        return "cannot tell: the cells fill a regular lattice of bins or spots, so that their positions say nothing of nuclei."
    mend = (
        "Set the image's alignment with spatialdata.transformations.set_transformation (Xenium: the *imagealignment.csv "
        "beside the H&E), and check again."
    )
    if verdict == SHIFTED:
        return (
            f"image and cells are shifted: haematoxylin peaks when the cells move by ({best[0]:+.0f}, {best[1]:+.0f}) µm along "
            f"the image's x and y (score {best_score:.1f}, {score:.1f} without). {mend}"
        )
    if on_image < MIN_ON_IMAGE:
        return f"only {on_image:.0%} of the cells lie under the image: image and cells are not registered. {mend}"
    return (
        f"haematoxylin does not peak at the centroids (score {score:.1f}, at least {SIGNIFICANT:.0f} expected): image and cells "
        f"are probably not registered. {mend}"
    )


def _on_lattice(slide: Slide) -> bool:
    """Whether nearest-neighbour distances are nearly all alike, as those of bins and spots are and those of cells never."""
    from scipy.spatial import cKDTree

    if len(slide.xy) < 3:
        return True
    some = np.random.default_rng(0).choice(len(slide.xy), min(2000, len(slide.xy)), replace=False)
    distance = cKDTree(slide.xy).query(slide.xy[some], k=2)[0][:, 1]
    low, middle, high = np.quantile(distance, [0.1, 0.5, 0.9])
    return bool(high - low < 0.3 * middle)


def _shift_curve(slide: Slide, shifts: NDArray, n_windows: int, seed: int) -> NDArray[np.float64]:
    levels = image_levels(slide.sdata, slide.image_key)
    scales = np.array([slide.width / level.sizes["x"] for level in levels])
    number = max(0, int(np.searchsorted(scales * slide.microns_per_pixel, 1.0, side="right")) - 1)
    step = scales[number] * slide.microns_per_pixel  # µm per pixel of the level read
    xy = slide.xy[slide.under_image] / scales[number]
    half = 100.0 / step
    rng = np.random.default_rng(seed)
    total, weight = np.zeros((len(shifts), len(shifts))), 0
    used = np.zeros(len(xy), bool)
    for centre in xy[rng.permutation(len(xy))[:n_windows]]:
        inside = (np.abs(xy - centre) < half).all(axis=1) & ~used
        used |= inside
        if not inside.any():
            continue
        reach = int(np.ceil(half + REACH / step)) + 1
        x0, y0 = np.floor(centre).astype(int) - reach
        stain = haematoxylin(read_window(levels[number], x0, y0, x0 + 2 * reach + 1, y0 + 2 * reach + 1))
        points = xy[inside] - (x0, y0)
        at_x = np.floor(points[:, 0, None] + shifts / step).astype(int).clip(0, 2 * reach)
        at_y = np.floor(points[:, 1, None] + shifts / step).astype(int).clip(0, 2 * reach)
        total += stain[at_y[:, :, None], at_x[:, None, :]].sum(axis=0)
        weight += len(points)
    return total / max(weight, 1)


def haematoxylin(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Haematoxylin of RGB pixels ``(h, w, 3)`` by colour deconvolution (Ruifrok & Johnston 2001, as scikit-image does it)."""
    from skimage.color import rgb2hed

    return rgb2hed(pixels)[..., 0]


def _box3(curve: NDArray) -> NDArray:
    from scipy.ndimage import uniform_filter

    return uniform_filter(curve, 3, mode="nearest")
