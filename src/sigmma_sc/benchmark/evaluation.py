"""One trial: fit a method, embed the tiles of the split, and keep what scores are made of."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc import __version__
from sigmma_sc.benchmark.methods import METHODS, Case
from sigmma_sc.benchmark.niches import niches_of
from sigmma_sc.benchmark.sources import encoder_of, load
from sigmma_sc.benchmark.trial import PROTOCOLS, Expression, Head, Protocol, RankKey, Trial, TrialMeta, settings_of
from sigmma_sc.config import Config
from sigmma_sc.errors import SetupError
from sigmma_sc.features.data import TissueData
from sigmma_sc.features.roles import samples_of
from sigmma_sc.infer.predict import retrieve
from sigmma_sc.infer.scales import at_scale
from sigmma_sc.metrics.expression import expression_targets, fit_probe
from sigmma_sc.metrics.retrieval import retrieval_table, tile_ranks
from sigmma_sc.tissue.counts import pooled_counts
from sigmma_sc.tissue.panel import common_genes
from sigmma_sc.tissue.setup import common_setup, slides_of
from sigmma_sc.tissue.split import Blocks, SplitJson, get_split

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.benchmark.config import BenchmarkConfig, DataSpec, TrialSpec
    from sigmma_sc.benchmark.methods import Embedding, Method
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles

    Chosen = list[tuple[Slide, Tiles]]
    from sigmma_sc.tissue.setup import Tissue

N_LOOKUP = 50
"""Training tiles that BLEEP's inference averages."""

