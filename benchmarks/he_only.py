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
from sigmma_sc.infer.predict import Prediction, Query, predict_best, predict_parts, reliability_of
from sigmma_sc.infer.reference import build_reference, encoder_features
from sigmma_sc.metrics.expression import log_expression, pearson


def test_tiles(model, reference):
    """The test tiles to predict, their log expression and their slides."""
    chosen = []
    for slide in model.resolve():
        which = np.flatnonzero(model.data.roles.of(slide) == "test")
        if len(which):
            chosen.append((model.embedder.tiles(slide, slide.tiles.take(which)), np.arange(len(which))))
    image = {s: np.concatenate([e.image[s] for e, _ in chosen]) for s in model.setup.scales}
    encoder = np.concatenate([encoder_features(model.embedder, e) for e, _ in chosen])
    counts = chosen_counts(chosen, reference.genes)
    slide = np.concatenate([np.full(len(which), e.slide.name) for e, which in chosen])
    return Query(image, encoder), log_expression(counts, reference.library).toarray(), slide


def predictions(query, reference, how):
    """Prediction of the tiles and reliability of every gene, by method."""
    parts = predict_parts(query, reference, how)
    held = ~reference.train
    own = Query({s: v[held] for s, v in reference.image.items()}, reference.encoder[held])
    of_held = predict_parts(own, reference, how)
    for method, predicted in parts.items():
        yield method, predicted, reliability_of(reference, of_held[method].astype(float))
    values, judged, method = predict_best(query, reference, how)
    yield "auto", values, reliability_of(reference, judged).assign(method=method)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("model")
    parser.add_argument("--cache")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    model = SIGMMA.load(given.model, sd.read_zarr(given.store), cache_dir=given.cache)
    reference = build_reference(model.embedder, model.resolve())
    query, truth, slide = test_tiles(model, reference)
    mean = reference.expression[reference.train].astype(float).mean(0)
    mse_mean = ((mean - truth) ** 2).mean(0)
    print(
        f"{model.data.roles.split}: {reference.train.sum()} training, {(~reference.train).sum()} validation, {len(truth)} test tiles"
    )
    rows = []
    for scale in ("all", *model.setup.scales):
        how = Prediction("auto", scale, 50, float(next(iter(model.module.temperatures.values()))))
        for method, values, var in predictions(query, reference, how):
            predicted = values.astype(float)
            # A gene predicted by its mean correlates with nothing: 0, so that no method gains by leaving genes out.
            pcc = np.mean(
                [np.nan_to_num(pearson(truth[slide == s], predicted[slide == s])) for s in np.unique(slide)], axis=0
            )
            mse = ((predicted - truth) ** 2).mean(0)
            told = var["reliability"].to_numpy()
            both = np.isfinite(told)
            rows.append(
                {
                    "method": method, "scale": scale, "pcc": pcc.mean(), "sd": pcc.std(),
                    "mse": mse.mean(), "mse_gene_mean": mse_mean.mean(), "genes_better": (mse < mse_mean).mean(),
                    "reliability": np.nanmean(told), "pearson_of_both": np.corrcoef(told[both], pcc[both])[0, 1],
                    "spearman_of_both": spearmanr(told[both], pcc[both])[0],
                    "pcc_where_above_0.5": pcc[told > 0.5].mean(), "n_above_0.5": (told > 0.5).sum(),
                    "pcc_where_below_0.2": pcc[told < 0.2].mean(), "n_below_0.2": (told < 0.2).sum(),
                }
            )  # fmt: skip
            if method == "auto":
                print(f"auto, {scale}: {var['method'].value_counts().to_dict()}")
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
