"""Tables and figures of a run, for those who do not open a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sigmma_sc.errors import MissingKeyError, SetupError
from sigmma_sc.reporting.genes import with_columns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from sigmma_sc.model import SIGMMA

N_MARKERS = 25
"""Genes listed of each niche."""


def niche_table(adata: AnnData, scales: Sequence[str], sample_key: str | None = None) -> pd.DataFrame:
    """Cell, region, niche and confidence of each scale, rows in the order of the table.

    The cell is that of the column which names the instances of regions, as of Xenium's cells. Before it stands the sample,
    where a column of ``obs`` is named that tells it.
    """
    names = adata.uns["spatialdata_attrs"]
    columns = {} if sample_key is None else {"sample": adata.obs[sample_key].astype(str).to_numpy()}
    columns |= {
        "cell_id": adata.obs[names["instance_key"]].astype(str).to_numpy(),
        "region": adata.obs[names["region_key"]].astype(str).to_numpy(),
    }
    for scale in scales:
        columns[f"niche_{scale}"] = adata.obs[f"sigmma_niche_{scale}"].astype("string").to_numpy(dtype=object)
        columns[f"confidence_{scale}"] = adata.obs[f"sigmma_niche_{scale}_confidence"].to_numpy()
    return pd.DataFrame(columns)


def marker_table(adata: AnnData, scales: Sequence[str], layer: str | None) -> pd.DataFrame:
    """The :data:`N_MARKERS` genes of each niche that stand out most, by Welch's t-test; the table is not changed."""
    from scanpy.get import rank_genes_groups_df

    from sigmma_sc.tl.rank_niche_genes import rank_niche_genes

    own = with_columns(adata, [f"sigmma_niche_{scale}" for scale in scales], layer)
    parts = []
    for scale in scales:
        try:
            # As in the report: Wilcoxon's test takes minutes where this one takes seconds.
            rank_niche_genes(own, scale, method="t-test", key_added="markers")
        except SetupError:
            if own.obs[f"sigmma_niche_{scale}"].nunique() > 1:
                raise
            continue  # nothing to compare a single niche with
        for niche in own.uns["markers"]["names"].dtype.names:
            ranked = rank_genes_groups_df(own, group=niche, key="markers").head(N_MARKERS)
            named = ranked.rename(columns={"names": "gene", "scores": "score", "logfoldchanges": "log2_fold_change"})
            named.insert(0, "niche", niche)
            named.insert(0, "scale", scale)
            parts.append(named[["scale", "niche", "gene", "score", "log2_fold_change"]])
    columns = ["scale", "niche", "gene", "score", "log2_fold_change"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def write_tables(
    adata: AnnData, scales: Sequence[str], layer: str | None, folder: Path, sample_key: str | None = None
) -> list[str]:
    """Write ``niches.parquet``, ``niches.csv`` and ``markers.csv``; a sentence for what cannot be made."""
    table = niche_table(adata, scales, sample_key)
    table.to_parquet(folder / "niches.parquet", index=False)
    table.to_csv(folder / "niches.csv", index=False)
    try:
        marker_table(adata, scales, layer).to_csv(folder / "markers.csv", index=False)
    except (SetupError, MissingKeyError) as error:  # embeddings of another model, without counts
        return [f"No markers.csv is written. {error}"]
    return []


def draw_training(model: SIGMMA, folder: Path) -> None:
    """Write ``training.png``, if there is a history."""
    from sigmma_sc import pl

    if model.history:
        pl.training(model.history, save=folder / "training.png")


def draw_registration(sdata: SpatialData, folder: Path) -> list[str]:
    """Write ``registration.png``, or that of each slide; a sentence for what cannot be made."""
    from sigmma_sc import pl
    from sigmma_sc.tissue.setup import slides_of

    lacking = []
    slides = slides_of(sdata)
    for slide in slides:
        name = "registration.png" if len(slides) == 1 else f"registration_{slide.name}.png"
        try:
            pl.registration(sdata, slide.name, save=folder / name)
        except (SetupError, MissingKeyError) as error:  # such as cells without counts whose nuclei decide nothing
            lacking.append(f"No {name} is written. {error}")
    return lacking