PACKAGES = ("torch", "timm", "scanpy", "spatialdata", "scvi-tools", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Division:
    """Slides of a data set and the roles of their tiles, the same for every method."""

    data: TissueData  # roles of tiles, and which tiles are usable
    slides: list[Slide]  # the slides, in order
    split: SplitJson  # the split, resolved

    def tiles(self, role: str) -> Chosen:
        """Tiles of a role, slide by slide; slides without any are left out."""
        chosen = []
        for slide in self.slides:
            which = np.flatnonzero(self.data.roles.of(slide) == role)
            if len(which):
                chosen.append((slide, slide.tiles.take(which)))
        return chosen

    def blocks(self, slide: Slide, tiles: Tiles) -> NDArray[np.str_]:
        """Spatial block of some tiles of a slide, ``(n,)``."""
        covering = slide.tiles
        numbers = Blocks().groups(covering, self.data.usable(slide, covering))
        by_corner = {}
        for corner, number in zip(np.round(covering.origins, 3), numbers, strict=True):
            by_corner[tuple(corner)] = f"{slide.name}#{number}"
        return np.array([by_corner[tuple(corner)] for corner in np.round(tiles.origins, 3)])


@dataclass(frozen=True)
class Embedded:
    """Some tiles and their embeddings ``(n, d)`` by scale; ``None`` where a method has none."""

    chosen: Chosen
    image: Embedding
    transcriptome: Embedding

    @property
    def slide(self) -> NDArray[np.str_]:
        """Slide of each tile, ``(n,)``."""
        return np.concatenate([np.full(len(tiles), slide.name) for slide, tiles in self.chosen])


def divide(tissue: Tissue, data: DataSpec, split: str, turn: int, seed: int) -> Division:
    """Give every tile its role by the named split; ``turn`` is the place of the seed among the seeds."""
    from sigmma_sc.encoders.encoder import get_encoder

    setup = common_setup(tissue)
    tiles = TissueData(setup, get_encoder("stain-stats"), Config.of({**data.options, "seed": seed}, setup.grids))
    slides = slides_of(tissue)
    resolved = get_split(split).in_turn(turn, data.donors).resolve(samples_of(slides), seed)
    tiles.assign_roles(slides, resolved)
    return Division(tiles, slides, resolved.to_json())


def run_trial(config: BenchmarkConfig, spec: TrialSpec, cache_dir: str | None) -> Trial:
    """Fit a method and keep what scores are made of."""
    start = time.perf_counter()
    data, split, method, seed = spec
    tissue = load(data)
    given = method.encoder or config.encoder
    encoder = None if given is None else encoder_of(given)
    division = divide(tissue, data, split, config.seeds.index(seed), seed)
    case = Case(tissue, encoder, division.split, seed, dict(data.options), cache_dir)
    fitted, fit = fit_best(config, spec, case, division)
    train, scored = division.tiles("train"), division.tiles(config.score)
    for role, chosen in (("train", train), (config.score, scored)):
        if not chosen:
            raise SetupError(f"{data.name}: split={split!r} with seed {seed} leaves no {role} tile.")
    embedded_train, embedded = embed(fitted, train), embed(fitted, scored)
    # The choice is made on validation tiles, so that there is none to judge where these are scored.
    best = fitted.predict_best(scored) if config.score == "test" else None
    expression = _expression(embedded_train, embedded, best)
    niches = None
    if config.niches is not None and method.label in config.niches.methods:
        niches = niches_of(fitted, division.slides, data, config.niches)
    meta = TrialMeta(
        dataset=data.name,
        split=split,
        method=method.label,
        seed=seed,
        settings=settings_of(config, data, method),
        n_train=sum(len(tiles) for _, tiles in train),
        seconds=time.perf_counter() - start,
        fit=fit,
        encoder=None if encoder is None else encoder.name,
        versions={"sigmma-sc": __version__, **{name: version(name) for name in PACKAGES}},
    )
    block = np.concatenate([division.blocks(slide, tiles) for slide, tiles in scored])
    return Trial(meta, embedded.slide, block, _ranks(embedded), expression, niches)


def fit_best(config: BenchmarkConfig, spec: TrialSpec, case: Case, division: Division) -> tuple[Method, dict[str, Any]]:
    """A method fitted with the training arguments of the budget that do best on the validation tiles, and what it reports."""
    data, _, method, _ = spec
    fixed, budget = {**config.train, **data.train, **method.train}, config.budget()
    make = partial(METHODS[method.method], case, **method.arguments)
    fitted = make()
    if not fitted.trains:
        return fitted, fitted.fit(**fixed)
    if len(budget) == 1:
        return fitted, fitted.fit(**{**fixed, **budget[0]})
    held_out = division.tiles("val")
    if not held_out:
        raise SetupError(f"{data.name}: tune={config.tune!r} needs validation tiles, and the split leaves none.")
    best_score, best, best_fit = -1.0, fitted, {}
    for tried in budget:
        fitted = make()
        fit = fitted.fit(**{**fixed, **tried})
        score = _validation_score(embed(fitted, held_out))
        if score > best_score:
            best_score, best, best_fit = score, fitted, {**fit, "tuned": tried, "validation_score": score}
    return best, best_fit


def embed(method: Method, chosen: Chosen) -> Embedded:
    """Embeddings of tiles, slide by slide, one under the other."""
    parts = [method.embed(slide, tiles) for slide, tiles in chosen]
    return Embedded(chosen, _stacked([image for image, _ in parts]), _stacked([cells for _, cells in parts]))


def _stacked(parts: list[Embedding]) -> Embedding:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    stacked = {}
    for scale in known[0]:
        stacked[scale] = np.concatenate([part[scale] for part in known])
    return stacked


def _validation_score(embedded: Embedded) -> float:
    """Mean recall of both directions over all scales together."""
    if embedded.image is None or embedded.transcriptome is None:
        raise SetupError("tune=… needs methods that embed both modalities, to be compared by retrieval.")
    table = retrieval_table(embedded.image, embedded.transcriptome, embedded.slide)
    whole = table[table.scale == table.scale.iloc[-1]]
    return float(whole.filter(like="recall@").to_numpy().mean())


def _ranks(embedded: Embedded) -> dict[RankKey, NDArray[np.int64]]:
    image, transcriptome, slide = embedded.image, embedded.transcriptome, embedded.slide
    if image is None or transcriptome is None or len(slide) == len(np.unique(slide)):
        return {}
    ranks, _ = tile_ranks(image, transcriptome, slide)
    return {RankKey(direction, scale): values for (direction, scale), values in ranks.items()}


def _expression(train: Embedded, scored: Embedded, best: pd.DataFrame | None) -> dict[Protocol, Expression]:
    """Targets and predictions of both protocols, of BLEEP's inference, and of the best for each gene."""
    genes = common_genes([slide.table for slide, _ in (*train.chosen, *scored.chosen)])
    counts, counts_scored = _counts(train.chosen, genes), _counts(scored.chosen, genes)
    expression: dict[Protocol, Expression] = {}
    for protocol in PROTOCOLS:
        names, y, target = expression_targets(counts, counts_scored, genes, protocol=protocol)
        mean = y.mean(axis=0)
        ridge = np.broadcast_to(mean, target.shape)
        if train.image is not None and scored.image is not None:
            probe = fit_probe(_features(train.image), y, protocol)
            ridge = probe.predict(_features(scored.image)).reshape(target.shape)
        predicted: dict[Head, NDArray[np.float32]] = {protocol: ridge.astype(np.float32)}
        if protocol == "default" and scored.image is not None and train.transcriptome is not None:
            query, keys = at_scale(scored.image, "all"), at_scale(train.transcriptome, "all")
            # An infinite temperature weighs all alike, as BLEEP's published average does.
            predicted["lookup"] = retrieve(query, keys, y.astype(np.float32), N_LOOKUP, np.inf)
        if protocol == "default" and best is not None:
            predicted["auto"] = best[names].to_numpy(np.float32)
        expression[protocol] = Expression(
            np.array(names, dtype=str), target.astype(np.float32), mean.astype(np.float32), predicted
        )
    return expression


def _features(scales: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.concatenate(list(scales.values()), axis=1).astype(float)


def _counts(chosen: Chosen, genes: list[str]) -> csr_matrix:
    """Raw counts pooled over each tile's cells, ``(n, n_genes)``."""
    from scipy.sparse import vstack

    return vstack([pooled_counts(slide, tiles, genes) for slide, tiles in chosen], format="csr")
