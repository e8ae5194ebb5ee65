"""The report of a run."""

from __future__ import annotations

import warnings
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_model, require_name, require_path
from sigmma_sc._files import fresh_file
from sigmma_sc.errors import ExistsError, ExpressionWarning, MissingKeyError, SetupError
from sigmma_sc.features.data import MIN_TISSUE
from sigmma_sc.reporting.genes import TopGenes, markers, top_genes
from sigmma_sc.reporting.maps import cell_values, slide_map
from sigmma_sc.reporting.niches import nesting, niches_of
from sigmma_sc.reporting.page import Contents, html_page
from sigmma_sc.reporting.pictures import figure_picture, tile_pictures
from sigmma_sc.reporting.scores import gallery, retrieval, roles_of_tiles, scored_tiles
from sigmma_sc.reporting.settings import settings_of
from sigmma_sc.tissue.setup import objects_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sigmma_sc.model import SIGMMA
    from sigmma_sc.reporting.niches import Niche
    from sigmma_sc.reporting.scores import Query, Scored
    from sigmma_sc.tissue.frame import Slide


class _Run(NamedTuple):
    """What a report is of."""

    model: SIGMMA
    sdata: SpatialData
    slides: list[Slide]
    cells: AnnData
    tiles: AnnData  # tables["sigmma_tiles"]
    scales: tuple[str, ...]
    key: str
    groupby: str | None


