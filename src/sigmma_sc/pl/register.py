"""What the registration of an image found: before and after, poses elsewhere, residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sigmma_sc import _keys
from sigmma_sc._checks import require_positive
from sigmma_sc.errors import MissingKeyError, SetupError
from sigmma_sc.pl._finish import finish
from sigmma_sc.registration.certificate import MOST_OF_FAR
from sigmma_sc.registration.windows import Window, small_picture
from sigmma_sc.tissue.frame import apply_affine
from sigmma_sc.tissue.setup import Setup, prefixed, resolve_slides

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.setup import Tissue

BEFORE = "#FFE100"
AFTER = "#00E5FF"

MOST_CELLS = 20_000
"""Largest number of cells drawn on the whole section."""


class _Places(NamedTuple):
    """Where the cells are on the image, px of level 0."""

    slide: Slide
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    record: dict[str, Any]


def register(
    sdata: Tissue,
    slide: str | None = None,
    window: float = 200.0,
    seed: int = 0,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Show what :func:`sigmma_sc.pp.register` found of a slide.

    The upper row holds the section before and after, and the poses of the search. The lower row holds one place of the
    image before and after, and the residuals. A pose that was not certified is shown as *not written*.

    Parameters
    ----------
    sdata
        Object, or objects by name, after :func:`sigmma_sc.pp.register`.
    slide
        Name of a row of what that function returned; by default the first slide.
    window
        Side in µm of the place that is shown closely.
    seed
        Seed of the choice of that place.
    ax
        Six axes to draw in.
    show
        Whether to show the figure; by default if it is not saved and ``ax`` is not given.
    save
        File to write the figure to.

    Returns
    -------
    The six axes, row by row.

    Raises
    ------
    MissingKeyError
        There is no such slide, or it was never registered.
    SetupError
        The number of axes is not six, or ``window`` is not positive.

    See Also
    --------
    sigmma_sc.pp.register : Find the pose.
    sigmma_sc.pl.registration : Cells on the image as it is now.

    Examples
    --------
    >>> tissue = sg.datasets.simulate_tissue(n_cells=3000)
    >>> found = sg.pp.register(tissue)
    >>> axes = sg.pl.register(tissue, show=False)
    >>> axes[0].get_title()
    'cell_circles: before'
    """
    import matplotlib.pyplot as plt

    require_positive(window, "window")
    if ax is not None and len(ax) != 6:
        raise SetupError(f"ax holds {len(ax)} axes. Pass six.")
    places = _places(sdata, slide)
    if ax is None:
        grid = plt.subplots(2, 3, figsize=(12.5, 8), layout="constrained")[1]
    axes: list[Axes] = list(grid.flat if ax is None else ax)
    _sections(axes[0], axes[1], places)
    _poses(axes[2], places.record)
    _closely(axes[3], axes[4], places, window, seed)
    _residuals(axes[5], places)
    finish(axes[0].figure.figure, show, save, own=ax is None)
    return axes


def _places(sdata: Tissue, name: str | None) -> _Places:
    """The slide with its cells before and after its registration."""
    known = []
    for prefix, one in prefixed(sdata):
        for region, record in one.attrs.get(_keys.REGISTRATION, {}).items():
            slide_name = prefix + region
            known.append(slide_name)
            if name not in (None, slide_name):
                continue
            slides = resolve_slides(one, Setup.from_json(record["setup"]), prefix, aligned=False)
            slide = next((s for s in slides if s.name == slide_name), None)
            if slide is not None:
                return _Places(slide, *_before_and_after(slide, record), record)
    missing = "has no registered slide" if name is None else f"has no registered slide {name!r}"
    raise MissingKeyError(f"The object {missing}. Run sg.pp.register first. Registered slides: {known}.")


