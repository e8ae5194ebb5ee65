"""Automatic registration from random wrong poses, and on pairs of image and cells that do not belong together.

    python benchmarks/register.py FOLDER --sets pancreas_xenium simulated --poses 20
    python benchmarks/register.py FOLDER --sets --pairs 0:40
    python benchmarks/register.py FOLDER --sets --plain

where FOLDER holds pancreas_xenium.zarr, lung_xenium_mini.zarr, kidney_visiumhd.zarr and breast_st.zarr. The first prints
one row a set: errors of 20 random poses (any turn, mirrored or not, ±10°, ±2 %, ±1 mm). The second registers pairs that
cannot be registered. The third times a search of every candidate on all squares beside ours. Nothing is written.

The stored alignment of kidney_visiumhd is some 10 µm off by two independent measures, so its truth is the stored pose
corrected by haematoxylin against counts, in 600 windows. The registration of bins uses neither.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import spatialdata
from registration import SETUPS
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.pp.alignment import DEFAULTS
from sigmma_sc.registration.coarse import Candidate, distinct, turns
from sigmma_sc.registration.colour import read_colours
from sigmma_sc.registration.explain import explain
from sigmma_sc.registration.fine import window_curves
from sigmma_sc.registration.pose import displacement, similarity, spread, to_pixels
from sigmma_sc.registration.refine import refine
from sigmma_sc.registration.register import KNOWN_SCALE, N_FINALISTS, Registered, SquareSizes, candidates, find_pose
from sigmma_sc.registration.squares import expression_squares
from sigmma_sc.tissue.frame import Slide, apply_affine, image_levels
from sigmma_sc.tissue.levels import level_scales
from sigmma_sc.tissue.setup import resolve_slides, totals_of

TARGETS = {
    "pancreas_xenium": 1.5,
    "kidney_visiumhd": 4.0,
    "simulated": 1.0,
    "lung_xenium_mini": 10.0,
    "breast_st": 50.0,
}
"""Error in µm within which a registration is right."""


def slides(folder: Path, name: str) -> list[Slide]:
    """Slides of a set, without the check of their alignment."""
    if name == "simulated":
        return [simulated(seed) for seed in range(20)]
    sdata = spatialdata.read_zarr(folder / f"{name}.zarr")
    return resolve_slides(sdata, replace(DEFAULTS, **SETUPS[name]))


def simulated(seed: int) -> Slide:
    """A simulated section of 3,000 cells."""
    return resolve_slides(simulate_tissue(n_cells=3000, seed=seed), DEFAULTS)[0]


def moved(slide: Slide, seed: int) -> tuple[Slide, np.ndarray]:
    """A slide with its cells at a random wrong pose, and the matrix that takes them back, both px."""
    rng = np.random.default_rng(seed)
    middle = np.array([slide.width, slide.height]) / 2
    shift = rng.uniform(-1000, 1000, 2) / slide.microns_per_pixel
    angle = rng.integers(4) * np.pi / 2 + np.deg2rad(rng.uniform(-10, 10))
    matrix = similarity(angle, rng.uniform(0.98, 1.02), bool(rng.integers(2)), middle, middle + shift)
    return replace(slide, xy=apply_affine(matrix, slide.xy)), np.linalg.inv(matrix)


def truth(slide: Slide, name: str) -> np.ndarray:
    """Matrix, px to px, that takes a slide's stored positions to where its cells are."""
    if name != "kidney_visiumhd":
        return np.eye(3)
    pose = np.eye(3)
    for reach, smoothing in ((24.0, 4.0), (12.0, 1.5)):
        curves = window_curves(slide, pose, reach, smoothing, totals_of(slide), 600, seed=7)
        pose = curves.best_pose(pose, 4, 3.0)
    return to_pixels(pose, slide.microns_per_pixel)


def error_of(found: Registered, slide: Slide, right: np.ndarray, start: np.ndarray) -> float:
    """Median distance in µm of the cells from where they belong; ``start`` are their wrong positions."""
    if found.matrix is None:
        return float("nan")
    apart = apply_affine(found.matrix, start) - apply_affine(right, slide.xy)
    return float(np.median(np.hypot(*apart.T))) * slide.microns_per_pixel


