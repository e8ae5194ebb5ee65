"""Are unrelated tiles called alike? Every test tile of a section is searched for among the others, and their expression is known.

    python benchmarks/search.py STORE MODEL [--cache FOLDER] [--fdr 0.1]

STORE is a SpatialData store, MODEL the folder of a model trained on it with a split that has test tiles. Each test tile is
a query by either tower, compared with the other test tiles by either. Whether a tile is unrelated to a query is told as for
the tiles of the model, by its measured expression.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import replace

import numpy as np
import spatialdata as sd

from sigmma_sc import SIGMMA
from sigmma_sc.infer.evaluate import chosen_counts
from sigmma_sc.infer.reference import build_reference
from sigmma_sc.infer.scales import at_scale, joined
from sigmma_sc.infer.search import alike_by_slide, mean_of, p_values, similarity, unrelated
from sigmma_sc.metrics.expression import log_expression

TOWERS = ("image", "transcriptome")
LEVELS = (0.01, 0.05, 0.1)
N_TILES = 200_000


def with_test_tiles(reference, chosen):
    """The tiles of a model, and the test tiles behind them as further tiles that were not trained on."""
    expression = log_expression(chosen_counts(chosen, reference.genes), reference.library).toarray()
    both = {}
    for tower in TOWERS:
        known, new = getattr(reference, tower), joined(chosen, tower)
        both[tower] = {scale: np.concatenate([known[scale], new[scale]]) for scale in known}
    return replace(
        reference,
        expression=np.concatenate([reference.expression, expression.astype(np.float16)]),
        train=np.append(reference.train, np.zeros(len(expression), bool)),
        **both,
    )


def measure(reference, chosen, temperature, fdr):
    """Print, for each pair of towers, how often unrelated tiles have small p-values and are called alike."""
    both = with_test_tiles(reference, chosen)
    n, n_scales = len(reference.train), len(reference.image)
    m = len(both.train) - n
    for asked in TOWERS:
        for searched in TOWERS:
            p_unrelated, false, n_alike, any_alike = [], [], [], []
            for k in range(n, n + m):
                vector = mean_of(at_scale(getattr(both, asked), "all")[[k]], n_scales)
                here = unrelated(vector, both, "all", temperature)
                s = similarity(vector, at_scale(getattr(both, searched), "all"), n_scales)
                p = p_values(s[n:], s[:n][here[:n]])
                p[k - n] = np.nan
                alike = alike_by_slide(p, np.zeros(m), fdr)
                others = here[n:] & (np.arange(m) != k - n)
                p_unrelated.append(p[others])
                n_alike.append(alike.sum())
                false.append((alike & others).sum() / max(1, alike.sum()))
                any_alike.append(alike_by_slide(p[others], np.zeros(others.sum()), fdr).any())
            p = np.concatenate(p_unrelated)
            shares = ", ".join(f"{(p <= level).mean():.1%}" for level in LEVELS)
            print(
                f"{asked}→{searched}: p ≤ 0.01, 0.05, 0.1 for {shares} of the unrelated tiles; at fdr={fdr:g} {np.mean(n_alike):.0f} of {m - 1} tiles "
                f"alike, {np.mean(np.array(n_alike) > 0):.0%} of the queries with any, {np.mean(false):.1%} of them unrelated; "
                f"anything alike among unrelated tiles alone in {np.mean(any_alike):.1%}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("model")
    parser.add_argument("--cache")
    parser.add_argument("--fdr", type=float, default=0.1)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(N_TILES, 384)).astype(np.float32)
    start = time.process_time()
    p_values(similarity(tiles[0], tiles, 3), tiles[:2000, 0])
    print(f"one query among {N_TILES:,} tiles of three scales of width 128: {time.process_time() - start:.2f} CPU-s")
    model = SIGMMA.load(given.model, sd.read_zarr(given.store), cache_dir=given.cache)
    reference = build_reference(model.embedder, model.resolve(cells=False))
    temperature = float(np.mean([float(t) for t in model.module.temperatures.values()]))
    chosen = model.embed_split(split="test")
    print(
        f"split: {model.data.roles.split}, {len(reference.train)} tiles of the model, {sum(len(w) for _, w in chosen)} test tiles"
    )
    measure(reference, chosen, temperature, given.fdr)


if __name__ == "__main__":
    main()
