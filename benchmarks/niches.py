"""Niches of simulated tissue against the truth, by SIGMMA's scales and by what is commonly done without an image.

python benchmarks/niches.py
python benchmarks/niches.py --tissue proportions --variants "SIGMMA" "SIGMMA, no added edges"
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd
import scanpy as sc
import squidpy as sq
from anndata import AnnData
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from tissues import KINDS, draw_tissue

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.metrics import niche_agreement
from sigmma_sc.niches.neighbours import neighbour_graph

TRUTHS = ("niche", "compartment")
RESOLUTIONS = np.round(np.geomspace(0.02, 2, 16), 3)
NEIGHBOURS = (5, 10, 20, 30, 100)
WIDTHS = (5, 10, 20, 40, 60)  # standard deviation of the Gaussian, µm
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


def smoothed(pca: np.ndarray, xy: np.ndarray, width: float) -> np.ndarray:
    """Mean of the components with the weights of a Gaussian around each cell, up to three standard deviations."""
    pairs = cKDTree(xy).sparse_distance_matrix(cKDTree(xy), 3 * width, output_type="coo_matrix")
    weights = csr_matrix((np.exp(-((pairs.data / width) ** 2) / 2), (pairs.row, pairs.col)), shape=pairs.shape)
    return (weights @ pca) / np.asarray(weights.sum(1))


def section(tissue: str, n_cells: int, seed: int) -> SpatialData:
    """One simulated section after setup: the package's own tissue, or one of `tissues.py`."""
    if tissue == "own":
        sdata = simulate_tissue(n_cells=n_cells, seed=seed)
        SIGMMA.setup_spatialdata(sdata)
        return sdata
    sdata = draw_tissue(tissue, n_cells, seed)
    SIGMMA.setup_spatialdata(sdata, microns_per_pixel=0.5)
    return sdata


def embeddings(
    tissue: str, n_cells: int, seed: int, epochs: int, variants: list[str]
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Every method's embedding of the cells of one simulated section, and the truth."""
    sdata = section(tissue, n_cells, seed)
    table = sdata["table"]
    pca = components(table, seed)
    out = {"PCA": pca}
    for n in NEIGHBOURS:
        out[f"PCA, mean of {n} neighbours"] = averaged(pca, table.obsm["spatial"], n)
    for width in WIDTHS:
        out[f"PCA, Gaussian of {width} µm"] = smoothed(pca, table.obsm["spatial"], width)
    for name in variants:
        model = SIGMMA(sdata, seed=seed, **VARIANTS[name])
        model.train(max_epochs=epochs, split="none", enable_progress_bar=False)
        for scale in model.module.embedded:
            out[f"{name}, {scale}"] = model.get_latent_representation(scale=scale)
    return out, table.obs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tissue", choices=["own", *KINDS], default="own")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--cells", type=int, default=8_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for seed in range(arguments.seeds):
        found, truth = embeddings(arguments.tissue, arguments.cells, seed, arguments.epochs, arguments.variants)
        for name, matrix in found.items():
            clusterings = cluster(matrix, seed)
            for what in TRUTHS if arguments.tissue == "own" else TRUTHS[:1]:
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
