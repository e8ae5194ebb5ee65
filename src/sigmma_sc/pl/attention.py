"""Tiles and the attention of each head (paper, Fig. 3)."""

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
    """Show tiles and the attention of the class token to their patches, one panel a head.

    Maps are multiples of even attention, which is 1 everywhere. All maps of a tile share a colour scale, which ends at their
    99th percentile. The heads shown differ most from even attention, by the entropy of their maps in ``maps``. They are
    the same for all rows.

    Parameters
    ----------
    maps
        Result of :meth:`sigmma_sc.SIGMMA.get_attention`.
    before
        Result for the same tiles with ``when="before"``, shown in a second row above that of the tile.
    n_heads
        Largest number of heads to show.
    sdata
        Object that holds the shapes to outline.
    outlines
        Name of these shapes, such as ``"nucleus_boundaries"``.
    show
        Whether to show the figure; by default if it is not saved.
    save
        File to write the figure to.

    Returns
    -------
    The figure.

    Raises
    ------
    SetupError
        ``before`` holds other tiles or heads, or only one of ``sdata`` and ``outlines`` is given.
    MissingKeyError
        The object has no such shapes.

    See Also
    --------
    sigmma_sc.SIGMMA.get_attention : Compute the maps.

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
        raise SetupError("before holds other tiles or heads than maps. Call get_attention with the same tiles.")
    if sdata is not None and outlines is not None:
        require_key(outlines, sdata.shapes, "outlines")
    elif sdata is not None or outlines is not None:
        raise SetupError("Outlines need both sdata and outlines, the name of its shapes.")
    heads = _uneven_heads(maps, int(n_heads))
    stages = [("", maps)] if before is None else [("before", before), ("after", maps)]
    n_rows = maps.sizes["tile"] * len(stages)
    n_cols = 1 + len(heads)
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


def _uneven_heads(maps: Dataset, n_heads: int) -> list[int]:
    """Heads of the lowest mean entropy over tiles, ascending."""
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
    # A longer name would overlap the next row.
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

    system = str(one["coordinate_system"].values)
    image_key = str(one["image_key"].values)
    shapes = sdata.shapes[outlines]
    require_key(image_key, sdata.images, "image of the tiles", "Pass the object of the maps.")
    to_image = np.linalg.inv(affine_to(sdata.images[image_key], system, f"image {image_key!r}"))
    matrix = to_image @ affine_to(shapes, system, f"shapes {outlines!r}")
    x = float(one["x0"])
    y = float(one["y0"])
    side = float(one["side"])
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
