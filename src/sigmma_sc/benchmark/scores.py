"""From what cells keep to tidy tables: one row for each cell, slide and figure; one for each gene."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sigmma_sc.metrics.expression import pearson
from sigmma_sc.metrics.niches import niche_agreement, spatial_contiguity
from sigmma_sc.metrics.retrieval import PERCENTS, chance_level, recall_at_percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from sigmma_sc.benchmark.trial import Cell

HEADS = {"default": "default", "hest": "hest", "lookup": "default"}
"""Protocol whose target each head predicts."""

DIRECTIONS = ("image→transcriptome", "transcriptome→image")


def results_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Every figure of every cell.

    Returns
    -------
    Columns ``dataset``, ``split``, ``method``, ``seed``, ``slide``, ``task`` (``retrieval``, ``expression``, ``niches``),
    ``metric``, ``scale`` of a retrieval or of niches, ``head`` of a prediction, ``value``, ``chance``, ``n_test`` tiles (the pool),
    ``n_train`` tiles.
    """
    rows = []
    for cell in cells:
        of_cell = {name: cell.meta[name] for name in ("dataset", "split", "method", "seed", "n_train")}
        for slide, tiles in slides_of(cell):
            of_slide = {**of_cell, "slide": slide, "n_test": len(tiles)}
            rows += [of_slide | row for row in (*_retrieval(cell, tiles), *_expression(cell, tiles))]
        rows += [of_cell | row for row in _niches(cell)]
    first = [
        "dataset",
        "split",
        "method",
        "seed",
        "slide",
        "task",
        "metric",
        "scale",
        "head",
        "value",
        "chance",
        "n_test",
    ]
    return pd.DataFrame(rows).reindex(columns=[*first, "n_train"])


def genes_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Pearson correlation and squared error of every gene, by cell, slide and head."""
    tables = []
    for cell in cells:
        of_cell = {name: cell.meta[name] for name in ("dataset", "split", "method", "seed")}
        for slide, tiles in slides_of(cell):
            for head, target, predicted, mean in heads_of(cell, tiles):
                scores = {
                    "slide": slide,
                    "head": head,
                    "gene": cell.arrays[f"genes|{HEADS[head]}"],
                    "pcc": pearson(target, predicted),
                    "mse": ((predicted - target) ** 2).mean(axis=0),
                    "mse_gene_mean": ((mean - target) ** 2).mean(axis=0),
                }
                tables.append(pd.DataFrame(of_cell | scores))
    return pd.concat(tables, ignore_index=True)


def stability_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Agreement (ARI) of the niches of two seeds, mean over pairs of seeds, by data set, split, method and scale."""
    rows = []
    frame = pd.DataFrame([{k: c.meta[k] for k in ("dataset", "split", "method")} | {"cell": c} for c in cells])
    for (dataset, split, method), group in frame.groupby(["dataset", "split", "method"], sort=False):
        of_seeds = [c.arrays for c in group.cell if "cell|xy" in c.arrays]
        for scale in [name.split("|")[1] for name in (of_seeds[0] if of_seeds else {}) if name.startswith("niche|")]:
            pairs = [
                niche_agreement(a[f"niche|{scale}"], b[f"niche|{scale}"])["ari"]
                for a, b in combinations(of_seeds, 2)
                if np.array_equal(a["cell|xy"], b["cell|xy"])
            ]
            if pairs:
                row = {"dataset": dataset, "split": split, "method": method, "scale": scale}
                rows.append({**row, "ari": np.mean(pairs), "n_pairs": len(pairs)})
    return pd.DataFrame(rows)


def slides_of(cell: Cell) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Slides with test tiles, and these."""
    for slide in np.unique(cell.arrays["slide"]):
        yield str(slide), np.flatnonzero(cell.arrays["slide"] == slide)


def whole_scale(cell: Cell) -> str | None:
    """Scale that a method is compared by: all together, or its only one; ``None`` if it retrieves nothing."""
    scales = [name.split("|")[2] for name in cell.arrays if name.startswith("rank|")]
    return scales[-1] if scales else None


def heads_of(cell: Cell, tiles: NDArray) -> Iterator[tuple[str, NDArray, NDArray, NDArray]]:
    """Head, target ``(n, g)``, prediction ``(n, g)`` and training mean ``(g,)`` on some test tiles, in float64."""
    for head, protocol in HEADS.items():
        if f"predicted|{head}" in cell.arrays:
            target, predicted = (
                cell.arrays[name][tiles].astype(float) for name in (f"target|{protocol}", f"predicted|{head}")
            )
            yield head, target, predicted, cell.arrays[f"mean|{protocol}"].astype(float)


def _retrieval(cell: Cell, tiles: NDArray) -> Iterator[dict[str, Any]]:
    n = len(tiles)
    for name, ranks in cell.arrays.items():
        if not name.startswith("rank|") or n < 2:
            continue
        _, direction, scale = name.split("|")
        row = {"task": "retrieval", "scale": scale}
        for p, recall in recall_at_percent(ranks[tiles], n).items():
            yield row | {"metric": f"recall@{p}% {direction}", "value": recall, "chance": chance_level(p, n)}
        mean = np.mean(list(recall_at_percent(ranks[tiles], n).values()))
        chance = np.mean([chance_level(p, n) for p in PERCENTS])
        yield row | {"metric": f"mean recall {direction}", "value": mean, "chance": chance}
        middle = (n + 1) / 2
        yield row | {"metric": f"median rank {direction}", "value": np.median(ranks[tiles]), "chance": middle}


def _expression(cell: Cell, tiles: NDArray) -> Iterator[dict[str, Any]]:
    for head, target, predicted, mean in heads_of(cell, tiles):
        pcc, mse = pearson(target, predicted), ((predicted - target) ** 2).mean(axis=0)
        values = {
            "pcc": _mean(pcc),
            "pcc_sd_over_genes": float(np.nanstd(pcc)) if np.isfinite(pcc).any() else np.nan,
            "pcc_undefined": int(np.isnan(pcc).sum()),
            "mse": mse.mean(),
            "mse_sd_over_genes": mse.std(),
            "mse_gene_mean": ((mean - target) ** 2).mean(),
        }
        for metric, value in values.items():
            yield {"task": "expression", "metric": metric, "head": head, "value": value}


def _niches(cell: Cell) -> Iterator[dict[str, Any]]:
    from scipy.sparse import block_diag

    from sigmma_sc.tissue.graph import spatial_graph

    if "cell|xy" not in cell.arrays:
        return
    slide, xy = cell.arrays["cell|slide"], cell.arrays["cell|xy"]
    near = block_diag([spatial_graph(xy[slide == k]) for k in np.unique(slide)], format="csr")
    for name, labels in cell.arrays.items():
        if not name.startswith("niche|"):
            continue
        values: dict[str, float] = {"number of niches": len(np.unique(labels))}
        together = spatial_contiguity(labels, near)
        values |= {"contiguity": together["contiguity"], "contiguity of shuffled labels": together["expected"]}
        if "reference" in cell.arrays:
            reference = cell.arrays["reference"].astype(object)
            agreement = niche_agreement(labels, np.where(reference == "", None, reference))
            values |= {"ari": agreement["ari"], "nmi": agreement["nmi"]}
        for metric, value in values.items():
            yield {"task": "niches", "metric": metric, "scale": name.split("|")[1], "value": value}


def _mean(values: NDArray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan
