"""Gallery of retrieval: a tile, and the most similar tiles in the other modality."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from sigmma_sc._checks import require_choice, require_key, require_model, require_whole
from sigmma_sc.errors import SetupError
from sigmma_sc.metrics.retrieval import tile_ranks
from sigmma_sc.pl._cells import colours_of, each_colour
from sigmma_sc.pl._finish import finish
from sigmma_sc.pl._scale import scale_bar
from sigmma_sc.tissue.pixels import read_crops
from sigmma_sc.tissue.setup import obs_of_slide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from sigmma_sc.infer.embed import SlideEmbedding
    from sigmma_sc.model import SIGMMA
    from sigmma_sc.tissue.setup import Tissue

FRAME = {"partner": "#0072B2", "other": "#BBBBBB"}
PIXELS = 192
"""Side of the images of tiles in the figure, px."""


def retrieval(
    model: SIGMMA,
    tiles: Sequence[str] | int = 3,
    direction: Literal["image→transcriptome", "transcriptome→image"] = "image→transcriptome",
    scale: str = "all",
    n_hits: int = 5,
    groupby: str | None = None,
    sdata: Tissue | None = None,
    split: str = "test",
    *,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure:
    """Show tiles as queries and the tiles of the same slide that are most similar in the other modality.

    Each tile is drawn as its image above its cells. The model compares the image of one with the cells of the other. The
    partner of the query, which is the same tile, has a blue frame. Its rank and its similarity are shown next to the
    query, and the cosine similarity of each hit above it.

    Parameters
    ----------
    model
        Trained :class:`sigmma_sc.SIGMMA`.
    tiles
        Names of query tiles, as in ``obs_names`` of :meth:`sigmma_sc.SIGMMA.get_tile_representation`. Or their number, to
        choose them evenly from the best to the worst rank of the partner.
    direction
        Modality of the query and of the candidates.
    scale
        Name of the scale whose embeddings are compared, or ``"all"``.
    n_hits
        Number of most similar tiles to show.
    groupby
        Column of ``obs`` that colours the cells; ``None`` for one colour.
    sdata
        Another object with the same setup; ``None`` for the training object.
    split
        Split of the tiles, as for :meth:`sigmma_sc.SIGMMA.evaluate_retrieval`. All tiles are from the first slide with two
        such tiles, or from that of the named tiles.
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
        No slide has two such tiles, or a named tile is not among them.

    See Also
    --------
    sigmma_sc.SIGMMA.evaluate_retrieval : Recall over all tiles.

    Examples
    --------
    >>> figure = sg.pl.retrieval(model, tiles=2, n_hits=3, groupby="cell_type", show=False)
    >>> figure.get_suptitle()
    'image→transcriptome, all: 17 tiles of cell_circles'
    """
    require_model(model)
    require_choice(direction, ("image→transcriptome", "transcriptome→image"), "direction")
    require_choice(scale, (*model.embedder.towers.aligned, "all"), "scale")
    require_whole(n_hits, "n_hits")
    named: list[str] | None = None
    n_queries = 0
    if isinstance(tiles, (int, np.integer)):
        require_whole(tiles, "tiles")
        n_queries = int(tiles)
    else:
        named = [tiles] if isinstance(tiles, str) else list(tiles) if isinstance(tiles, Iterable) else []
        if not named or not all(isinstance(name, str) for name in named):
            raise SetupError(f"tiles={tiles!r} must be a whole number, or a list of names of tiles.")
    if groupby is not None:
        for slide in model.resolve(sdata):
            require_key(groupby, slide.table.obs, "column")
    e, which, names = _pool(model, sdata, split, named)
    labels = None if groupby is None else obs_of_slide(e.slide, groupby)
    ranks, similarity = _compare(e, which, direction, scale)
    if named is None:
        order = np.argsort(ranks, kind="stable")
        queries = order[np.linspace(0, len(order) - 1, min(n_queries, len(order))).astype(int)]
    else:
        queries = names.get_indexer(named)
    cosine = similarity(queries)
    hits = np.argsort(-cosine, axis=1, kind="stable")[:, : int(n_hits)]
    partner = np.take_along_axis(cosine, queries[:, None], axis=1)[:, 0]
    captions = []
    for q, one in zip(queries, partner, strict=True):
        captions.append(f"{names[q]}\npartner: {one:.2f},\nranks {ranks[q]} of {len(which)}")
    rows = _Rows(which[np.column_stack([queries, hits])], np.take_along_axis(cosine, hits, axis=1), captions)
    figure = _gallery(e, rows, labels)
    figure.suptitle(f"{direction}, {scale}: {len(which)} tiles of {e.slide.name}", fontsize=10)
    finish(figure, show, save)
    return figure


def _pool(
    model: SIGMMA, sdata: Tissue | None, split: str, named: list[str] | None
) -> tuple[SlideEmbedding, NDArray[np.int64], pd.Index]:
    """Slide of queries and candidates, positions of these tiles, and their names."""
    from sigmma_sc.infer.tiles import tile_obs

    for e, which in model.embed_split(sdata, split):
        names = tile_obs(model.data, e.slide).index[which]
        if len(which) > 1 and (named is None or set(named) <= set(names)):
            return e, which, names
    among = f" with {', '.join(named)} among them" if named else ""
    raise SetupError(f"No slide has two tiles of split={split!r}{among}. Name tiles of one slide and of that split.")


def _compare(
    e: SlideEmbedding, which: NDArray[np.int64], direction: str, scale: str
) -> tuple[NDArray[np.int64], Callable[[NDArray[np.int64]], NDArray[np.float32]]]:
    """Rank of the partner of each tile, and a function from positions of tiles to similarities with all tiles."""
    from sigmma_sc.infer.scales import at_scale, unit

    towers = {}
    for name in ("image", "transcriptome"):
        towers[name] = {s: z[which] for s, z in e.tower(name).items()}
    scale = next(iter(e.image)) if len(e.image) == 1 else scale
    ranks = tile_ranks(towers["image"], towers["transcriptome"], np.zeros(len(which)))[0][direction, scale]
    source, target = direction.split("→")
    query = unit(at_scale(towers[source], scale))
    candidates = unit(at_scale(towers[target], scale))
    return ranks, lambda some: query[some] @ candidates.T


class _Rows(NamedTuple):
    """Tiles of each row, the query first; the similarity of its hits; and its caption."""

    tiles: NDArray[np.int64]
    similarity: NDArray[np.float32]
    captions: list[str]


def _gallery(e: SlideEmbedding, rows: _Rows, labels: pd.Series | None) -> Figure:
    """Tiles of each row as images above cells."""
    import matplotlib.pyplot as plt

    shown = np.unique(rows.tiles)
    images = dict(zip(shown.tolist(), _pixels(e, shown), strict=True))
    n_rows, n_columns = rows.tiles.shape
    size = (1.6 * n_columns + 0.6, 3.45 * n_rows + 0.5)
    figure, axes = plt.subplots(2 * n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    in_rows = zip(axes.reshape(n_rows, 2, n_columns), rows.tiles.tolist(), rows.similarity, rows.captions, strict=True)
    for pairs, tiles, similarity, caption in in_rows:
        for pair, tile in zip(pairs.T, tiles, strict=True):
            _draw(pair, e, tile, images[tile], labels, partner=tile == tiles[0])
        pairs[0, 0].set_ylabel(caption, fontsize=8)
        pairs[0, 0].set_title("query", fontsize=9)
        for column, cosine in enumerate(similarity, start=1):
            pairs[0, column].set_title(f"hit {column}: {cosine:.2f}", fontsize=9)
    scale_bar(axes[0, 0])
    if labels is not None:
        dots = [
            plt.Line2D([], [], marker="o", ls="", color=c, label=n)
            for n, c in colours_of(labels, e.slide.table.uns).items()
        ]
        figure.legend(handles=dots, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def _pixels(e: SlideEmbedding, which: NDArray[np.int64]) -> NDArray[np.uint8]:
    crops = np.column_stack([e.tiles.origins[which], np.full(len(which), e.tiles.side)])
    out = np.empty((len(which), PIXELS, PIXELS, 3), np.uint8)
    for index, pixels in read_crops(e.slide, crops, PIXELS):
        out[index] = pixels
    return out


def _draw(
    pair: Sequence[Axes],
    e: SlideEmbedding,
    tile: int,
    image: NDArray[np.uint8],
    labels: pd.Series | None,
    partner: bool,
) -> None:
    """Image of one tile above its cells."""
    cells = e.tiles.take(np.array([tile])).cells
    xy = (e.slide.xy[cells] - e.tiles.origins[tile]) * e.slide.microns_per_pixel
    side = e.tiles.side * e.slide.microns_per_pixel
    pair[0].imshow(image, extent=(0, side, side, 0))
    colours = "#444444" if labels is None else each_colour(labels.iloc[cells], e.slide.table.uns)
    pair[1].scatter(xy[:, 0], xy[:, 1], s=6, c=colours, linewidths=0)
    for ax in pair:
        ax.set(xlim=(0, side), ylim=(side, 0), xticks=[], yticks=[], aspect="equal")
        for spine in ax.spines.values():
            spine.set(color=FRAME["partner" if partner else "other"], linewidth=2.5 if partner else 0.8)
