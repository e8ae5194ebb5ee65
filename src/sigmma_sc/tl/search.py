"""Search an index for tiles that are alike to a region, to genes or to labelled cells."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from sigmma_sc import _keys
from sigmma_sc._checks import (
    require_choice,
    require_fdr,
    require_key,
    require_list,
    require_stored_name,
    require_whole,
    require_withhold,
)
from sigmma_sc.errors import ExistsError, SetupError, UnlikeWarning
from sigmma_sc.tissue.setup import objects_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sigmma_sc.infer.index import TileIndex
    from sigmma_sc.infer.search import Query
    from sigmma_sc.tissue.setup import Tissue

MODALITIES = ("image", "transcriptome")
TILES, GENES = "tiles", "genes"
"""Keys of a query; any other is a column of labels."""

HOW = "Pass {'tiles': […]}, {'genes': […]}, {column of labels: label}, or rows of model.get_tile_representation(…, scale='all')."


def search(
    query: AnnData | Mapping[str, str | Sequence[str]],
    index: TileIndex | str | Path,
    modality: Literal["image", "transcriptome"] = "image",
    scale: str = "all",
    query_modality: Literal["image", "transcriptome"] = "image",
    n_tiles: int = 10,
    fdr: float = 0.1,
    withhold: float | None = 0.01,
    sdata: Tissue | None = None,
    key_added: str | None = None,
) -> pd.DataFrame:
    """Find the tiles that are most alike to a query, over all slides of an index; page *Search*.

    The query is one point of the shared space, so that both towers can be searched with it. It is compared with every tile of
    the index. The tiles of the model whose measured expression is unrelated to the query give the similarities to be
    expected by chance.

    Parameters
    ----------
    query
        What to search for, one of:

        - ``{"tiles": [...]}``: tiles of the index by name, as a region;
        - ``{"genes": [...]}``: the training tiles that express these genes most;
        - ``{"cell_type": "tumour"}``: the tiles of the index with the largest share of cells of this label, where the
          index holds labels of that column;
        - tiles of any slide: rows of :meth:`sigmma_sc.SIGMMA.get_tile_representation` of the same model, with its ``scale``.
    index
        Index of :meth:`sigmma_sc.SIGMMA.build_index`, or its folder.
    modality
        Tower by which tiles are compared. With ``"transcriptome"`` these are the tiles with cells.
    scale
        One scale, or ``"all"``: the mean over the scales.
    query_modality
        Tower by which ``{"tiles": …}`` are described. The others have theirs: genes and labels come from transcriptomes.
    n_tiles
        Tiles that describe genes or a label: those with the highest mean of standardised log expression, or share of
        cells.
    fdr
        Level of false discoveries among the tiles that are called alike, by slide; see Notes.
    withhold
        Tiles with ``sigmma_alike`` of at most this level are not tested: their ``p_value`` is missing. ``None`` tests all.
    sdata
        Object, or objects by name, with the tiles of ``model.write_embeddings(sdata)``, to write the result to. ``None`` writes
        nothing.
    key_added
        With ``sdata``, ``obs[key_added]`` of ``tables["sigmma_tiles"]`` says which tiles are alike, and
        ``obs[f"{key_added}_similarity"]`` how much. Both are missing for tiles that are not listed. Columns that are there
        already are not replaced.

    Returns
    -------
    Data frame with one row for each tile, most alike first: ``slide``, ``tile``, its centre in µm from the upper left corner
    of the image ``x``, ``y``, ``similarity`` (mean cosine), ``p_value``, ``alike``, and ``split`` of the tile in training.
    Tiles that the query is made of are left out. ``attrs["n_unrelated"]`` is the number of unrelated tiles of the model,
    ``attrs["undecided"]`` the slides on which no tile is alike and there were too few of them to tell.

    Raises
    ------
    MissingKeyError
        A tile, gene or label is not in the index.
    SetupError
        An argument is out of range. The tiles were embedded by another model or at another scale. Or too few tiles of the
        model are unrelated to the query.
    ExistsError
        A column exists already; nothing is written then.

    Warns
    -----
    UnlikeWarning
        No tile of a slide is alike, and a tenth of its tiles or more would have to be for any to be called so.

    See Also
    --------
    sigmma_sc.pl.search : Map the result.
    sigmma_sc.tl.map_to_image : Shares of labels for every tile.

    Notes
    -----
    ``p_value`` is the rank of the similarity among those of unrelated tiles (conformal p-value). Of new tiles that are
    unrelated to the query, at most a share p has a p-value of p or less, if they are like the unrelated tiles of the model.
    Unrelated are tiles whose measured expression does not correlate with that of the query, both as differences from the
    mean. Benjamini and Hochberg's rule is applied to the tiles of each slide. A slide of unrelated tiles alone has any
    alike tile with a probability of at most ``fdr``. Of n unrelated tiles of the model the smallest p-value is 1 / (n + 1):
    a slide of m tiles needs ``m / ((n + 1) fdr)`` of them to be called alike. Neighbouring tiles are not independent, and tiles
    of training are fitted; the page *Search* shows what was measured.

    References
    ----------
    Bates, Candès, Lei, Romano & Sesia: Testing for outliers with conformal p-values. Annals of Statistics 51, 2023.

    Examples
    --------
    >>> index = model.build_index("index", labels=["cell_type"], overwrite=True)
    >>> found = sg.tl.search({"genes": ["EPCAM", "KRT19"]}, index, fdr=0.5)  # a small model: few tiles are unrelated
    >>> found.columns.tolist()
    ['slide', 'tile', 'x', 'y', 'similarity', 'p_value', 'alike', 'split']
    >>> bool(found["similarity"].iloc[0] > found["similarity"].iloc[-1])
    True
    >>> region = model.get_tile_representation(scale="all")[40:43]
    >>> len(sg.tl.search(region, "index", fdr=0.5))
    79
    """
    from sigmma_sc.infer.index import TileIndex
    from sigmma_sc.infer.search import alike_by_slide, p_values, require_unrelated, similarities

    require_choice(modality, MODALITIES, "modality")
    require_choice(query_modality, MODALITIES, "query_modality")
    require_whole(n_tiles, "n_tiles")
    require_fdr(fdr)
    require_withhold(withhold)
    tables = _tables(sdata, key_added)
    if not isinstance(query, (AnnData, Mapping)):
        raise SetupError(f"query={query!r} is a {type(query).__name__}. {HOW}")
    if not isinstance(index, (TileIndex, str, Path)):
        raise SetupError(
            f"index={index!r} is a {type(index).__name__}. Pass the result of model.build_index(), or its folder."
        )
    index = index if isinstance(index, TileIndex) else TileIndex.read(index)
    require_choice(scale, (*index.scales, "all"), "scale")
    wanted = _query(query, index, scale, query_modality, int(n_tiles))
    found, null = similarities(wanted, index, modality, scale)
    require_unrelated(len(null), fdr)
    p = p_values(found, null)
    obs = index.obs
    if withhold is not None:
        p[(obs[_keys.ALIKE] <= withhold).to_numpy()] = np.nan
    listed = np.isfinite(found)
    listed[wanted.own] = False
    p[~listed] = np.nan
    out = pd.DataFrame(
        {
            "slide": obs["slide"].array,
            "tile": obs.index,
            "x": obs["x"].to_numpy().round(3),
            "y": obs["y"].to_numpy().round(3),
            "similarity": found,
            "p_value": p,
            "alike": alike_by_slide(p, obs["slide"].cat.codes.to_numpy(), fdr),
            "split": obs["split"].array,
        }
    )
    out = out[listed].sort_values("similarity", ascending=False, kind="stable", ignore_index=True)
    out.attrs = {
        "undecided": _undecided(out, len(null), fdr),
        "modality": modality,
        "scale": scale,
        "fdr": float(fdr),
        "n_unrelated": len(null),
        "tile_size": index.tile_size,
    }
    for table in tables:
        rows = out.set_index("tile").reindex(table.obs_names)
        table.obs[key_added] = rows["alike"].astype("boolean").array
        table.obs[f"{key_added}_similarity"] = rows["similarity"].to_numpy()
    return out


def _undecided(found: pd.DataFrame, n_unrelated: int, fdr: float) -> list[str]:
    """Slides on which no tile is alike, and so few could not have been called so, with a warning for each."""
    from sigmma_sc.infer.search import RARE, fewest_alike

    slides = []
    for slide, tested in found[found["p_value"].notna()].groupby("slide", observed=True):
        fewest = fewest_alike(len(tested), n_unrelated, fdr)
        if fewest > RARE * len(tested) and not tested["alike"].any():
            slides.append(str(slide))
            warnings.warn(
                f"Slide {slide!r}: {n_unrelated} tiles of the model are unrelated to the query, so that tiles are called alike only "
                f"if {min(fewest, len(tested))} of {len(tested)} are. That none is says nothing. Train on more tissue or allow a "
                "larger fdr.",
                UnlikeWarning,
                stacklevel=3,
            )
    return slides


def _tables(sdata: Tissue | None, key_added: str | None) -> list[AnnData]:
    """Tables of tiles to write to, none without an object."""
    if sdata is None and key_added is None:
        return []
    if sdata is None or key_added is None:
        raise SetupError("sdata and key_added go together: the object to write to, and the name of the column.")
    require_stored_name(key_added, "key_added")
    tables = []
    for one in objects_of(sdata).values():
        require_key(_keys.TILES, one.tables, "table", "Call model.write_embeddings(sdata) first.")
        table = one.tables[_keys.TILES]
        for name in (key_added, f"{key_added}_similarity"):
            if name in table.obs:
                raise ExistsError(f"obs[{name!r}] of the tiles exists already. Pass another key_added.")
        tables.append(table)
    return tables


def _query(
    query: AnnData | Mapping[str, str | Sequence[str]], index: TileIndex, scale: str, modality: str, n_tiles: int
) -> Query:
    """The point of the shared space that a query is."""
    from sigmma_sc.infer.scales import at_scale
    from sigmma_sc.infer.search import Query, mean_of, of_genes

    own = np.empty(0, np.int64)
    if isinstance(query, AnnData):
        embeddings = _given(query, index, scale)
    else:
        if len(query) != 1:
            raise SetupError(f"query={query!r} must have one key. {HOW}")
        key, value = next(iter(query.items()))
        if key == TILES:
            own = _named(value, index, modality)
            embeddings = at_scale(index.embeddings[modality], scale)[own]
        elif key == GENES:
            require_list(value, GENES)
            for gene in value:
                require_key(gene, index.genes, "gene")
            embeddings = of_genes(index.reference, list(value), scale, n_tiles)
        else:
            own = _labelled(key, value, index, n_tiles)
            embeddings = at_scale(index.embeddings["transcriptome"], scale)[own]
    return Query(mean_of(embeddings, len(index.scales) if scale == "all" else 1), own)


def _given(query: AnnData, index: TileIndex, scale: str) -> NDArray[np.float32]:
    """Embeddings of tiles of another slide, checked against the index."""
    told = query.uns.get(_keys.UNS)
    if not isinstance(told, Mapping) or not told.keys() >= {"model", "scale"} or not query.n_obs:
        raise SetupError(f"query of {query.n_obs} rows is not of model.get_tile_representation(). {HOW}")
    if told["model"] != index.model:
        raise SetupError(
            "query was embedded by another model than the index, so that nothing can be compared. Embed both anew."
        )
    if told["scale"] != scale:
        raise SetupError(
            f"query was embedded at scale={told['scale']!r}, and scale={scale!r} is searched. Pass "
            f"model.get_tile_representation(…, scale={scale!r}), or scale={told['scale']!r} here."
        )
    return np.asarray(query.X, np.float32)


def _named(names: str | Sequence[str], index: TileIndex, modality: str) -> NDArray[np.int64]:
    """Positions of tiles by name."""
    require_list(names, TILES)
    for name in names:
        require_key(name, index.obs.index, "tile", "Names are those of index.obs; tiles without tissue are not in it.")
    own = index.obs.index.get_indexer(names)
    if modality == "transcriptome" and not index.has_cells[own].all():
        without = index.obs.index[own[~index.has_cells[own]]][0]
        raise SetupError(
            f"Tile {without!r} has too few cells for query_modality='transcriptome'. Use 'image', or leave it out."
        )
    return own


def _labelled(column: str, label: object, index: TileIndex, n_tiles: int) -> NDArray[np.int64]:
    """Positions of the tiles with cells that have the largest share of a label."""
    require_key(
        column, (TILES, GENES, *index.shares), "query", "model.build_index(labels=[…]) keeps columns of labels."
    )
    shares = index.shares[column]
    require_key(label, shares.columns, "label")
    share = np.where(index.has_cells, shares[label].fillna(0), 0)
    best = np.argsort(-share, kind="stable")[:n_tiles]
    best = best[share[best] > 0]
    if not len(best):
        raise SetupError(f"label={label!r}: no tile with cells has it. Choose another label.")
    return best
