"""Gallery of retrieval: a tile, and what it finds in the other modality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sigmma_sc._checks import SetupError, require_choice, require_key, require_positive
from sigmma_sc.pl._finish import finish
from sigmma_sc.pl.niches import colours_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from sigmma_sc.train.embed import SlideEmbedding

FRAME = {"partner": "#0072B2", "other": "#BBBBBB"}
PIXELS = 192
"""Side at which tiles are read for the figure."""


def retrieval(
    model: Any,
    tiles: Sequence[str] | int = 3,
    direction: Literal["image→transcriptome", "transcriptome→image"] = "image→transcriptome",
    scale: str = "all",
    n_hits: int = 5,
    groupby: str | None = None,
    sdata: Any = None,
    split: str = "test",
    *,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure:
    """Show tiles as queries and the tiles of the same slide that are most similar in the other modality.

    Each tile is drawn twice, its image above its cells. The model compares the image of one with the cells of the other; the
    half that took no part is there for the eye. The query's own partner has a blue frame wherever it is found, and its rank
    stands beside the query.

    Parameters
    ----------
    model
        A trained :class:`sigmma_sc.SIGMMA`.
    tiles
        Names of query tiles, as in ``obs_names`` of :meth:`sigmma_sc.SIGMMA.get_tile_representation`; or how many to take,
        evenly from the best retrieved to the worst.
    direction
        Of retrieval.
    scale
        One scale, or ``"all"``.
    n_hits
        Most similar tiles to show.
    groupby
        Column of ``obs`` that colours the cells; all are alike without it.
    sdata, split
        Object and tiles, as for :meth:`sigmma_sc.SIGMMA.evaluate_retrieval`. Queries and candidates come from its first slide with
        two such tiles, or from that of the tiles named.
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
        No slide has two such tiles, or a tile named is not among them.
    """
    import matplotlib.pyplot as plt

    from sigmma_sc.train.evaluate import chosen_tiles
    from sigmma_sc.train.write import at_scale, tile_obs

    require_choice(direction, ("image→transcriptome", "transcriptome→image"), "direction")
    require_positive(n_hits, "n_hits")
    towers = direction.split("→")
    named = None if isinstance(tiles, (int, np.integer)) else list(tiles)
    for e, which in chosen_tiles(model, sdata, split):
        names = tile_obs(model, e).index[which]
        if len(which) > 1 and (named is None or set(named) <= set(names)):
            break
    else:
        raise SetupError(
            f"No slide has two tiles of split={split!r}" + (f", {', '.join(named)} among them." if named else ".")
        )
    if groupby is not None:
        require_key(groupby, e.slide.sdata.tables[model.setup.table_key].obs, "column")
    query, candidates = (at_scale({s: _unit(z) for s, z in getattr(e, t).items()}, scale)[which] for t in towers)
    similarity = query @ candidates.T
    own = np.diag(similarity)
    rank = (similarity >= own[:, None]).sum(axis=1)  # its own among them: ties count against the query
    if named is None:
        order = np.argsort(rank, kind="stable")
        queries = order[np.linspace(0, len(order) - 1, min(int(tiles), len(order))).astype(int)]
    else:
        queries = names.get_indexer(named)
    hits = np.argsort(-similarity[queries], axis=1, kind="stable")[:, :n_hits]
    shown = np.unique(np.concatenate([queries, hits.ravel()]))
    images = dict(zip(shown.tolist(), _pixels(e, which[shown]), strict=True))
    labels = None if groupby is None else _labels(e, model.setup.table_key, groupby)
    n_columns = 1 + hits.shape[1]
    figure, axes = plt.subplots(
        2 * len(queries), n_columns, figsize=(1.6 * n_columns + 0.6, 3.25 * len(queries) + 0.5), squeeze=False, layout="constrained"
    )  # fmt: skip
    for row, (q, found) in enumerate(zip(queries, hits, strict=True)):
        for column, tile in enumerate([q, *found]):
            pair = axes[2 * row : 2 * row + 2, column]
            _draw(pair, e, int(which[tile]), images[int(tile)], labels, partner=tile == q)
            if row == 0:
                pair[0].set_title("query" if column == 0 else f"hit {column}", fontsize=9)
        axes[2 * row, 0].set_ylabel(f"{names[q]}\npartner ranks {rank[q]} of {len(which)}", fontsize=8)
    if labels is not None:
        colours = colours_of(labels)
        dots = [plt.Line2D([], [], marker="o", ls="", color=c, label=n) for n, c in colours.items()]
        figure.legend(handles=dots, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    figure.suptitle(f"{direction}, {scale}: {len(which)} tiles of {e.slide.name}", fontsize=10)
    finish(figure, show, save)
    return figure


def _unit(z: NDArray[np.float32]) -> NDArray[np.float32]:
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)


def _pixels(e: SlideEmbedding, which: NDArray[np.int64]) -> NDArray[np.uint8]:
    from sigmma_sc.tissue.pixels import read_crops

    crops = np.column_stack([e.tiles.origins[which], np.full(len(which), e.tiles.side)])
    out = np.empty((len(which), PIXELS, PIXELS, 3), np.uint8)
    for index, pixels in read_crops(e.slide, crops, PIXELS):
        out[index] = pixels
    return out


def _labels(e: SlideEmbedding, table_key: str, groupby: str) -> pd.Series:
    return e.slide.sdata.tables[table_key].obs[groupby].iloc[e.slide.rows].astype("category")


def _draw(
    pair: Sequence[Axes],
    e: SlideEmbedding,
    tile: int,
    image: NDArray[np.uint8],
    labels: pd.Series | None,
    partner: bool,
) -> None:
    """One tile's image above its cells."""
    cells = e.tiles.take(np.array([tile])).cells
    xy = (e.slide.xy[cells] - e.tiles.origins[tile]) * e.slide.microns_per_pixel
    side = e.tiles.side * e.slide.microns_per_pixel
    pair[0].imshow(image, extent=(0, side, side, 0))
    colours = "#444444"
    if labels is not None:
        table = colours_of(labels)
        colours = [table.get(str(name), "#DDDDDD") for name in labels.iloc[cells]]
    pair[1].scatter(*xy.T, s=6, c=colours, linewidths=0)
    for ax in pair:
        ax.set(xlim=(0, side), ylim=(side, 0), xticks=[], yticks=[], aspect="equal")
        for spine in ax.spines.values():
            spine.set(color=FRAME["partner" if partner else "other"], linewidth=2.5 if partner else 0.8)
