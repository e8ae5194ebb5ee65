"""Niches of simulated tissue against the truth, by SIGMMA's scales and by what is commonly done without an image.

python benchmarks/niches.py
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd
import scanpy as sc
import squidpy as sq
from anndata import AnnData

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.metrics import niche_agreement
from sigmma_sc.niches.neighbours import neighbour_graph

TRUTHS = ("niche", "compartment")
RESOLUTIONS = np.round(np.geomspace(0.02, 2, 16), 3)
NEIGHBOURS = (5, 10, 20, 30, 100)
VARIANTS = {
    "SIGMMA": {},
    "SIGMMA, no added edges": {"edges": "none"},
    "SIGMMA, meso loss alone": {"loss_weights": (0, 1, 0)},
    "SIGMMA, macro loss alone": {"loss_weights": (0, 0, 1)},
}


def cluster(matrix: np.ndarray, seed: int) -> list[np.ndarray]:
    """Leiden at each resolution."""
    cells = AnnData(np.asarray(matrix, np.float32))
    neighbour_graph(cells.X, seed=seed).write(cells)
    found = []
    for resolution in RESOLUTIONS:
        sc.tl.leiden(cells, resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        found.append(cells.obs["leiden"].to_numpy())
    return found


def components(counts: AnnData, seed: int) -> np.ndarray:
    """PCA of log-normalised counts."""
    adata = counts.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=50, random_state=seed)
    return adata.obsm["X_pca"]


def averaged(pca: np.ndarray, xy: np.ndarray, n: int) -> np.ndarray:
    """Mean of the components over a cell and its n nearest, the common way to let a cell see its neighbourhood."""
    adata = AnnData(pca, obsm={"spatial": xy})
    sq.gr.spatial_neighbors(adata, n_neighs=n, coord_type="generic")
    return (pca + adata.obsp["spatial_connectivities"] @ pca) / (n + 1)


def embeddings(n_cells: int, seed: int, epochs: int) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Every method's embedding of the cells of one simulated section, and the truth."""
    sdata = simulate_tissue(n_cells=n_cells, seed=seed)
    SIGMMA.setup_spatialdata(sdata)
    table = sdata["table"]
    out = {"PCA": components(table, seed)}
    for n in NEIGHBOURS:
        out[f"PCA, mean of {n} neighbours"] = averaged(out["PCA"], table.obsm["spatial"], n)
    for name, options in VARIANTS.items():
        model = SIGMMA(sdata, seed=seed, **options)
        model.train(max_epochs=epochs, split="none", enable_progress_bar=False)
        for scale in model.module.embedded:
            out[f"{name}, {scale}"] = model.get_latent_representation(scale=scale)
    return out, table.obs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=8_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for seed in range(arguments.seeds):
        found, truth = embeddings(arguments.cells, seed, arguments.epochs)
        for name, matrix in found.items():
            clusterings = cluster(matrix, seed)
            for what in TRUTHS:
                # The resolution whose number of clusters is nearest to the truth's: the same help for everyone.
                n = truth[what].nunique()
                labels = min(clusterings, key=lambda labels: abs(len(np.unique(labels)) - n))
                ari = niche_agreement(labels, truth[what].to_numpy())["ari"]
                rows.append(
                    {"method": name, "truth": what, "seed": seed, "ari": ari, "clusters": len(np.unique(labels))}
                )
        print(
            pd.DataFrame(rows).pivot_table(index="method", columns="truth", values="ari", sort=False).round(3),
            flush=True,
        )
    table = pd.DataFrame(rows).groupby(["method", "truth"], sort=False).ari.agg(["mean", "std"]).unstack("truth")
    print(table.round(3).to_markdown())


if __name__ == "__main__":
    main()