def poses(folder: Path, name: str, numbers: range) -> str:
    """Row of the table for one set."""
    kept = slides(folder, name)
    rights = [truth(slide, name) for slide in kept]
    target = TARGETS[name]
    errors, stated, certified, seconds = [], [], [], []
    for number in numbers:
        slide, right = kept[number % len(kept)], rights[number % len(kept)]
        wrong, _ = moved(slide, number)
        start = time.process_time()
        found = find_pose(wrong)
        seconds.append(time.process_time() - start)
        errors.append(error_of(found, slide, right, wrong.xy))
        stated.append(found.certificate.error)
        certified.append(found.certified)
        report(f"{name} {number}", found, f"error {errors[-1]:.2f} µm, {seconds[-1]:.0f} s")
    errors, stated, certified = np.array(errors), np.array(stated), np.array(certified)
    right = certified & (errors <= np.maximum(2 * stated, target))
    return (
        f"| `{name}` | {len(errors)} | {np.nanmedian(errors):.2f} | {(errors <= target).sum()} (≤ {target:g} µm) "
        f"| {right.sum()} | {(certified & ~right).sum()} | {(certified & (errors <= stated)).sum()} "
        f"| {np.median(seconds):.0f} |"
    )


def report(what: str, found: Registered, more: str = "") -> None:
    """Print one line on a registration."""
    c = found.certificate
    print(
        f"{what}: {c.verdict} ({c.reason}); {more}; R² {c.r2:.2f}, held out {c.r2_held_out:.2f}, far "
        f"{c.r2_far_held_out:.2f}, far's share {c.far_share:.2f}",
        flush=True,
    )


def level_pixels(slide: Slide, number: int) -> tuple[np.ndarray, float]:
    """Pixels ``(h, w, 3)`` of a level of the pyramid, and their size in µm."""
    levels = image_levels(slide.sdata, slide.image_key)
    number = min(number, len(levels) - 1)
    return levels[number].to_numpy().transpose(1, 2, 0), level_scales(levels)[number] * slide.microns_per_pixel


def with_pixels(slide: Slide, pixels: np.ndarray, microns: float) -> Slide:
    """A slide with another image under the same cells."""
    image = Image2DModel.parse(np.ascontiguousarray(pixels.transpose(2, 0, 1)), ("c", "y", "x"), c_coords=list("rgb"))
    xy = slide.xy * slide.microns_per_pixel / microns
    size = {"height": pixels.shape[0], "width": pixels.shape[1]}
    return replace(
        slide, sdata=SpatialData(images={"x": image}), image_key="x", microns_per_pixel=microns, xy=xy, **size
    )


def together(image: Slide, cells: Slide) -> Slide:
    """The image of one slide with the cells of another."""
    xy = cells.xy * cells.microns_per_pixel / image.microns_per_pixel
    return replace(image, xy=xy, rows=cells.rows, adata=cells.adata, setup=cells.setup, region=cells.region)


def mirrored_half(slide: Slide, level: int, left: bool) -> Slide:
    """Cells of one half of a slide on the other half of its image, mirrored."""
    pixels, microns = level_pixels(slide, level)
    middle = pixels.shape[1] // 2
    kept = (slide.xy[:, 0] * slide.microns_per_pixel / microns < middle) == left
    other = pixels[:, middle:] if left else pixels[:, :middle]
    return with_pixels(replace(slide, xy=slide.xy[kept], rows=slide.rows[kept]), other[:, ::-1], microns)


def shuffled(slide: Slide, seed: int) -> Slide:
    """A slide whose cells have changed places."""
    return replace(slide, xy=np.random.default_rng(seed).permutation(slide.xy))


def blank(slide: Slide, seed: int) -> Slide:
    """A slide whose image is glass with the noise of a camera."""
    noise = np.random.default_rng(seed).normal(243, 2, (2000, 2000, 3))
    return with_pixels(slide, noise.clip(0, 255).astype(np.uint8), 2.0)


def one_tissue(slide: Slide, level: int, seed: int, side: float = 300.0) -> Slide:
    """A slide whose image is one patch of its tissue, of ``side`` µm, mirrored and repeated at random."""
    pixels, microns = level_pixels(slide, level)
    rng = np.random.default_rng(seed)
    size = int(side / microns)
    patch = pixels[:size, :size]
    while patch.mean() > 200:
        top, left = rng.integers(0, np.array(pixels.shape[:2]) - size)
        patch = pixels[top : top + size, left : left + size]
    turned = [np.rot90(p, k) for p in (patch, patch[::-1]) for k in range(4)]
    rows, columns = np.array(pixels.shape[:2]) // size
    drawn = np.array(turned)[rng.integers(0, 8, (rows, columns))]
    return with_pixels(slide, drawn.swapaxes(1, 2).reshape(rows * size, columns * size, 3), microns)


