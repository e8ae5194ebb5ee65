"""Picture and table of the page *Scale and tile size*, from three real sections. Run by hand.

    SIGMMA_STORES=… python docs/figures_tiles.py

Writes ``tile_sizes.webp`` into ``docs/_static/``, and prints how many cells tiles and blocks of each size hold. Data:
pancreas (Xenium, virtual stain) and kidney (Visium HD), 10x Genomics, CC BY 4.0; breast, Andersson et al. 2021.
"""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import spatialdata as sd
from matplotlib.patches import Rectangle
from PIL import Image

from sigmma_sc import SIGMMA
from sigmma_sc.tissue.frame import Slide, image_levels
from sigmma_sc.tissue.setup import resolve_slides, stored_setup

OUT = Path(__file__).parent / "_static" / "tile_sizes.webp"
GRIDS = (4, 2, 1)
COLOURS = ("#000000", "#0072B2", "#D55E00")


class Section(NamedTuple):
    """A store, how it is read, tile sizes to count, and the part to draw."""

    title: str
    options: dict
    sizes: tuple[float, ...]
    drawn: float
    width: float
    centre: tuple[float, float]


SECTIONS = {
    "pancreas_xenium": Section("Xenium, single cells", {}, (64, 128, 256), 128, 320, (0.42, 0.45)),
    "kidney_visiumhd": Section("Visium HD, 8 µm bins", {"microns_per_pixel": 2.006}, (64, 128, 256), 128, 320, (0.5, 0.5)),
    "breast_st": Section(
        "spots of 100 µm, 200 µm apart",
        {
            "image_key": {f"{s}_spots": f"{s}_he" for s in ("C2", "C3", "C4", "C5", "C6")},
            "coordinate_system": {f"{s}_spots": s for s in ("C2", "C3", "C4", "C5", "C6")},
            "microns_per_pixel": 0.687,
        },
        (128, 400, 800),
        800,
        2000,
        (0.5, 0.6),
    ),
}  # fmt: skip


def read(name: str, section: Section) -> Slide:
    """The first slide of a store."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata = sd.read_zarr(Path(os.environ["SIGMMA_STORES"]) / f"{name}.zarr")
        SIGMMA.setup_spatialdata(sdata, tile_size=section.drawn, **section.options)
    return resolve_slides(sdata, stored_setup(sdata))[0]


def counts(slide: Slide, tile_size: float) -> dict[str, float]:
    """Cells of a tile and of a micro block, where there are any in the tile."""
    micro = tile_size / GRIDS[0] / slide.microns_per_pixel
    block = np.floor((slide.xy - slide.xy.min(0)) / micro).astype(int)
    block = pd.Series(1, index=pd.MultiIndex.from_arrays(block.T)).groupby(level=[0, 1]).size()
    tile = block.groupby([block.index.get_level_values(k) // GRIDS[0] for k in (0, 1)])
    tiles = pd.DataFrame({"cells": tile.sum(), "two": tile.agg(lambda n: (n > 1).sum())})
    kept = tiles[tiles["cells"] >= 5]
    return {
        "tile, µm": tile_size,
        "micro block, µm": tile_size / GRIDS[0],
        "tiles": len(kept),
        "cells a tile": kept["cells"].median(),
        "micro blocks with two cells or more": round(kept["two"].sum() / (GRIDS[0] ** 2 * len(kept)), 2),
    }


def draw(ax: plt.Axes, slide: Slide, section: Section) -> None:
    """A part of the H&E with one tile, its blocks, and the cells."""
    side = section.width / slide.microns_per_pixel
    low = np.array(section.centre) * (slide.width, slide.height) - side / 2
    levels = image_levels(slide.sdata, slide.image_key)
    level = next((one for one in reversed(levels) if side * one.sizes["x"] / slide.width >= 400), levels[0])
    scale = slide.width / level.sizes["x"]
    (x0, y0), (x1, y1) = ((corner / scale).astype(int) for corner in (low, low + side))
    pixels = np.asarray(level[:3, y0:y1, x0:x1]).transpose(1, 2, 0)
    ax.imshow(Image.fromarray(pixels), extent=(0, section.width, section.width, 0))
    xy = (slide.xy - low) * slide.microns_per_pixel
    xy = xy[((xy > 0) & (xy < section.width)).all(1)]
    ax.scatter(*xy.T, s=5, c="#F0E442", edgecolors="black", linewidths=0.3)
    start = (section.width - section.drawn) / 2
    for grid, colour in zip(GRIDS, COLOURS, strict=True):
        step = section.drawn / grid
        for k in range(grid * grid):
            corner = (start + k % grid * step, start + k // grid * step)
            ax.add_patch(
                Rectangle(
                    corner, step, step, fill=False, edgecolor=colour, linewidth=0.8 + 0.6 * (3 - grid) * (grid < 3)
                )
            )
    ax.set(xlim=(0, section.width), ylim=(section.width, 0), xticks=[], yticks=[])
    ax.set_title(f"{section.title}\ntile of {section.drawn:.0f} µm", fontsize=9)


def main() -> None:
    """Draw and count."""
    figure, axes = plt.subplots(1, len(SECTIONS), figsize=(8.4, 3.2), layout="constrained")
    rows = []
    for ax, (name, section) in zip(axes, SECTIONS.items(), strict=True):
        slide = read(name, section)
        draw(ax, slide, section)
        rows += [{"section": name, **counts(slide, size)} for size in section.sizes]
    figure.savefig(OUT.with_suffix(".png"), dpi=150)
    Image.open(OUT.with_suffix(".png")).convert("RGB").save(OUT, quality=85, method=6)
    OUT.with_suffix(".png").unlink()
    print(pd.DataFrame(rows).to_string(index=False))
    print(f"{OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
