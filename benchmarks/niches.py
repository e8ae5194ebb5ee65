"""Niches of simulated tissue against the truth, by SIGMMA's scales and by what is commonly done without an image.

python benchmarks/niches.py
python benchmarks/niches.py --tissue proportions --variants "SIGMMA" "SIGMMA, no added edges"

With packages of others, whose embeddings `peers.py` computes in an environment of its own:

python benchmarks/niches.py --write-tissue sections
python benchmarks/niches.py --embeddings embeddings --variants
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

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
SMOOTHED = (5, 10)  # neighbours over which SIGMMA's embeddings are averaged too
WIDTHS = (5, 10, 20, 40, 60)  # standard deviation of the Gaussian, µm
VARIANTS = {
    "SIGMMA": {},
    "SIGMMA, one mean over edges": {"relational_edges": False},
    "SIGMMA, no added edges": {"edges": "none"},
    "SIGMMA, meso loss alone": {"loss_weights": (0, 1, 0)},
    "SIGMMA, macro loss alone": {"loss_weights": (0, 0, 1)},
}


def cluster(matrix: np.ndarray, seed: int, most: int) -> list[np.ndarray]:
    """Leiden at each resolution, in rising order, up to the first with at least ``most`` clusters."""
    cells = AnnData(np.asarray(matrix, np.float32))
    neighbour_graph(cells.X, seed=seed).write(cells)
    found = []
    for resolution in RESOLUTIONS:
        sc.tl.leiden(cells, resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        found.append(cells.obs["leiden"].to_numpy())
        if len(np.unique(found[-1])) >= most:
            break
    return found


def components(counts: AnnData, seed: int) -> np.ndarray:
    """PCA of log-normalised counts."""
    adata = counts.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=50, random_state=seed)
    return adata.obsm["X_pca"]


def averaged(matrix: np.ndarray, xy: np.ndarray, n: int) -> np.ndarray:
    """Mean over a cell and its n nearest, the common way to give a cell its neighbourhood."""
    adata = AnnData(obsm={"spatial": xy}, shape=(len(matrix), 0))
    sq.gr.spatial_neighbors(adata, n_neighs=n, coord_type="generic")
    return (matrix + adata.obsp["spatial_connectivities"] @ matrix) / (n + 1)


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


def write_section(sdata: SpatialData, path: Path) -> None:
    """Counts, positions in µm and truth of a section, for packages that do not read SpatialData."""
    table = sdata["table"]
    truth = table.obs[[name for name in TRUTHS if name in table.obs]]
    path.parent.mkdir(parents=True, exist_ok=True)
    AnnData(csr_matrix(table.X), obs=truth, var=table.var[[]], obsm={"spatial": table.obsm["spatial"]}).write(path)


def of_peers(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], pd.DataFrame]:
    """Embeddings, labels and costs that `peers.py` wrote for one section."""
    arrays = {path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))}
    labels = {name: array for name, array in arrays.items() if array.ndim == 1}
    matrices = {name: array for name, array in arrays.items() if array.ndim == 2}
    return matrices, labels, pd.concat(pd.read_csv(path) for path in sorted(folder.glob("*.csv")))


def family(method: str) -> str:
    """What a method is a setting of: its grid."""
    for name in ("PCA, mean", "PCA, Gaussian"):
        if method.startswith(name):
            return name
    return method.split(",")[0]


def best_of_grids(rows: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Setting of each grid whose mean agreement with the truth is largest, and what its embedding cost."""
    means = rows.groupby(["method", "truth"], sort=False).ari.agg(["mean", "std"]).reset_index()
    means["grid"] = means.method.map(family)
    best = means.loc[means.groupby(["truth", "grid"], sort=False)["mean"].idxmax()]
    if costs.empty:
        return best
    cost = costs.groupby("method")[["seconds", "peak_gb"]].mean()
    # A clustering of the package's own has the cost of the embedding it is of.
    embedding = best.method.map(lambda name: name if name in cost.index else name.rsplit(", ", 1)[0])
    return best.assign(**{column: embedding.map(cost[column]) for column in cost})


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
            cells = model.get_latent_representation(scale=scale)
            out[f"{name}, {scale}"] = cells
            for n in SMOOTHED:
                out[f"{name}, {scale}, mean of {n} neighbours"] = averaged(cells, table.obsm["spatial"], n)
    return out, table.obs


def score(matrices: dict[str, np.ndarray], labels: dict[str, np.ndarray], truth: pd.DataFrame, seed: int) -> list[dict]:
    """Agreement of every embedding's Leiden clusters, and of labels at hand, with each truth."""
    found = []
    for name, matrix in matrices.items():
        # Twice as many clusters as classes are further from the truth's number than one cluster is.
        clusterings = cluster(matrix, seed, most=2 * truth.nunique().max())
        for what in truth:
            # The resolution whose number of clusters is nearest to the truth's: the same help for everyone.
            n = truth[what].nunique()
            found.append((name, what, min(clusterings, key=lambda labels: abs(len(np.unique(labels)) - n))))
    for name, clusters in labels.items():
        method, what = name.removesuffix("]").split(" [")
        found.append((method, what, clusters))
    return [
        {
            "method": method,
            "truth": what,
            "ari": niche_agreement(clusters, truth[what].to_numpy())["ari"],
            "clusters": len(np.unique(clusters)),
        }
        for method, what, clusters in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tissue", choices=["own", *KINDS], default="own")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--cells", type=int, default=8_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--write-tissue", type=Path, metavar="FOLDER", help="write the sections for peers.py and stop")
    parser.add_argument("--embeddings", type=Path, metavar="FOLDER", help="score also what peers.py wrote here")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    truths = TRUTHS if arguments.tissue == "own" else TRUTHS[:1]
    rows = []
    costs = [pd.DataFrame()]
    for seed in range(arguments.seeds):
        name = f"{arguments.tissue}_{seed}"
        if arguments.write_tissue:
            sdata = section(arguments.tissue, arguments.cells, seed)
            write_section(sdata, arguments.write_tissue / f"{name}.h5ad")
            continue
        found, truth = embeddings(arguments.tissue, arguments.cells, seed, arguments.epochs, arguments.variants)
        labels = {}
        if arguments.embeddings:
            of_others, labels, cost = of_peers(arguments.embeddings / name)
            found.update(of_others)
            costs.append(cost)
        rows += [{"seed": seed, **row} for row in score(found, labels, truth[list(truths)], seed)]
        print(
            pd.DataFrame(rows).pivot_table(index="method", columns="truth", values="ari", sort=False).round(3),
            flush=True,
        )
    if arguments.write_tissue:
        return
    rows = pd.DataFrame(rows)
    table = rows.groupby(["method", "truth"], sort=False).ari.agg(["mean", "std"]).unstack("truth")
    print(table.round(3).to_markdown())
    print(best_of_grids(rows, pd.concat(costs)).round(3).to_markdown(index=False))


if __name__ == "__main__":
    main()
