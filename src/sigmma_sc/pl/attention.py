"""Tiles beside the attention of each head (paper, Fig. 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc._checks import require_key, require_positive
from sigmma_sc.errors import SetupError
from sigmma_sc.pl._finish import finish
from sigmma_sc.tissue.frame import affine_to, apply_affine

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData
    from xarray import Dataset

OUTLINE = "#00E5FF"
PANEL = 1.7
"""Side of a panel in inches."""


def attention(
    maps: Dataset,
    before: Dataset | None = None,
    n_heads: int = 6,
    sdata: SpatialData | None = None,
    outlines: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure:
    """Show tiles and, beside each, the attention of the class token to its patches, one panel a head.

    Maps are multiples of even attention: at 1 a patch gets what it would if all patches of the tile were looked at alike. All
    maps of a tile share a colour scale, which ends at their 99th percentile. The heads shown are those that differ most
    from even attention, by the entropy of their maps in ``maps``; the choice is the same for all rows.

    Parameters
    ----------
    maps
        Of :meth:`sigmma_sc.SIGMMA.get_attention`.
    before
        The same tiles with ``when="before"``: each tile gets a second row above its first.
    n_heads
        Most heads to show.
    sdata, outlines
        Object, and shapes in it to outline, such as ``"nucleus_boundaries"``.
    show
        Show the figure; by default when it is not saved.
    save
        File to write.

    Returns
    -------
    The figure.

    Raises
    ------
    SetupError
        ``before`` holds other tiles or heads, or only one of ``sdata`` and ``outlines`` is given.
    MissingKeyError
        The object has no such shapes.

    Examples
    --------
    >>> tissue = sg.datasets.simulate_tissue(n_cells=500)
    >>> SIGMMA.setup_spatialdata(tissue, tile_size=64)
    >>> encoder = sg.ImageEncoder.from_timm("vit_tiny_patch16_224", img_size=32, depth=1)  # random weights
    >>> small = SIGMMA(tissue, image_encoder=encoder)
    >>> small.train(max_epochs=1, enable_progress_bar=False)
    >>> figure = sg.pl.attention(small.get_attention(["cell_circles_40"]), show=False)
    >>> [ax.get_title() for ax in figure.axes[:4]]
    ['tile', 'head 1', 'head 2', 'head 3']
    """
    import matplotlib.pyplot as plt

    require_positive(n_heads, "n_heads")
    if before is not None and (
        before["tile"].values.tolist() != maps["tile"].values.tolist() or before.sizes["head"] != maps.sizes["head"]
    ):
        raise SetupError("before holds other tiles or heads than maps. Ask get_attention for the same tiles.")
    if (sdata is None) != (outlines is None):
        raise SetupError("Outlines need both sdata and outlines, the name of its shapes.")
    if outlines is not None:
        require_key(outlines, sdata.shapes, "outlines")
    heads = _telling_heads(maps, int(n_heads))
    stages = [("", maps)] if before is None else [("before", before), ("after", maps)]
    n_rows, n_cols = maps.sizes["tile"] * len(stages), 1 + len(heads)
    figure, axes = plt.subplots(
        n_rows,
        n_cols + 1,  # the last for colour bars
        figsize=(PANEL * n_cols + 1.1, PANEL * n_rows + 0.4),
        width_ratios=[*[1] * n_cols, 0.06],
        squeeze=False,
        layout="constrained",
    )
    for tile in range(maps.sizes["tile"]):
        here = [stage.isel(tile=tile) for _, stage in stages]
        ratios = [_ratios(one["attention"].values)[heads] for one in here]
        high = max(float(np.percentile(ratios, 99)), 1.0)
        rings = [] if outlines is None else _rings(sdata, outlines, here[0])
        for k, (word, _) in enumerate(stages):
            row = axes[tile * len(stages) + k]
            _image(row[0], here[k], word, rings)
            _maps(row[1:], ratios[k], high)
    for ax, title in zip(axes[0], ["tile", *(f"head {head + 1}" for head in heads)], strict=False):
        ax.set_title(title, fontsize=9)
    axes[-1, 0].set_xlabel(f"{float((maps['side'] * maps['microns_per_pixel'])[-1]):.0f} µm", fontsize=8)
    finish(figure, show, save)
    return figure


def _telling_heads(maps: Dataset, n_heads: int) -> list[int]:
    """Heads of the lowest mean entropy over tiles, in their own order."""
    ratios = _ratios(maps["attention"].values)
    excess = (ratios * np.log(np.maximum(ratios, 1e-30))).mean((-2, -1)).mean(0)
    return sorted(np.argsort(-excess, kind="stable")[:n_heads].tolist())


def _ratios(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights ``(…, row, column)`` over their mean."""
    return weights / weights.mean((-2, -1), keepdims=True)


def _image(ax: Axes, one: Dataset, word: str, rings: list[NDArray[np.float64]]) -> None:
    side = float(one["side"] * one["microns_per_pixel"])
    ax.imshow(one["image"].values, extent=(0, side, side, 0))
    for ring in rings:
        ax.plot(*ring.T, color=OUTLINE, lw=0.6)
    name = str(one["tile"].values)
    # Longer, it would run into the next row.
    short = name if len(name) <= 18 else f"…{name[-17:]}"
    ax.set_ylabel(f"{short}\n{word}" if word else short, fontsize=8)
    ax.set(xlim=(0, side), ylim=(side, 0), xticks=[], yticks=[])


def _maps(axes: NDArray, ratios: NDArray[np.float32], high: float) -> None:
    """Maps ``(heads, row, column)`` of one tile, and their colour bar in the last of the axes."""
    for ax, ratio in zip(axes, ratios, strict=False):
        drawn = ax.imshow(ratio, cmap="magma", vmin=0, vmax=high)
        ax.set(xticks=[], yticks=[])
    bar = axes[-1].figure.colorbar(drawn, cax=axes[-1])
    bar.set_label("× even", fontsize=7)
    bar.ax.tick_params(labelsize=7)


def _rings(sdata: SpatialData, outlines: str, one: Dataset) -> list[NDArray[np.float64]]:
    """Outer rings of the shapes that meet a tile, in µm from its corner."""
    from shapely import box

    system, image_key = str(one["coordinate_system"].values), str(one["image_key"].values)
    shapes = sdata.shapes[outlines]
    require_key(image_key, sdata.images, "image of the tiles", "Pass the object that the maps were made on.")
    to_image = np.linalg.inv(affine_to(sdata.images[image_key], system, f"image {image_key!r}"))
    matrix = to_image @ affine_to(shapes, system, f"shapes {outlines!r}")
    x, y, side = (float(one[name]) for name in ("x0", "y0", "side"))
    corners = apply_affine(np.linalg.inv(matrix), np.array(box(x, y, x + side, y + side).exterior.coords))
    circles = "radius" in shapes
    reach = shapes["radius"].max() if circles else 0.0
    low, high = corners.min(axis=0) - reach, corners.max(axis=0) + reach
    near = shapes.geometry.iloc[shapes.sindex.query(box(*low, *high))]
    if circles:
        near = near.buffer(shapes.loc[near.index, "radius"])
    parts = near.explode(index_parts=False)
    return [
        (apply_affine(matrix, np.array(part.exterior.coords)) - (x, y)) * float(one["microns_per_pixel"])
        for part in parts
    ]
