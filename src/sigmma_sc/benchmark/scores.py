"""From what trials keep to tidy tables: one row for each trial, slide and figure; one for each gene."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import block_diag

from sigmma_sc.benchmark.trial import HEADS, Head, Niches, Trial
from sigmma_sc.metrics.expression import pearson
from sigmma_sc.metrics.niches import niche_agreement, spatial_contiguity
from sigmma_sc.metrics.retrieval import PERCENTS, chance_level, recall_at_percent
from sigmma_sc.tissue.graph import spatial_graph

DIRECTIONS = ("image→transcriptome", "transcriptome→image")

COLUMNS = [
    "dataset", "split", "method", "seed", "slide", "task", "metric", "scale", "head", "value", "chance", "n_test", "n_train",
]  # fmt: skip

STABILITY_COLUMNS = ["dataset", "split", "method", "scale", "ari", "n_pairs"]


@dataclass(frozen=True)
class Prediction:
    """Expression of some tiles as one head predicts it, in float64."""

    head: Head  # its name
    genes: NDArray[np.str_]  # names, (g,)
    # (n, g).
    target: NDArray[np.float64]
    predicted: NDArray[np.float64]
    mean: NDArray[np.float64]  # mean of the training tiles, (g,)

    @property
    def mse(self) -> NDArray[np.float64]:
        """Squared error of each gene, ``(g,)``."""
        return ((self.predicted - self.target) ** 2).mean(axis=0)

    @property
    def mse_gene_mean(self) -> NDArray[np.float64]:
        """Squared error of the training mean of each gene, ``(g,)``."""
        return ((self.mean - self.target) ** 2).mean(axis=0)


def results_table(trials: Sequence[Trial]) -> pd.DataFrame:
    """Every figure of every trial, with its ``chance`` and the numbers of tiles ``n_test`` (the pool) and ``n_train``.

    ``task`` is ``retrieval``, ``expression`` or ``niches``. A retrieval and niches have a ``scale``, a prediction a
    ``head``.
    """
    rows = []
    for trial in trials:
        of_trial = {**_identity(trial), "n_train": trial.meta.n_train}
        for slide, tiles in slides_of(trial):
            of_slide = {**of_trial, "slide": slide, "n_test": len(tiles)}
            rows += [of_slide | row for row in _retrieval(trial, tiles)]
            rows += [of_slide | row for row in _expression(trial, tiles)]
        if trial.niches is not None:
            rows += [of_trial | row for row in _niches(trial.niches)]
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def genes_table(trials: Sequence[Trial]) -> pd.DataFrame:
    """Pearson correlation and squared error of every gene, by trial, slide and head."""
    tables = []
    for trial in trials:
        for slide, tiles in slides_of(trial):
            for prediction in predictions_of(trial, tiles):
                scores = {
                    "slide": slide,
                    "head": prediction.head,
                    "gene": prediction.genes,
                    "pcc": pearson(prediction.target, prediction.predicted),
                    "mse": prediction.mse,
                    "mse_gene_mean": prediction.mse_gene_mean,
                }
                tables.append(pd.DataFrame(_identity(trial) | scores))
    return pd.concat(tables, ignore_index=True)


def stability_table(trials: Sequence[Trial]) -> pd.DataFrame:
    """Agreement (ARI) of the niches of two seeds, mean over pairs of seeds, by data set, split, method and scale."""
    by_method: dict[tuple[str, str, str], list[Niches]] = {}
    for trial in trials:
        if trial.niches is not None:
            key = (trial.meta.dataset, trial.meta.split, trial.meta.method)
            by_method.setdefault(key, []).append(trial.niches)
    rows = []
    for key, seeds in by_method.items():
        for scale in seeds[0].labels:
            aris = []
            for a, b in combinations(seeds, 2):
                if np.array_equal(a.xy, b.xy):
                    aris.append(niche_agreement(a.labels[scale], b.labels[scale])["ari"])
            if aris:
                rows.append((*key, scale, np.mean(aris), len(aris)))
    return pd.DataFrame(rows, columns=STABILITY_COLUMNS)


def slides_of(trial: Trial) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Slides with scored tiles, and the positions of these."""
    for slide in np.unique(trial.slide):
        yield str(slide), np.flatnonzero(trial.slide == slide)


def whole_scale(trial: Trial) -> str | None:
    """Scale that a method is compared by: all together, or its only one; ``None`` if it retrieves nothing."""
    scales = [key.scale for key in trial.ranks]
    return scales[-1] if scales else None


def predictions_of(trial: Trial, tiles: NDArray[np.intp]) -> Iterator[Prediction]:
    """Predictions of every head for some scored tiles."""
    for head, protocol in HEADS.items():
        expression = trial.expression.get(protocol)
        if expression is not None and head in expression.predicted:
            target = expression.target[tiles].astype(float)
            predicted = expression.predicted[head][tiles].astype(float)
            yield Prediction(head, expression.genes, target, predicted, expression.mean.astype(float))


def _identity(trial: Trial) -> dict[str, Any]:
    meta = trial.meta
    return {"dataset": meta.dataset, "split": meta.split, "method": meta.method, "seed": meta.seed}


def _retrieval(trial: Trial, tiles: NDArray[np.intp]) -> Iterator[dict[str, Any]]:
    n = len(tiles)
    if n < 2:
        return
    for key, all_ranks in trial.ranks.items():
        ranks = all_ranks[tiles]
        row = {"task": "retrieval", "scale": key.scale}
        recalls = recall_at_percent(ranks, n)
        for p, recall in recalls.items():
            yield row | {"metric": f"recall@{p}% {key.direction}", "value": recall, "chance": chance_level(p, n)}
        mean = np.mean(list(recalls.values()))
        chance = np.mean([chance_level(p, n) for p in PERCENTS])
        yield row | {"metric": f"mean recall {key.direction}", "value": mean, "chance": chance}
        middle = (n + 1) / 2
        yield row | {"metric": f"median rank {key.direction}", "value": np.median(ranks), "chance": middle}


def _expression(trial: Trial, tiles: NDArray[np.intp]) -> Iterator[dict[str, Any]]:
    for prediction in predictions_of(trial, tiles):
        pcc, mse = pearson(prediction.target, prediction.predicted), prediction.mse
        defined = pcc[np.isfinite(pcc)]
        values = {
            "pcc": float(defined.mean()) if len(defined) else np.nan,
            "pcc_sd_over_genes": float(np.nanstd(pcc)) if len(defined) else np.nan,
            "pcc_undefined": len(pcc) - len(defined),
            "mse": mse.mean(),
            "mse_sd_over_genes": mse.std(),
            "mse_gene_mean": ((prediction.mean - prediction.target) ** 2).mean(),
        }
        for metric, value in values.items():
            yield {"task": "expression", "metric": metric, "head": prediction.head, "value": value}


def _niches(niches: Niches) -> Iterator[dict[str, Any]]:
    graphs = [spatial_graph(niches.xy[niches.slide == number]) for number in np.unique(niches.slide)]
    near = block_diag(graphs, format="csr")
    for scale, labels in niches.labels.items():
        together = spatial_contiguity(labels, near)
        values = {
            "number of niches": len(np.unique(labels)),
            "contiguity": together["contiguity"],
            "contiguity of shuffled labels": together["expected"],
        }
        if niches.reference is not None:
            reference = niches.reference.astype(object)
            reference[reference == ""] = None
            agreement = niche_agreement(labels, reference)
            values |= {"ari": agreement["ari"], "nmi": agreement["nmi"]}
        for metric, value in values.items():
            yield {"task": "niches", "metric": metric, "scale": scale, "value": value}