def _before_and_after(slide: Slide, record: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cells on the image before and after; the object holds the latter if the pose was written."""
    if record["matrix"] is None:
        return slide.xy, slide.xy
    matrix = np.array(record["matrix"], dtype=float)
    if record["written"]:
        return apply_affine(np.linalg.inv(matrix), slide.xy), slide.xy
    return slide.xy, apply_affine(matrix, slide.xy)


def _title(places: _Places) -> str:
    record = places.record
    if record["matrix"] is None:
        return "no pose was found"
    if record["written"]:
        return f"after: registered to ± {record['error']:.1f} µm"
    if record["verdict"] == "registered":
        return f"registered to ± {record['error']:.1f} µm already"
    return "best pose found, not written"


def _sections(before: Axes, after: Axes, places: _Places) -> None:
    """The whole image under the cells."""
    slide = places.slide
    picture = small_picture(slide)
    size = np.array([slide.width, slide.height]) * slide.microns_per_pixel
    some = np.random.default_rng(0).permutation(len(slide.xy))[:MOST_CELLS]
    titles = (f"{slide.name}: before", _title(places))
    for ax, xy, colour, title in zip(
        (before, after), (places.before, places.after), (BEFORE, AFTER), titles, strict=True
    ):
        microns = xy[some] * slide.microns_per_pixel
        ax.imshow(picture, extent=(0, size[0], size[1], 0))
        size_of_dot = float(np.clip(1e4 / len(microns), 0.4, 20))
        ax.scatter(microns[:, 0], microns[:, 1], s=size_of_dot, c=colour, linewidths=0, rasterized=True)
        low = np.minimum(microns.min(axis=0), 0)
        high = np.maximum(microns.max(axis=0), size)
        ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), xlabel="µm", aspect="equal")
        ax.set_title(title, fontsize=10)


def _closely(before: Axes, after: Axes, places: _Places, window: float, seed: int) -> None:
    """One place of the image under the cells."""
    slide = places.slide
    on_image = ((places.after >= 0) & (places.after < (slide.width, slide.height))).all(axis=1)
    middle = np.array([slide.width, slide.height]) / 2
    if on_image.any():
        middle = np.random.default_rng(seed).choice(places.after[on_image])
    one = Window(slide, middle, window)
    pixels = one.pixels()
    for ax, xy, colour in zip((before, after), (places.before, places.after), (BEFORE, AFTER), strict=True):
        ax.imshow(pixels, extent=(0, one.extent, one.extent, 0))
        points = one.within(xy)
        ax.scatter(points[:, 0], points[:, 1], s=22, c=colour, edgecolors="black", linewidths=0.5)
        ax.set(xlim=(0, one.extent), ylim=(one.extent, 0), xticks=[], yticks=[], xlabel=f"{one.extent:.0f} µm")


def _poses(ax: Axes, record: dict[str, Any]) -> None:
    """Scores of the distinct poses of the search against their distance from the best."""
    ax.set_title("poses of the search", fontsize=10)
    ax.set(xlabel="distance from the best, µm", ylabel="score: −log(1 − R²) × share on tissue")
    poses = record["poses"]
    if not poses:
        ax.text(0.5, 0.5, "none", ha="center", va="center", transform=ax.transAxes)
        return
    ax.axhline(MOST_OF_FAR * poses[0]["score"], color="grey", lw=1, ls="--")
    ax.annotate(
        "most that a pose elsewhere may reach",
        (1, MOST_OF_FAR * poses[0]["score"]),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=8,
        color="grey",
    )
    furthest = max(one["distance"] for one in poses)
    for number, one in enumerate(poses):
        ax.plot(one["distance"], one["score"], "o", color="#332288" if number == 0 else "#CC6677")
        words = f"{one['turn']:.0f}°{', mirrored' if one['mirrored'] else ''}"
        # Neighbours in rank are often neighbours in the figure: above and below in turn, and to the inside.
        side = -1 if one["distance"] > furthest / 2 else 1
        ax.annotate(
            words,
            (one["distance"], one["score"]),
            xytext=(6 * side, -11 if number % 2 else 5),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            fontsize=8,
        )
    ax.set_ylim(min(0.0, poses[-1]["score"]), 1.12 * max(poses[0]["score"], 1e-6))
    ax.margins(x=0.1)


def _residuals(ax: Axes, places: _Places) -> None:
    """Local shifts that would improve the pose, as arrows on the section."""
    slide = places.slide
    residuals = np.array(places.record["residuals"], dtype=float).reshape(-1, 4)
    size = np.array([slide.width, slide.height]) * slide.microns_per_pixel
    ax.set(xlim=(0, size[0]), ylim=(size[1], 0), xlabel="µm", aspect="equal")
    if not len(residuals):
        ax.set_title("no residuals", fontsize=10)
        return
    length = np.hypot(residuals[:, 2], residuals[:, 3])
    # The longest arrow is a twelfth of the section.
    longest = max(float(length.max()), 1e-6)
    arrows = ax.quiver(
        *residuals.T,
        length,
        angles="xy",
        scale_units="xy",
        scale=12 * longest / size.max(),
        cmap="viridis",
        width=0.005,
    )
    ax.figure.colorbar(arrows, ax=ax, shrink=0.8, label="remaining shift of a window, µm")
    ax.set_title(f"residuals: median {np.median(length):.2f} µm", fontsize=10)
