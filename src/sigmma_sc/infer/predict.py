"""Expression of tiles from H&E alone: by retrieval, by the ridge probe, or by the best, with a reliability by gene."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_array
from scipy.special import softmax

from sigmma_sc import _keys
from sigmma_sc.errors import ExpressionWarning, SetupError
from sigmma_sc.infer.auto import MEAN, choose, chosen_apart, fold_scores, folds_of, picked
from sigmma_sc.infer.interval import add_intervals, interval_blocks
from sigmma_sc.infer.reference import encoder_features
from sigmma_sc.infer.scales import at_scale, joined, unit
from sigmma_sc.infer.tiles import centres_of, tile_obs
from sigmma_sc.infer.withhold import judge
from sigmma_sc.metrics.expression import fit_probe, pearson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sigmma_sc.infer.embed import Embedder, SlideEmbedding
    from sigmma_sc.infer.reference import Reference
    from sigmma_sc.infer.scales import Scales
    from sigmma_sc.nn.towers import TwoTowers

QUERIES = 2048
"""Tiles compared with all training tiles at once."""

GENES = 1000
"""Genes fitted at once: leave-one-out errors of all penalties take several arrays of training tiles × genes."""

FEWEST = 3
"""Tiles that a correlation needs to mean anything, and a probe to be fitted."""


@dataclass(frozen=True)
class Prediction:
    """How expression is predicted; see :meth:`sigmma_sc.SIGMMA.predict_expression`."""

    method: str  # "retrieval", "ridge" or "auto"
    scale: str  # one scale, or "all"
    n_neighbors: int  # training tiles that retrieval averages
    temperature: float  # τ of the retrieval's weights
    interval: float | None = None  # share of new tiles that are within their interval; None for no intervals
    withhold: float | None = None  # level of likeness up to which tiles are withheld; None keeps all


@dataclass(frozen=True)
class Query:
    """Tiles to predict."""

    image: Scales  # image embeddings by scale, (n, d)
    encoder: NDArray[np.float16]  # features of the image encoder, (n, d)


def predict_expression(
    reference: Reference, embedder: Embedder, embeddings: Sequence[SlideEmbedding], how: Prediction
) -> AnnData:
    """Predict the expression of every tile of embedded slides."""
    n_train = require_enough(reference, how)
    image = joined([(e, np.arange(len(e.tiles))) for e in embeddings], "image")
    query = Query(image, np.concatenate([encoder_features(embedder, e) for e in embeddings]))
    used = {"method": how.method, "scale": how.scale, "library": reference.library, "n_train": n_train}
    if how.method != "ridge":
        used["n_neighbors"] = how.n_neighbors
    method: str | NDArray[np.str_] = how.method
    held_out: NDArray[np.float64] | None
    if how.method == "auto":
        values, held_out, method = predict_best(query, reference, how)
    else:
        values, held_out = predict(image, reference, how), predict_held_out(reference, how)
    out = AnnData(
        X=values,
        obs=pd.concat([tile_obs(embedder.data, e.slide) for e in embeddings]),
        var=reliability_of(reference, held_out).assign(method=method),
        obsm={"spatial": centres_of(embeddings)},
        uns={_keys.UNS: used},
    )
    if how.interval is not None and held_out is not None:  # without validation tiles it was refused before
        add_intervals(out, reference, held_out, how.interval)
    judge(out, reference, embeddings, query.encoder, how.withhold)
    return out


def predict_best(
    query: Query, reference: Reference, how: Prediction
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.str_]]:
    """Log expression of tiles by the part that is best for each gene on the validation tiles.

    Then predictions of the validation tiles ``(n, n_genes)``, by parts that were chosen without the fold of these tiles.
    Last the part of each gene, ``(n_genes,)``.
    """
    held = np.flatnonzero(~reference.train)
    folds = folds_of(reference.block[held])
    parts = predict_parts(with_held_out(query, reference), reference, how)
    measured = reference.expression[held].astype(np.float64)
    of_held = {name: values[: len(held)] for name, values in parts.items()}
    scores = fold_scores(
        measured, {name: v.astype(np.float64) for name, v in of_held.items()}, folds, reference.slide[held]
    )
    choice = choose(scores)
    mean = reference.expression[reference.train].astype(np.float32).mean(axis=0)
    judged = np.empty((len(held), len(mean)), np.float64)
    for k, apart in enumerate(chosen_apart(scores)):
        here = folds == k
        judged[here] = picked({name: v[here] for name, v in of_held.items()}, apart, mean)
    values = picked({name: v[len(held) :] for name, v in parts.items()}, choice, mean)
    return values, judged, np.array([*parts, MEAN])[choice]


def with_held_out(query: Query, reference: Reference) -> Query:
    """The validation tiles of a reference, and then the query."""
    held = ~reference.train
    image = {scale: np.concatenate([values[held], query.image[scale]]) for scale, values in reference.image.items()}
    return Query(image, np.concatenate([reference.encoder[held], query.encoder]))


def predict_parts(query: Query, reference: Reference, how: Prediction) -> dict[str, NDArray[np.float32]]:
    """Log expression ``(n, n_genes)`` by each part: retrieval, ridge on aligned embeddings, on encoder features, their mean."""
    train = reference.train
    parts = {method: predict(query.image, reference, replace(how, method=method)) for method in ("retrieval", "ridge")}
    parts["encoder"] = ridge(query.encoder, reference.encoder[train], reference.expression[train].astype(np.float32))
    # Their errors differ. Where validation tiles cannot tell the parts apart, the mean loses to none of them.
    parts["blend"] = np.mean(list(parts.values()), axis=0)
    return parts


def require_enough(reference: Reference, how: Prediction) -> int:
    """Number of training tiles; raise :class:`SetupError` if method or intervals need more, of these or of validation tiles."""
    n_train = int(reference.train.sum())
    if how.method != "retrieval" and n_train < FEWEST:
        raise SetupError(f"Ridge needs {FEWEST} training tiles or more, the model has {n_train}. Use 'retrieval'.")
    if how.method == "auto":
        folds_of(reference.block[~reference.train])
    if how.interval is not None:
        interval_blocks(reference, how.interval)
    return n_train


def temperature_of(towers: TwoTowers, scale: str) -> float:
    """τ of one scale, or the mean over all."""
    return float(np.mean([float(t) for s, t in towers.temperatures.items() if scale in (s, "all")]))


def predict(image: Scales, reference: Reference, how: Prediction) -> NDArray[np.float32]:
    """Log expression ``(m, n_genes)`` of tiles with image embeddings ``(m, d)`` by scale, from training tiles alone."""
    train = reference.train
    expression = reference.expression[train].astype(np.float32)
    if how.method == "ridge":
        keys = _side_by_side(reference.image, how.scale)
        return ridge(_side_by_side(image, how.scale), keys[train], expression)
    keys = at_scale(reference.transcriptome, how.scale)
    return retrieve(at_scale(image, how.scale), keys[train], expression, how.n_neighbors, how.temperature)


def retrieve(
    query: NDArray[np.float32],
    keys: NDArray[np.float32],
    expression: NDArray[np.float32],
    n_neighbors: int,
    temperature: float,
) -> NDArray[np.float32]:
    """Mean expression ``(m, n_genes)`` of the ``keys`` ``(n, d)`` nearest by cosine to each ``query`` ``(m, d)``.

    After BLEEP (Xie et al., NeurIPS 2023), which looks up an image among expression embeddings of reference spots. The
    weights are ours: softmax(similarity / τ), those that InfoNCE gives the same neighbours.
    """
    query = unit(query)
    keys = unit(keys)
    n = min(n_neighbors, len(keys))
    out = np.empty((len(query), expression.shape[1]), np.float32)
    for start in range(0, len(query), QUERIES):
        similarity = query[start : start + QUERIES] @ keys.T
        nearest = np.argpartition(-similarity, n - 1, axis=1)[:, :n]
        weights = softmax(np.take_along_axis(similarity, nearest, axis=1) / temperature, axis=1)
        first = np.arange(0, nearest.size + 1, n)
        mixed = csr_array((weights.ravel(), nearest.ravel(), first), shape=similarity.shape)
        out[start : start + QUERIES] = mixed @ expression
    return out


def ridge(query: NDArray, keys: NDArray, expression: NDArray) -> NDArray[np.float32]:
    """Predictions ``(m, n_genes)`` of the probe of :mod:`sigmma_sc.metrics.expression`, fitted to every gene."""
    out = np.empty((len(query), expression.shape[1]), np.float32)
    keys = keys.astype(np.float64)
    query = query.astype(np.float64)
    for start in range(0, out.shape[1], GENES):
        some = slice(start, start + GENES)
        probe = fit_probe(keys, expression[:, some].astype(np.float64))
        out[:, some] = probe.predict(query).reshape(len(query), -1)  # a single gene comes flat
    return out


def predict_held_out(reference: Reference, how: Prediction) -> NDArray[np.float64] | None:
    """Predictions of the validation tiles from training tiles, ``(n, n_genes)``; ``None`` where they are too few."""
    held = ~reference.train
    if held.sum() < FEWEST:
        return None
    image = {name: values[held] for name, values in reference.image.items()}
    return predict(image, reference, how).astype(np.float64)


def reliability_of(reference: Reference, predicted: NDArray[np.float64] | None) -> pd.DataFrame:
    """Correlation of predicted and measured expression across the validation tiles of a slide, mean over slides.

    Predictions are ``(n, n_genes)``, ``None`` where the tiles are too few. By gene: ``reliability``, NaN with a warning where
    it is undefined, and ``reliability_n_tiles``.
    """
    held = ~reference.train
    rows = []
    slides = []
    if predicted is not None:
        measured, slide = reference.expression[held].astype(np.float64), reference.slide[held]
        slides = [s for s in np.unique(slide) if (slide == s).sum() >= FEWEST]
        rows = [pearson(measured[slide == s], predicted[slide == s]) for s in slides]
    genes = pd.Index(reference.genes, dtype=object)
    mean = pd.DataFrame(rows, columns=genes, dtype=float).mean()  # of the slides where a gene's is defined
    _warn_undefined(mean, int(held.sum()), bool(slides))
    n_tiles = int(np.isin(reference.slide[held], slides).sum())
    return pd.DataFrame({"reliability": mean, "reliability_n_tiles": n_tiles})


def _warn_undefined(mean: pd.Series, n_held: int, any_slide: bool) -> None:
    undefined = mean.index[mean.isna()].tolist()
    if not any_slide:
        warnings.warn(
            f"No slide has {FEWEST} validation tiles ({n_held} in all), so the reliability of no gene is known. Train with a "
            "split that holds some out.",
            ExpressionWarning,
            stacklevel=5,
        )
    elif undefined:
        warnings.warn(
            f"The reliability of {len(undefined)} of {len(mean)} genes is not known, for they or their predictions are constant "
            f"across the validation tiles: {', '.join(undefined[:5])}{' …' if len(undefined) > 5 else ''}.",
            ExpressionWarning,
            stacklevel=5,
        )


def _side_by_side(values: Scales, scale: str) -> NDArray[np.float32]:
    """Embeddings of one scale, or of all as they are: the probe standardises every feature, so that scales weigh the same."""
    return np.concatenate(list(values.values()), axis=1) if scale == "all" else values[scale]
