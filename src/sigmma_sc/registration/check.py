"""Are the cells on their nuclei? Haematoxylin at the centroids, against the same centroids shifted: cheap, without a search.

Bins fill the plane, so their positions alone do not show registration. Bins over nuclei hold more RNA than bins beside
them, so counts and haematoxylin correlate if image and bins are registered. Spots much wider than a cell can only be
checked for being on tissue.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import RegistrationWarning, SetupError
from sigmma_sc.registration.haematoxylin import Match, measure_shift
from sigmma_sc.registration.record import confirmed
from sigmma_sc.tissue.setup import slides_of, totals_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from sigmma_sc.registration.register import Registered
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.setup import Tissue

    Totals = Callable[[NDArray[np.int64]], NDArray[np.float64]]

REGISTERED = "registered"
SHIFTED = "shifted"
MISREGISTERED = "misregistered"
CANNOT_TELL = "cannot tell"

TOLERANCE = 6.0
"""Largest distance of a peak from zero, µm, that counts as zero: about a nucleus."""

SIGNIFICANT = 7.0
"""Least height of a peak in standard deviations of the far shifts; misregistered real slides stay below 6."""

MIN_ON_IMAGE = 0.9
"""With a smaller share of the cells under the image, the advice names it: such an image may show a part of the section."""

MIN_ON_TISSUE = 0.5
"""Least share of cells on tissue; with less, and without a peak, the slide is misregistered."""

HARDLY_ANY = 0.01
"""Share of cells under the image below which, if they are few too, no image of a part of the section is believed."""

MOST = 0.85
GAIN = 0.1
"""Least share on tissue, and least gain of it, for another orientation to be better if there is no peak."""

MIN_AGREEMENT = 0.75
"""Least share of the windows with their peak at the common shift; with less, there is no common shift."""

MIN_CELLS = 50
"""Least number of cells under the image for which a peak, or the lack of one, means anything."""

FINE_PITCH = 20.0
"""Largest pitch of bins, µm, that can show a shift of the size of a cell."""

FIX = (
    "Find the image's alignment with sg.pp.register(sdata), or set it with spatialdata.transformations.set_transformation "
    "(Xenium: the *imagealignment.csv beside the H&E), and check again."
)


@dataclass(frozen=True)
class Registration:
    """What :func:`registration` found."""

    verdict: str  # "registered", "shifted", "misregistered" or "cannot tell"
    advice: str  # the verdict in words, with what to do
    match: Match  # the measurements behind it
    decided: bool  # whether haematoxylin has a peak, here or in another orientation, so that no search is needed
    found: Registered | None = None  # what a search by expression found, where there was one
    distance: float = float("nan")  # root mean square distance of the cells from that pose, µm


def registration(slide: Slide, totals: Totals | None = None, n_windows: int = 64, seed: int = 0) -> Registration:
    """Check one slide on windows of 200 µm around random cells, so that the cost does not grow with the slide.

    ``totals`` gives total counts by ascending positions of cells; it is used only for bins on a lattice.
    """
    pitch = lattice_pitch(slide.xy) * slide.microns_per_pixel
    weigh = totals if np.isfinite(pitch) else None
    coarse = 10.0 if np.isfinite(pitch) and pitch > FINE_PITCH else 1.0

    def measure(xy: NDArray[np.float64]) -> Match:
        return measure_shift(slide, xy, weigh, n_windows, seed, coarse)

    found = measure(slide.xy)
    blind = coarse > 1 or (np.isfinite(pitch) and totals is None)
    if blind:
        found = found.without_peak()
    decided = True
    if _has_peak(found):
        verdict, advice = _by_peak(found)
    elif better := _better_orientation(slide, found, measure, blind):
        verdict, advice = MISREGISTERED, f"image and cells are not registered; they fit better if {better}. {FIX}"
        decided = not blind
    else:
        verdict, advice = _without_peak(found, np.isfinite(pitch), blind)
        decided = False
    return Registration(verdict, f"{advice}{share_under(found)}", found, decided)


def _has_peak(found: Match) -> bool:
    return found.n_cells >= MIN_CELLS and found.best_score >= SIGNIFICANT


def share_under(found: Match) -> str:
    """Words on the share of cells under the image, where it is small."""
    if found.on_image >= MIN_ON_IMAGE:
        return ""
    return (
        f" Only {found.on_image:.0%} of the cells are under the image: it shows a part of the section, or its alignment is to be "
        "found with sg.pp.register(sdata)."
    )


def warn_unregistered(slide: Slide) -> None:
    """Warn if the cells of a slide are not on their nuclei, or not under the image and nothing says that this is right.

    Where nuclei do not decide, the image may lie as :func:`sigmma_sc.pp.register` certified it.
    """
    if slide.region is None:
        return
    report = registration(slide, totals_of(slide))
    if not report.decided and confirmed(slide):
        return
    unsure = report.verdict == CANNOT_TELL and report.match.on_image < MIN_ON_IMAGE
    if unsure or report.verdict in (MISREGISTERED, SHIFTED):
        warnings.warn(f"Slide {slide.name!r}: {report.advice}", RegistrationWarning, stacklevel=3)


def checked_slides(tissue: Tissue, seed: int = 0, only: str | None = None) -> Iterator[tuple[Slide, Registration]]:
    """Each slide of an object, or of objects by name, with its report; the slide named ``only`` if one is given."""
    slides = slides_of(tissue)
    if any(slide.region is None for slide in slides):
        raise SetupError("The object was set up with table_key=None, so there are no cells to check.")
    for slide in slides:
        if only in (None, slide.name):
            yield slide, registration(slide, totals_of(slide), seed=seed)


def lattice_pitch(xy: NDArray[np.float64]) -> float:
    """Distance of neighbours on the lattice of bins or spots, in units of ``xy``; NaN for cells.

    Nearest-neighbour distances are almost equal on a lattice, and never among cells.
    """
    from scipy.spatial import cKDTree

    if len(xy) < 3:
        return float("nan")
    some = np.random.default_rng(0).choice(len(xy), min(2000, len(xy)), replace=False)
    distance = cKDTree(xy).query(xy[some], k=2)[0][:, 1]
    low, middle, high = np.quantile(distance, [0.1, 0.5, 0.9])
    return float(middle) if high - low < 0.3 * middle else float("nan")


def _by_peak(found: Match) -> tuple[str, str]:
    x, y = found.best_shift
    if found.agreement < MIN_AGREEMENT:
        return MISREGISTERED, (
            f"image and cells fit at one place and not at another: only {found.agreement:.0%} of the places with a peak "
            f"have it at ({x:+.0f}, {y:+.0f}) µm. The pixel size or the rotation of the alignment is wrong. {FIX}"
        )
    if np.hypot(x, y) <= TOLERANCE:
        return REGISTERED, f"image and cells are registered: haematoxylin peaks at the cells (score {found.score:.1f})."
    if found.score >= max(SIGNIFICANT, found.best_score / 2):
        return REGISTERED, (
            f"image and cells are registered: haematoxylin peaks about the cells (score {found.score:.1f}), best at "
            f"({x:+.0f}, {y:+.0f}) µm."
        )
    return SHIFTED, (
        f"image and cells are shifted: haematoxylin peaks when the cells move by ({x:+.0f}, {y:+.0f}) µm along the image's x "
        f"and y (score {found.best_score:.1f}, {found.score:.1f} without). {FIX}"
    )


def _without_peak(found: Match, lattice: bool, blind: bool) -> tuple[str, str]:
    if found.n_cells < MIN_CELLS and found.on_image < HARDLY_ANY:
        return MISREGISTERED, f"hardly any cell is under the image: they are not registered. {FIX}"
    on_tissue = f"{found.on_tissue:.0%} of them are on tissue; look at sg.pl.registration(sdata)."
    if not lattice and found.n_cells < MIN_CELLS:
        return CANNOT_TELL, f"cannot tell: {found.n_cells} cells under the image are too few. {on_tissue}"
    if blind:
        return CANNOT_TELL, f"cannot tell: spots this wide, or bins without counts, do not show nuclei. {on_tissue}"
    if lattice:
        return CANNOT_TELL, f"cannot tell: counts and haematoxylin of bins do not correlate at any shift. {on_tissue}"
    if found.on_tissue < MIN_ON_TISSUE:
        return MISREGISTERED, f"only {found.on_tissue:.0%} of the cells are on tissue: they are not registered. {FIX}"
    return MISREGISTERED, (
        f"haematoxylin does not peak at the cells (score {found.score:.1f}, at least {SIGNIFICANT:.0f} expected): image and "
        f"cells are probably not registered. {FIX}"
    )


def _better_orientation(slide: Slide, found: Match, measure: Callable[[NDArray], Match], blind: bool) -> str | None:
    """Description of the mirroring or turn of the image that fits best, if one fits."""
    least = max(MOST, found.on_tissue + GAIN) if blind else SIGNIFICANT
    if blind and least > 1:
        return None
    better = None
    for words, xy in _orientations(slide):
        if ((xy >= 0) & (xy < (slide.width, slide.height))).all(axis=1).mean() < MIN_ON_IMAGE:
            continue
        other = measure(xy)
        fit = other.on_tissue
        if not blind:
            fit = other.best_score if _has_peak(other) else 0.0
        if fit >= least:
            least = fit
            better = words
    return better


def _orientations(slide: Slide) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """The seven ways to mirror or turn the cells in the image, in words and as positions."""
    for swap, *flips in list(product((False, True), repeat=3))[1:]:
        axes = ["y", "x"] if swap else ["x", "y"]
        xy = slide.xy[:, ::-1] if swap else slide.xy
        size = np.array([slide.width, slide.height], dtype=float)
        terms = [f"{n:.0f} − {axis}" if flip else axis for n, axis, flip in zip(size, axes, flips, strict=True)]
        yield f"cells at pixel (x, y) were at ({terms[0]}, {terms[1]})", np.where(flips, size - xy, xy)
