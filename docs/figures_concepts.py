"""Drawings of the page *Concepts*, from the package itself. Run by hand: ``python docs/figures_concepts.py``.

Writes ``concepts_tile.svg``, ``concepts_graphs.svg`` and ``concepts_splits.svg`` into ``docs/_static/``.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch, Rectangle
from PIL import Image

import sigmma_sc as sg
from sigmma_sc.infer.embed import Embedder
from sigmma_sc.infer.tiles import tile_by_name
from sigmma_sc.tissue.frame import Slide, image_levels
from sigmma_sc.tissue.tiling import Tiles, block_of

OUT = Path(__file__).parent / "_static"
# Okabe and Ito's colours, distinguishable under the common colour-vision deficiencies.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
BLOCKS = np.array([BLUE, ORANGE, GREEN, PURPLE])
COLOURS = {"micro": BLACK, "meso": VERMILLION, "macro": BLUE}
ROLES = {"train": BLUE, "val": YELLOW, "test": VERMILLION, "guard": "#FFFFFF"}
NAMES = {"train": "training", "val": "validation", "test": "test", "guard": "guard band"}
WIDTH = 7.3  # inches at 96 px, so some 700 px

plt.rcParams |= {"font.size": 9, "axes.titlesize": 9, "svg.hashsalt": "concepts", "svg.fonttype": "path"}


def picture(slide: Slide, low: np.ndarray, high: np.ndarray, side: int, colours: int = 48) -> Image.Image:
    """Part of the H&E from corner ``low`` to ``high``, px of level 0, ``side`` px wide, with few colours, so that it is small."""
    for level in reversed(image_levels(slide.sdata, slide.image_key)):
        scale = slide.width / level.sizes["x"]
        if (high - low)[0] / scale >= side or scale < 1.01:
            break
    (x0, y0), (x1, y1) = (np.round(at / scale).astype(int) for at in (low, high))
    pixels = np.asarray(level[:3, y0:y1, x0:x1]).transpose(1, 2, 0)
    small = Image.fromarray(pixels).resize((side, round(side * pixels.shape[0] / pixels.shape[1])), Image.LANCZOS)
    return small.quantize(colours, dither=Image.Dither.NONE).convert("RGB")


def trained() -> tuple[sg.SIGMMA, Slide, Tiles]:
    """A model after a few epochs, its slide, and one tile of tissue with not too many cells."""
    sdata = sg.datasets.simulate_tissue(n_cells=3000)
    sg.SIGMMA.setup_spatialdata(sdata)
    model = sg.SIGMMA(sdata)
    model.train(max_epochs=5, split="none")
    obs = model.get_tile_representation().obs
    fit = obs[(obs["tissue"] > 0.95) & (obs["n_cells"] >= 45)].sort_values("n_cells")
    slide, tile = tile_by_name(model.resolve(sdata), fit.index[0])
    return model, slide, tile


def tile_axes(ax: plt.Axes, side: float) -> None:
    """Frame of one tile in µm, y downwards as in the image."""
    ax.set(xlim=(0, side), ylim=(side, 0), xticks=[], yticks=[], aspect="equal")


def lines(ax: plt.Axes, side: float, grid: int, colour: str) -> None:
    """Borders of the parts of a grid."""
    for k in range(1, grid):
        at = k * side / grid
        ax.plot([at, at], [0, side], [0, side], [at, at], color=colour, linewidth=1.0, zorder=2)


def in_microns(slide: Slide, tile: Tiles) -> tuple[np.ndarray, float]:
    """Cells of a tile relative to its corner, and its side."""
    return (slide.xy[tile.cells] - tile.origins[0]) * slide.microns_per_pixel, tile.side * slide.microns_per_pixel


def draw_tile(slide: Slide, tile: Tiles, grids: tuple[int, ...], scales: tuple[str, ...]) -> plt.Figure:
    """Patches of the image above, blocks of cells below."""
    xy, side = in_microns(slide, tile)
    image = picture(slide, tile.origins[0], tile.origins[0] + tile.side, 144, 32)
    figure, axes = plt.subplots(2, len(grids), figsize=(WIDTH, 5.3), layout="constrained")
    for (above, below), b, scale in zip(axes.T, grids, scales, strict=True):
        above.imshow(image, extent=(0, side, side, 0), interpolation="none")
        lines(above, side, b, "white")
        lines(below, side, b, "#777777")
        row, column = np.divmod(block_of(xy, side, b), b)
        below.scatter(*xy.T, s=22, c=BLOCKS[2 * (row % 2) + column % 2], edgecolors="white", linewidths=0.4, zorder=3)
        for ax in (above, below):
            tile_axes(ax, side)
        above.set_title(f"{scale}: {b} × {b} of {side / b:.0f} µm")
    axes[0, 0].set_ylabel("patches of the H&E")
    axes[1, 0].set_ylabel("cells, coloured by block")
    axes[1, 0].set_xlabel(f"one tile, {side:.0f} µm")
    return figure


def both_ways(source: np.ndarray, target: np.ndarray, weight: np.ndarray, n: int) -> np.ndarray:
    """Mean weight of the two directions of each pair, ``(n, n)``, upper triangle."""
    out = np.zeros((n, n))
    np.add.at(out, (source, target), weight / 2)
    return np.triu(out + out.T)


def hairlines(segments: np.ndarray, colours: np.ndarray, side: float, size: int = 300) -> Image.Image:
    """Thousands of thin lines as an image of few colours: as paths they would make a large file."""
    figure = plt.figure(figsize=(size / 144, size / 144), dpi=144)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.add_collection(LineCollection(segments, colors=colours, linewidths=0.3))
    tile_axes(ax, side)
    ax.axis("off")
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return Image.fromarray(pixels).quantize(5, dither=Image.Dither.NONE).convert("RGB")


def draw_graphs(model: sg.SIGMMA, slide: Slide, tile: Tiles) -> plt.Figure:
    """The pairs that each scale links first; those of one cell are drawn at their full weight, the others faintly."""
    xy, side = in_microns(slide, tile)
    grids, scales = model.setup.grids, model.setup.scales
    one = int(np.argmin(np.linalg.norm(xy - 0.34 * side, axis=1)))
    graphs = [both_ways(*graph, len(xy)) for graph in Embedder(model.data, model.module).edges(slide, tile)]
    before = [np.zeros_like(graphs[0]), *graphs[:-1]]
    figure, axes = plt.subplots(1, len(grids), figsize=(WIDTH, 2.95), layout="constrained")
    for ax, scale, b, earlier, now in zip(axes, scales, grids, before, graphs, strict=True):
        lines(ax, side, b, "#999999")
        pairs = np.argwhere((now > 1e-6) & (earlier == 0))
        weight, own = now[tuple(pairs.T)], (pairs == one).any(axis=1)
        colour, spatial = COLOURS[scale], scale == scales[0]
        if not spatial:
            faint = np.array([to_rgba(colour, 0.3 * w) for w in weight])
            ax.imshow(hairlines(xy[pairs], faint, side), extent=(0, side, side, 0), interpolation="none", zorder=1)
        strong = np.full(len(pairs), True) if spatial else own
        shown = [to_rgba(colour, w) for w in weight[strong]]
        ax.add_collection(LineCollection(xy[pairs[strong]], colors=shown, linewidths=2 * weight[strong], zorder=2))
        ax.scatter(*xy.T, s=9, c="#333333", linewidths=0, zorder=3)
        ax.scatter(*xy[one], s=45, c=YELLOW, edgecolors="black", linewidths=0.9, zorder=4)
        tile_axes(ax, side)
        ax.set_title(f"{scale}: {len(pairs):,} spatial edges" if spatial else f"{scale}: {len(pairs):,} pairs more")
        print(f"{scale}: {len(pairs)} pairs, weight {weight.min():.2f} to {weight.max():.2f}, mean {weight.mean():.2f}")
    axes[0].set_xlabel(f"one tile, {side:.0f} µm, {len(xy)} cells")
    return figure


def draw_splits() -> plt.Figure:
    """Roles of the tiles of one section, as ``obs["split"]`` of the tile table has them."""
    sdata = sg.datasets.simulate_tissue(n_cells=12000, angle=0.0)
    sg.SIGMMA.setup_spatialdata(sdata, tile_size=64.0)  # so that a small section holds many
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.3), layout="constrained")
    for ax, split in zip(axes, ("blocks", "end"), strict=True):
        model = sg.SIGMMA(sdata)
        (slide,) = model.resolve(sdata)
        model.data.assign_roles([slide], split)  # what train() does first
        tiles = slide.tiles
        roles = pd.Series(model.data.roles.of(slide))
        print(split, roles.value_counts().to_dict())
        size = np.array([slide.width, slide.height])
        ax.imshow(picture(slide, 0 * size, size, 120, 16), extent=(0, size[0], size[1], 0), interpolation="none")
        for role, colour in ROLES.items():
            squares = [Rectangle(at, tiles.side, tiles.side) for at in tiles.origins[roles == role]]
            drawn = PatchCollection(squares, facecolor=to_rgba(colour, 0.6), edgecolor="white", linewidth=0.5)
            drawn.set_rasterized(True)
            ax.add_collection(drawn)
        ax.set(xlim=(0, size[0]), ylim=(size[1], 0), xticks=[], yticks=[], aspect="equal")
        ax.set_title(f'split="{split}"', family="monospace")
    keys = [Patch(facecolor=to_rgba(ROLES[r], 0.6), edgecolor="#777777", label=NAMES[r]) for r in ROLES]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    return figure


def main() -> None:
    """Draw all three."""
    OUT.mkdir(exist_ok=True)
    model, slide, tile = trained()
    drawings = {
        "tile": draw_tile(slide, tile, model.setup.grids, model.setup.scales),
        "graphs": draw_graphs(model, slide, tile),
        "splits": draw_splits(),
    }
    for name, figure in drawings.items():
        path = OUT / f"concepts_{name}.svg"
        figure.savefig(path, dpi=160, metadata={"Date": None})
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
