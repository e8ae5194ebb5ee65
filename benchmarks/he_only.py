"""Expression predicted on the test tiles of a section, by method and scale, beside the gene mean; and what reliability told.

    python benchmarks/he_only.py STORE MODEL [--cache FOLDER]

STORE is a SpatialData store, MODEL the folder of a model trained on it with a split that has validation and test tiles.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd
import spatialdata as sd
from scipy.stats import spearmanr

from sigmma_sc import SIGMMA
from sigmma_sc.infer.evaluate import chosen_counts
from sigmma_sc.infer.predict import Prediction, predict, reliability
from sigmma_sc.infer.reference import build_reference
from sigmma_sc.metrics.expression import log_expression, pearson


def test_tiles(model, reference):
    """Image embeddings of the test tiles, their log expression and their slides."""
    chosen = []
    for slide in model.resolve():
        which = np.flatnonzero(model.data.roles.of(slide) == "test")
        if len(which):
            chosen.append((model.embedder.tiles(slide, slide.tiles.take(which)), np.arange(len(which))))
    image = {s: np.concatenate([e.image[s] for e, _ in chosen]) for s in model.setup.scales}
    counts = chosen_counts(chosen, reference.genes)
    slide = np.concatenate([np.full(len(which), e.slide.name) for e, which in chosen])
    return image, log_expression(counts, reference.library).toarray(), slide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("model")
    parser.add_argument("--cache")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    model = SIGMMA.load(given.model, sd.read_zarr(given.store), cache_dir=given.cache)
    reference = build_reference(model.embedder, model.resolve())
    image, truth, slide = test_tiles(model, reference)
    mean = reference.expression[reference.train].astype(float).mean(0)
    mse_mean = ((mean - truth) ** 2).mean(0)
    print(
        f"{model.data.roles.split}: {reference.train.sum()} training, {(~reference.train).sum()} validation, {len(truth)} test tiles"
    )
    rows = []
    for method in ("retrieval", "ridge"):
        for scale in ("all", *model.setup.scales):
            how = Prediction(method, scale, 50, float(next(iter(model.module.temperatures.values()))))
            predicted = predict(image, reference, how).astype(float)
            pcc = np.nanmean([pearson(truth[slide == s], predicted[slide == s]) for s in np.unique(slide)], axis=0)
            mse = ((predicted - truth) ** 2).mean(0)
            told = reliability(reference, how)["reliability"].to_numpy()
            both = np.isfinite(told) & np.isfinite(pcc)
            rows.append(
                {
                    "method": method, "scale": scale, "pcc": np.nanmean(pcc), "sd": np.nanstd(pcc),
                    "mse": mse.mean(), "mse_gene_mean": mse_mean.mean(), "genes_better": (mse < mse_mean).mean(),
                    "reliability": np.nanmean(told), "pearson_of_both": np.corrcoef(told[both], pcc[both])[0, 1],
                    "spearman_of_both": spearmanr(told[both], pcc[both])[0],
                    "pcc_where_above_0.5": np.nanmean(pcc[told > 0.5]), "n_above_0.5": (told > 0.5).sum(),
                    "pcc_where_below_0.2": np.nanmean(pcc[told < 0.2]), "n_below_0.2": (told < 0.2).sum(),
                }
            )  # fmt: skip
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