def impossible(folder: Path) -> Iterator[tuple[str, Callable[[], Slide]]]:
    """Pairs of image and cells that do not belong together, by name, each made when it is called."""

    def real(name: str, number: int = 0) -> Slide:
        return slides(folder, name)[number]

    pancreas, kidney, lung = "pancreas_xenium", "kidney_visiumhd", "lung_xenium_mini"
    for image, cells in itertools.permutations(range(5), 2):
        yield (
            f"breast {image} with {cells}",
            lambda i=image, c=cells: together(real("breast_st", i), real("breast_st", c)),
        )
    for image, cells in ((kidney, pancreas), (pancreas, kidney), (lung, pancreas), (pancreas, lung)):
        yield f"{image} with {cells}", lambda i=image, c=cells: together(real(i), real(c))
    for left in (True, False):
        yield f"pancreas, mirrored half {left}", lambda s=left: mirrored_half(real(pancreas), 1, s)
        yield f"kidney, mirrored half {left}", lambda s=left: mirrored_half(real(kidney), 0, s)
        yield f"simulated, mirrored half {left}", lambda s=left: mirrored_half(simulated(0), 1, s)
    for name in (pancreas, kidney, lung, "breast_st"):
        yield f"{name}, shuffled", lambda n=name: shuffled(real(n), 0)
    yield "simulated, shuffled", lambda: shuffled(simulated(0), 0)
    for name in (pancreas, "breast_st"):
        yield f"{name}, blank", lambda n=name: blank(real(n), 0)
    for seed in range(2):
        yield f"pancreas, one tissue {seed}", lambda s=seed: one_tissue(real(pancreas), 2, s)
        yield f"simulated, one tissue {seed}", lambda s=seed: one_tissue(simulated(s), 1, s, 128.0)
        yield f"simulated {seed} with {seed + 1}", lambda s=seed: together(simulated(s), simulated(s + 1))


def pairs(folder: Path, some: slice) -> str:
    """Count of the pairs that are refused; none may be registered."""
    chosen = list(impossible(folder))[some]
    certified = 0
    for name, make in chosen:
        start = time.process_time()
        found = find_pose(make())
        certified += found.certified
        report(name, found, f"{time.process_time() - start:.0f} s")
    return f"{len(chosen) - certified} of {len(chosen)} impossible pairs refused, {certified} certified"


def plain(folder: Path, name: str, reach: float = 1000.0) -> str:
    """Time and error of a search of every candidate on all squares, shifts up to ``reach`` µm, and of ours."""
    slide = slides(folder, name)[0]
    slide, back = moved(slide, 0)
    right = back.copy()
    right[:2, 2] *= slide.microns_per_pixel
    sizes = SquareSizes.of(slide)
    raster = read_colours(slide)
    squares = expression_squares(slide, sizes.fine)
    start = time.process_time()
    ours = candidates(squares, raster, sizes, KNOWN_SCALE)[0]
    fast = time.process_time() - start

    start = time.process_time()
    colours = raster.smoothed(sizes.fine)
    middle, radius = spread(squares.xy)
    centre = np.array([slide.width, slide.height]) / 2 * slide.microns_per_pixel
    steps = np.arange(-reach, reach + 1, 0.4 * sizes.coarse)
    tried = []
    for angle, scale, mirrored in turns(radius, sizes.coarse, KNOWN_SCALE):
        for shift in itertools.product(steps, steps):
            pose = similarity(angle, scale, mirrored, middle, centre + shift)
            tried.append(Candidate(pose, explain(squares, colours, pose).score))
    best = distinct(tried, squares.xy, sizes.coarse, N_FINALISTS)
    refined = [refine(squares, colours, one.pose, KNOWN_SCALE, sizes.coarse / 4, sizes.fine / 100) for one in best]
    theirs = max(refined, key=lambda one: one.score)
    slow = time.process_time() - start
    errors = [displacement(one.pose, right, squares.xy) for one in (ours, theirs)]
    return (
        f"`{name}`: {fast:.1f} s and {errors[0]:.1f} µm by ours; {slow:.1f} s and {errors[1]:.1f} µm by a search of "
        f"{len(tried):,} candidates on all squares; {slow / fast:.1f} times as fast"
    )


def numbers(text: str) -> slice:
    """Slice from ``first:last``."""
    return slice(*(int(part) if part else None for part in text.split(":")))


def main() -> None:
    """Print the table in markdown, after a line for each registration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--poses", type=int, default=20, help="number of random poses of each set")
    parser.add_argument("--first", type=int, default=0, help="seed of the first of them")
    parser.add_argument("--pairs", type=numbers, help="impossible pairs first:last")
    parser.add_argument("--plain", action="store_true", help="time a plain search on pancreas_xenium beside ours")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = [poses(options.folder, name, range(options.first, options.first + options.poses)) for name in options.sets]
    if rows:
        print("| set | poses | median error, µm | within the target | certified, right | certified, wrong ", end="")
        print("| error below the stated one | CPU seconds |")
        print("| --- " * 8 + "|")
        print("\n".join(rows))
    if options.pairs:
        print(pairs(options.folder, options.pairs))
    if options.plain:
        print(plain(options.folder, "pancreas_xenium"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"largest memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
