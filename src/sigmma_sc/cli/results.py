"""Results of a run: a folder of files, and tables on the terminal."""

from __future__ import annotations

import tempfile
import warnings
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sigmma_sc import _keys
from sigmma_sc._files import fresh_folder, recover, require_writable
from sigmma_sc._progress import step
from sigmma_sc.cli.runs import Source, write_run
from sigmma_sc.cli.tables import draw_registration, draw_training, write_tables
from sigmma_sc.cli.words import with_options
from sigmma_sc.errors import ExistsError, SetupError, UnlikeWarning, WriteError
from sigmma_sc.reporting.settings import settings_of
from sigmma_sc.tissue.setup import common_setup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anndata import AnnData
    from spatialdata import SpatialData

    from sigmma_sc.model import SIGMMA

RESULTS = (
    "model",
    "retrieval.csv",
    "history.csv",
    "niches.parquet",
    "niches.csv",
    "markers.csv",
    "niches*.png",
    "registration*.png",
    "training.png",
    "cells.zarr",
    "slides",
    "tiles.zarr",
    "expression.h5ad",
    "run.json",
    "report.html",
)
"""Patterns of the names in a folder of results."""

MOST_SHOWN = 10
"""Tiles of a search that are printed."""

console = Console()


class Steps:
    """Steps of a command, counted as they begin."""

    def __init__(self, total: int):
        self.total = total
        self.begun = 0

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """The next step."""
        self.begun += 1
        return step(self.begun, self.total, name)


