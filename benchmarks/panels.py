"""Slides that lack genes: a model of one end of a section embeds the other end with parts of the panel.

    python benchmarks/panels.py STORE --weights mobilenetv2_100.safetensors [--cache FOLDER] [--setup NAME=VALUE …]

The model trains with all genes on one end. The cells of the other end are a slide of their own, with 90, 75, 50 and 25 % of
the genes, drawn five times, and with 500 more genes than the model knows. Beside stand missing genes filled with zeros, and
all genes of which as large a share of the molecules is kept: the loss that no panel can help.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import spatialdata
from anndata import AnnData
from scipy.sparse import csr_matrix, hstack

import sigmma_sc as sg
from sigmma_sc import SIGMMA, ImageEncoder, NichePrototypes
from sigmma_sc.metrics import niche_agreement
from sigmma_sc.metrics.retrieval import retrieval_table
from sigmma_sc.tissue.panel import find_genes

SHARES = (0.9, 0.75, 0.5, 0.25)
N_DRAWS = 5
N_UNSEEN = 500
N_NICHE_CELLS = 8000  # from these cells of the training end
N_OFFSETS = 4


def other_end(model: SIGMMA) -> tuple[Any, np.ndarray]:
    """The cells of the test tiles as a slide of their own, and the positions of these tiles."""
    (slide,) = model.resolve()
    tiles = np.flatnonzero(model.data.roles.of(slide) == "test")
    tiles = tiles[model.data.usable(slide, slide.tiles.take(tiles))]
    inside = np.isin(slide.tile_of_cell, tiles)
    table = slide.table[slide.rows[inside]].copy()
    end = replace(slide, name="end", adata=table, rows=np.arange(table.n_obs), xy=slide.xy[inside])
    return end, tiles


def with_table(slide: Any, counts: csr_matrix, genes: list[str]) -> Any:
    """The slide with other counts."""
    return replace(slide, adata=AnnData(csr_matrix(counts), obs=slide.table.obs, var=pd.DataFrame(index=genes)))


def variants(end: Any, model: SIGMMA, seed: int) -> Any:
    """Name, share, and the end with each panel."""
    genes = np.array(model.data.node_features.genes)
    counts = csr_matrix(end.table.X)[:, find_genes(end.table, genes)]
    rng = np.random.default_rng(seed)
    yield "all genes", 1.0, with_table(end, counts, list(genes))
    unseen = counts[:, rng.integers(0, len(genes), N_UNSEEN)][rng.permutation(counts.shape[0])]
    names = [*genes, *(f"UNSEEN{k}" for k in range(N_UNSEEN))]
    yield f"all, {N_UNSEEN} unseen", 1.0, with_table(end, hstack([counts, unseen], format="csr"), names)
    for share in SHARES:
        for _ in range(N_DRAWS):
            drawn = np.sort(rng.choice(len(genes), round(share * len(genes)), replace=False))
            yield "projected", share, with_table(end, counts[:, drawn], list(genes[drawn]))
            kept = np.isin(np.arange(len(genes)), drawn).astype(np.float32)
            yield "zeros", share, with_table(end, csr_matrix(counts.multiply(kept)), list(genes))
        fewer = counts.copy()
        fewer.data = rng.binomial(fewer.data.astype(int), share).astype(np.float32)
        yield "fewer molecules", share, with_table(end, fewer, list(genes))


def recall(model: SIGMMA, slide: Any, tiles: np.ndarray, image: dict[str, np.ndarray]) -> tuple[float, dict]:
    """Mean recall over directions and 5, 10 and 15 %, and the cells' embeddings."""
    (embedding,) = model.embedder.slides([slide], images=False, n_offsets=N_OFFSETS)
    transcriptome = {scale: z[tiles] for scale, z in embedding.transcriptome.items()}
    table = retrieval_table(image, transcriptome, np.full(len(tiles), slide.name))
    whole = table[table["scale"] == "all"].filter(like="recall@")
    return float(whole.to_numpy().mean()), embedding.cells


def niches_of(model: SIGMMA) -> NichePrototypes:
    """Niches of cells of the training end."""
    (slide,) = model.resolve()
    train = np.flatnonzero(model.data.roles.of(slide) == "train")
    cells = np.flatnonzero(np.isin(slide.tile_of_cell, train))
    drawn = np.sort(np.random.default_rng(0).choice(cells, min(N_NICHE_CELLS, len(cells)), replace=False))
    (embedding,) = model.embedder.slides([slide], images=False, n_offsets=N_OFFSETS)
    adata = AnnData(
        obs=pd.DataFrame(index=drawn.astype(str)),
        obsm={f"X_sigmma_{scale}": x[drawn] for scale, x in embedding.cells.items()},
    )
    return sg.tl.niches(adata, list(embedding.cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--weights", help="mobilenetv2_100.safetensors; the default encoder without")
    parser.add_argument("--cache")
    parser.add_argument("--setup", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    setup, options = (
        {n: json.loads(v) for n, v in (one.split("=", 1) for one in some)} for some in (given.setup, given.options)
    )
    sdata = spatialdata.read_zarr(given.store)
    SIGMMA.setup_spatialdata(sdata, **setup)
    encoder = "stain-stats"
    if given.weights:
        encoder = ImageEncoder.from_timm(
            "mobilenetv2_100", given.weights, mean=(0.5,) * 3, std=(0.5,) * 3, pad_type="same"
        )
    model = SIGMMA(sdata, encoder, cache_dir=given.cache, seed=given.seed, **options)
    start = time.process_time()
    model.train(given.epochs, split="end", enable_progress_bar=False)
    print(f"trained, {time.process_time() - start:.0f} CPU-s", flush=True)
    end, tiles = other_end(model)
    (embedded,) = model.embedder.slides([end], cells=False)
    image = {scale: z[tiles] for scale, z in embedded.image.items()}
    prototypes = niches_of(model)
    scales = list(prototypes.scales)
    rows = []
    full: dict[str, np.ndarray] = {}
    for name, share, slide in variants(end, model, given.seed):
        observed = find_genes(slide.table, model.data.node_features.genes) >= 0
        value, cells = recall(model, slide, tiles, image)
        labels = {scale: np.asarray(prototypes.assign(scale, cells[scale])[0]) for scale in scales}
        full = full or labels
        row = {"genes": name, "share": share, "variance": model.data.node_features.basis.shared_variance(observed)}
        row |= {"recall": value, **{s: niche_agreement(labels[s], full[s])["ari"] for s in scales}}
        rows.append(row)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    table = pd.DataFrame(rows)
    table["fall, %"] = 100 * (1 - table["recall"] / table["recall"][0])
    print(f"{len(tiles)} tiles, {end.table.n_obs:,} cells, {len(model.data.node_features.genes)} genes")
    print(prototypes)
    print(table.groupby(["genes", "share"], sort=False).mean().round(3).to_string())


if __name__ == "__main__":
    main()