def report(
    model: SIGMMA,
    sdata: SpatialData | None,
    path: str | Path,
    *,
    key: str = "sigmma_niche",
    groupby: str | None = None,
    title: str = "sigmma-sc report",
    command: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a run to one HTML file that needs nothing else: no network, no server, no other file.

    The page has a map of the niches on the H&E at every scale, to zoom and to click on cells. It shows each niche with its
    genes, cell types and example tiles, how the scales nest, and which tissue was left out. Registration, losses, retrieval,
    the reliability of genes, settings and versions follow. Printed from a browser, it shows every section and every map.

    Parameters
    ----------
    model
        Trained :class:`sigmma_sc.SIGMMA`.
    sdata
        Object with the embeddings and niches of the model; ``None`` for the one trained on.
    path
        File to write, such as ``"report.html"``.
    key
        Prefix of the columns of niches, ``key_added`` of :func:`sigmma_sc.tl.niches`.
    groupby
        Column of ``obs`` with cell types or other labels, for the composition of the niches.
    title
        Title of the page.
    command
        Command or call that made the run, shown with the settings.
    overwrite
        Replace the file.

    Returns
    -------
    Path of the file.

    Raises
    ------
    ExistsError
        The file exists and ``overwrite`` is not set, or is a folder.
    MissingKeyError
        The object has no niches or no tiles of the model, or no column ``groupby``.
    SetupError
        The model embeds no cells, its tiles have another width, or there are several objects.

    See Also
    --------
    sigmma_sc.tl.niches : Find the niches.
    sigmma_sc.tl.rank_niche_genes : How the genes of each niche are ranked.

    Notes
    -----
    The genes shown of a cell are the five whose log-normalised counts exceed the mean over all cells most. Positions are
    rounded to 65,535ths of the image, confidences to whole percents. The object is not changed. Genes of niches are ranked
    by Welch's t-test, which takes seconds where Wilcoxon's takes minutes.

    A section that cannot be made, such as genes of a model without counts, says so in its place.

    Examples
    --------
    >>> path = sg.report(model, sdata, "report.html", groupby="cell_type")
    >>> path.stat().st_size < 15_000_000
    True
    """
    require_path(path, "path")
    for value, what in ((key, "key"), (title, "title")):
        require_name(value, what)
    for optional, what in ((groupby, "groupby"), (command, "command")):
        if optional is not None:
            require_name(optional, what)
    file = Path(path).expanduser()
    require_free_file(file, overwrite)
    run = _run(model, sdata, key, groupby)
    page = html_page(_contents(run, title, command))
    file.parent.mkdir(parents=True, exist_ok=True)
    with fresh_file(file) as fresh:
        fresh.write_text(page, encoding="utf-8")
    return file


def require_free_file(file: Path, overwrite: bool) -> None:
    """Raise :class:`ExistsError` unless the file can be written."""
    if file.is_dir():
        raise ExistsError(f"{file} is a folder. Pass the path of a file, such as {file / 'report.html'}.")
    if file.exists() and not overwrite:
        raise ExistsError(f"{file} exists. Choose another path, or pass overwrite=True to replace it.")


def _run(model: SIGMMA, sdata: SpatialData | None, key: str, groupby: str | None) -> _Run:
    """The run with every name checked, before anything is computed."""
    require_model(model)
    towers = model.embedder.towers
    tissue = model.sdata if sdata is None else sdata
    objects = objects_of(tissue)
    if len(objects) > 1 or isinstance(tissue, dict):
        raise SetupError(f"sdata is a dict of {len(objects)} objects. Pass one of them, for a report of each.")
    if not towers.embedded:
        raise SetupError("A model with cells='genes' embeds no cells, so there are no niches to report.")
    slides = model.resolve(None if tissue is model.sdata else tissue)
    if any(slide.region is None for slide in slides):
        raise SetupError("sdata was set up with table_key=None and has no cells to report.")
    cells = slides[0].table
    for scale in towers.embedded:
        require_key(f"{key}_{scale}", cells.obs, "column", "Call sg.tl.niches(adata) first.")
    if groupby is not None:
        require_key(groupby, cells.obs, "groupby")
    require_key(_keys.TILES, tissue.tables, "table", "Call model.write_embeddings(sdata) first.")
    tiles = tissue.tables[_keys.TILES]
    _require_fit(tiles, slides, towers.aligned, model.config.n_latent)
    return _Run(model, tissue, slides, cells, tiles, towers.embedded, key, groupby)


def _require_fit(tiles: AnnData, slides: Sequence[Slide], scales: Iterable[str], width: int) -> None:
    """Raise unless a table of tiles is of these slides and of a model of this width."""
    again = "Call model.write_embeddings(sdata, overwrite=True) again."
    for scale in scales:
        for tower in ("image", "transcriptome"):
            require_key(f"{tower}_{scale}", tiles.obsm, "embedding of tiles", again)
            if tiles.obsm[f"{tower}_{scale}"].shape[1] != width:
                raise SetupError(
                    f"tables[{_keys.TILES!r}] holds embeddings of width {tiles.obsm[f'{tower}_{scale}'].shape[1]}, the model's "
                    f"is {width}. {again}"
                )
    for slide in slides:
        n = int((tiles.obs["slide"].astype(str) == slide.name).sum())
        if n != len(slide.tiles):
            raise SetupError(
                f"tables[{_keys.TILES!r}] holds {n} tiles of slide {slide.name!r}, which has {len(slide.tiles)}. {again}"
            )


def _contents(run: _Run, title: str, command: str | None) -> Contents:
    model, obs = run.model, run.tiles.obs
    layer = run.slides[0].setup.layer
    tissue = (obs["tissue"] >= MIN_TISSUE).to_numpy()
    usable = tissue & (obs["n_cells"] >= model.config.min_cells).to_numpy()
    niches = {}
    for scale in run.scales:
        niches[scale] = niches_of(run.cells, f"{run.key}_{scale}", run.groupby, run.slides, model.config.min_cells)
    genes: TopGenes | str
    try:
        genes = top_genes(run.cells, layer)
        ranked = markers(run.cells, run.scales, run.key, layer)
    except SetupError as error:  # a table of embeddings alone, without counts
        genes, ranked = f"No genes are shown. {error}", {}
    scored = scored_tiles(run.tiles, usable, model.embedder.towers.aligned)
    table, queries = _retrieved(run.tiles, scored)
    pairs = zip(run.scales, run.scales[1:], strict=False)
    return Contents(
        title=title,
        made=date.today().isoformat(),
        niches=niches,
        markers=ranked,
        groupby=run.groupby,
        nesting={(a, b): nesting(run.cells, f"{run.key}_{a}", f"{run.key}_{b}") for a, b in pairs},
        roles=roles_of_tiles(obs, usable, tissue),
        cells=_cells(run),
        registration=_registration(run.sdata),
        losses=_losses(model),
        retrieval=table,
        split=scored.split,
        queries=queries,
        reliability=_reliability(model),
        settings=settings_of(model, run.slides[0].setup, run.cells, command),
        tile_names=list(map(str, run.tiles.obs_names)),
        pictures=_pictures(run, niches, queries),
        slides=_maps(run, genes),
        genes=list(map(str, run.cells.var_names)) if isinstance(genes, TopGenes) else [],
        genes_note="" if isinstance(genes, TopGenes) else genes,
    )


def _maps(run: _Run, genes: TopGenes | str) -> list[dict[str, Any]]:
    values = cell_values(run.cells, run.scales, run.key, genes if isinstance(genes, TopGenes) else None)
    slide_of_tile = run.tiles.obs["slide"].astype(str)
    n = len(run.slides)
    return [slide_map(slide, run.tiles.obs[slide_of_tile == slide.name], values, n) for slide in run.slides]


def _cells(run: _Run) -> pd.DataFrame:
    """Numbers of cells of each slide, and of those without embedding or niche."""
    import pandas as pd

    rows = []
    for slide in run.slides:
        row: dict[str, object] = {
            "slide": slide.name,
            "cells": len(slide.rows),
            "not under the image": int((~slide.under_image).sum()),
        }
        for scale in run.scales:
            row[f"without a {scale} niche"] = int(run.cells.obs[f"{run.key}_{scale}"].iloc[slide.rows].isna().sum())
        rows.append(row)
    return pd.DataFrame(rows).set_index("slide")


def _registration(sdata: SpatialData) -> list[tuple[str, dict[str, Any], str]]:
    """Slide, record and figure of each registration that the object keeps."""
    from sigmma_sc.pl.register import register

    found = []
    for region, record in sdata.attrs.get(_keys.REGISTRATION, {}).items():
        axes = register(sdata, slide=region, show=False)
        found.append((str(region), dict(record), figure_picture(axes[0].figure.figure)))
    return found


def _losses(model: SIGMMA) -> str:
    from sigmma_sc.pl.training import training

    return figure_picture(training(model.history, show=False)[0].figure.figure)


def _retrieved(tiles: AnnData, scored: Scored) -> tuple[pd.DataFrame | str, list[Query]]:
    try:
        return retrieval(tiles, scored), gallery(tiles, scored)
    except SetupError as error:  # a slide of one tile
        return f"Retrieval cannot be scored. {error}", []


def _reliability(model: SIGMMA) -> pd.DataFrame | str:
    try:
        with warnings.catch_warnings():
            # The page tells how many genes are without.
            warnings.simplefilter("ignore", ExpressionWarning)
            return model.get_gene_reliability()
    except (SetupError, MissingKeyError) as error:  # a model without counts, or on other slides than its own
        return f"The reliability of genes is not known. {error}"


def _pictures(run: _Run, niches: dict[str, list[Niche]], queries: list[Query]) -> dict[tuple[int, int], str]:
    """Pictures of tiles by slide and tile."""
    wanted: list[tuple[int, int]] = []
    for of_scale in niches.values():
        for niche in of_scale:
            wanted += niche.tiles
    number = {slide.name: k for k, slide in enumerate(run.slides)}
    slide_of_tile = run.tiles.obs["slide"].astype(str).to_numpy()
    first = {name: int(np.flatnonzero(slide_of_tile == name)[0]) for name in number}
    for query in queries:
        for row in (query.row, *query.hits):
            wanted.append((number[slide_of_tile[row]], row - first[slide_of_tile[row]]))
    found = {}
    for k, slide in enumerate(run.slides):
        tiles = np.array([tile for which, tile in wanted if which == k], np.int64)
        for tile, picture in tile_pictures(slide, tiles).items():
            found[k, tile] = picture
    return found