def require_free(out: Path, overwrite: bool) -> None:
    """Raise :class:`ExistsError` for a folder that holds other files or must not be replaced.

    :class:`WriteError` where nothing can be written. What a run that was killed at its end left is restored first.
    """
    recover(out.absolute())
    require_writable(out)
    if not out.exists():
        return
    if not overwrite:
        raise ExistsError(f"{out} exists. Choose another --out, or pass --overwrite to replace it.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / "model" / "model.json").exists()):
        raise ExistsError(f"{out} exists and holds no results of sigmma-sc; it is not replaced. Choose another --out.")
    if others := sorted(p.name for p in out.iterdir() if not any(map(p.match, RESULTS))):
        raise ExistsError(f"{out} holds more than results ({', '.join(others)}), which would be lost. Change --out.")


def finish(
    model: SIGMMA,
    sdata: SpatialData,
    out: Path,
    source: Source | None,
    steps: Steps,
    resolution: float | str,
    truth: tuple[str, ...] = (),
) -> None:
    """Embed, cluster, plot, score and write to ``out``, which is replaced; after an error nothing is written.

    ``source`` is where the images are; without one they are written too. ``truth`` names columns of ``obs`` to compare the
    niches with.
    """
    from sigmma_sc import tl
    from sigmma_sc.tissue.setup import get_table

    with steps("Embedding"):
        model.write_embeddings(sdata, overwrite=True)
    adata = get_table(sdata, common_setup(sdata))
    scales = model.embedder.towers.embedded
    with steps("Niches"):
        if scales:  # pseudobulk instead of the cell graph embeds no cells
            model.niches = tl.niches(adata, scales, resolution)
    # Of these slides: the model may have held out tiles of others.
    split = "test" if (sdata.tables[_keys.TILES].obs["split"] == "test").any() else "all"
    with steps("Scores and files"), model_kept(model), fresh_folder(out) as folder:
        recall = model.evaluate_retrieval(None if sdata is model.sdata else sdata, split)
        model.save(folder / "model")
        recall.to_csv(folder / "retrieval.csv", index=False)
        pd.concat({k: v.iloc[:, 0] for k, v in model.history.items()}, axis=1).to_csv(folder / "history.csv")
        draw_training(model, folder)
        lacking = draw_registration(sdata, folder)
        if scales:
            draw_niches(adata, scales, truth, folder)
            lacking += write_tables(adata, scales, common_setup(sdata).layer, folder)
        (sdata if source is None else without_images(sdata)).write(folder / "cells.zarr")
        write_run(folder, source, settings_of(model, common_setup(sdata), adata, None))
    say(lacking)
    print_retrieval(recall, split)
    if truth and scales:
        print_table("Niches against the truth, adjusted Rand index", _agreement(adata, scales, truth))
    print_written(out)


@contextmanager
def model_kept(model: SIGMMA) -> Iterator[None]:
    """Save the model to the folder for temporary files where the results cannot be written, and say so."""
    try:
        yield
    except WriteError as error:
        try:
            elsewhere = Path(tempfile.mkdtemp(prefix="sigmma-sc-")) / "model"
            model.save(elsewhere)
        except OSError:  # a WriteError is one
            raise error from None
        raise WriteError(
            f"The results cannot be written: {error.__cause__ or error}. The trained model is kept in {elsewhere}. Free space, "
            "and pass that folder to 'sigmma-sc embed --model'."
        ) from error


def finish_he_only(
    model: SIGMMA, sdata: SpatialData, out: Path, source: Source, interval: float | None, withhold: float | None
) -> None:
    """Embed the tiles of images alone, predict their expression and write; after an error nothing is written.

    ``interval`` and ``withhold`` are those of :meth:`sigmma_sc.SIGMMA.predict_expression`.
    """
    model.write_embeddings(sdata, overwrite=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnlikeWarning)  # printed below
            expression = model.predict_expression(sdata, interval=interval, withhold=withhold)
    except SetupError as error:  # a model of embeddings alone, without counts
        if interval is not None:
            raise
        expression = None
        console.print(f"No expression.h5ad is written. {error}", highlight=False)
    with fresh_folder(out) as folder:
        model.save(folder / "model")
        if expression is not None:
            expression.write_h5ad(folder / "expression.h5ad")
        without_images(sdata).write(folder / "tiles.zarr")
        tiles = sdata.tables[_keys.TILES]
        write_run(folder, source, settings_of(model, common_setup(sdata), tiles, None))
    if expression is not None:
        _print_likeness(expression)
    print_written(out)


def _print_likeness(expression: AnnData) -> None:
    """Print how many tiles are unlike the training tissue, or that it cannot be told."""
    if _keys.ALIKE not in expression.obs:
        told = "The model cannot tell which tiles are unlike the training tissue. None is withheld."
    elif "withhold" not in expression.uns[_keys.UNS]:
        told = "No tile is withheld."
    else:
        unlike = expression.uns[_keys.UNS]["unlike"]
        told = (
            f"{unlike} They are withheld (NaN); --keep-all keeps them."
            if unlike
            else "No tile with tissue is withheld."
        )
    console.print(told, highlight=False)


def say(sentences: Iterable[str]) -> None:
    """Print sentences in the words of the command line."""
    for sentence in sentences:
        console.print(with_options(sentence), highlight=False, markup=False, soft_wrap=True)


def without_images(sdata: SpatialData) -> SpatialData:
    """The object without its images, which the user has already."""
    return sdata.subset([name for _, name, _ in sdata.gen_elements() if name not in sdata.images])


def print_written(out: Path) -> None:
    """Print what a folder of results holds."""
    names = ", ".join(sorted(p.name for p in out.iterdir()))
    console.print(f"Written to [bold]{escape(str(out))}[/bold]: {names}", soft_wrap=True)


def draw_niches(adata: AnnData, scales: tuple[str, ...], truth: tuple[str, ...], folder: Path) -> None:
    """A map of niches for every region."""
    from sigmma_sc import pl

    if "spatial" not in adata.obsm:
        console.print("No obsm['spatial'], so no map of niches is drawn.")
        return
    for region, part in adata.obs.groupby(adata.uns["spatialdata_attrs"]["region_key"], observed=True):
        name = "niches.png" if len(part) == adata.n_obs else f"niches_{region}.png"
        pl.niches(adata[part.index], scales, reference=truth, save=folder / name)


def _agreement(adata: AnnData, scales: tuple[str, ...], truth: tuple[str, ...]) -> pd.DataFrame:
    """Agreement of the niches of each scale with each column of the truth."""
    from sigmma_sc.metrics.niches import niche_agreement

    rows = []
    for scale in scales:
        labels = adata.obs[f"sigmma_niche_{scale}"]
        row: dict[str, object] = {"scale": scale, "niches": len(labels.cat.categories)}
        for column in truth:
            row[column] = f"{niche_agreement(labels, adata.obs[column])['ari']:.3f}"
        rows.append(row)
    return pd.DataFrame(rows)


def print_retrieval(recall: pd.DataFrame, split: str) -> None:
    """Print recall of every slide with its pool and chance level, a row for each scale and a column for each direction."""
    percents = [c.removeprefix("recall@") for c in recall if c.startswith("recall@")]
    scored = "tiles, all of the slide" if split == "all" else f"{split} tiles"
    for slide, rows in recall.groupby("slide", sort=False):
        chance = " / ".join(f"{rows[f'chance@{p}'].iloc[0]:.3f}" for p in percents)
        shown: dict[str, dict[str, str]] = {}
        for _, row in rows.iterrows():
            values = " / ".join(f"{row[f'recall@{p}']:.3f}" for p in percents)
            shown.setdefault(row["scale"], {"scale": row["scale"]})[row["direction"]] = values
        print_table(
            f"{slide}: retrieval among {rows['pool'].iloc[0]} {scored}, recall at {' / '.join(percents)} (chance {chance})",
            pd.DataFrame(shown.values()),
        )


def print_found(found: pd.DataFrame) -> None:
    """Print how many tiles of each slide are alike, and the most similar ones of all."""
    by_slide = found.groupby("slide", observed=True)["alike"].agg(["sum", "size"])
    for slide, (n, tested) in by_slide.sort_values("sum", ascending=False, kind="stable").iterrows():
        told = f"{n:,} of {tested:,} tiles alike" if n else f"nothing alike among {tested:,} tiles"
        if slide in found.attrs["undecided"]:
            told = f"too few unrelated tiles of the model ({found.attrs['n_unrelated']}) to tell"
        console.print(f"{slide}: {told}", highlight=False)
    shown = found.head(MOST_SHOWN)[["tile", "x", "y", "similarity", "p_value", "alike"]]
    # A float32 is rounded to decimals only as a float64.
    shown = shown.astype({"similarity": float}).round({"x": 0, "y": 0, "similarity": 3, "p_value": 4})
    print_table(f"The {len(shown)} most similar tiles", shown)


def print_table(title: str, frame: pd.DataFrame) -> None:
    """Print a data frame without its index."""
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for column in frame.columns:
        shown.add_column(str(column))
    for row in frame.itertuples(index=False):
        shown.add_row(*map(str, row))
    console.print(f"[bold]{escape(title)}[/bold]", soft_wrap=True, highlight=False)
    console.print(shown)
