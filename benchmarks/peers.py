"""Embeddings of other packages for the sections that `niches.py --write-tissue` wrote.

Runs in an environment of its own, without this package:

python3.11 -m venv peers && peers/bin/pip install -r benchmarks/peers.txt
python benchmarks/niches.py --write-tissue sections --variants
peers/bin/python benchmarks/peers.py sections embeddings
python benchmarks/niches.py --embeddings embeddings --variants

Each section and package has a process of its own, so that its peak memory is known. One setting of a package gives
`<setting>.npy`. Labels of the package's own clustering, at the number of classes of a truth, are in
`<setting>, <clustering> [<truth>].npy`. Costs are in `<package>.csv`.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

TRUTHS = ("niche", "compartment")
LAYERS = (1, 2, 3, 4)  # hops that CellCharter concatenates
NEIGHBOURS = (6, 10, 15, 30)  # BANKSY's k_geom; twice as many for its gradient
LAMBDAS = (0.2, 0.8)  # BANKSY's weights for cell typing and for domains
HOPS = (1, 2, 3)  # Novae's n_hops_local, with n_hops_view alike
COMPONENTS = 50  # of PCA, as for the methods of `niches.py`

Embedding = tuple[str, np.ndarray, dict[str, np.ndarray]]


def normalised(counts: AnnData) -> AnnData:
    """Log-normalised copy."""
    adata = counts.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    return adata


def n_classes(adata: AnnData) -> dict[str, int]:
    """Number of classes of each truth that the section has."""
    return {truth: adata.obs[truth].nunique() for truth in TRUTHS if truth in adata.obs}


def cellcharter(counts: AnnData, seed: int) -> Iterator[Embedding]:
    """PCA or scVI, averaged over each hop of a Delaunay graph without its longest edges; mixture of Gaussians."""
    import cellcharter as cc
    import scvi
    import squidpy as sq
    import torch

    for source in ("PCA", "scVI"):
        adata = normalised(counts)
        if source == "PCA":
            sc.pp.pca(adata, n_comps=COMPONENTS, random_state=seed)
        else:
            scvi.settings.seed = seed
            scvi.model.SCVI.setup_anndata(counts)
            model = scvi.model.SCVI(counts)
            model.train(early_stopping=True, enable_progress_bar=False)
            adata.obsm["X_scVI"] = model.get_latent_representation(counts)
        sq.gr.spatial_neighbors(adata, coord_type="generic", delaunay=True)
        cc.gr.remove_long_links(adata)
        for n_layers in LAYERS:
            cc.gr.aggregate_neighbors(adata, n_layers=n_layers, use_rep="X_pca" if source == "PCA" else "X_scVI")
            labels = {}
            for truth, n in n_classes(counts).items():
                torch.manual_seed(seed)
                mixture = cc.tl.Cluster(n_clusters=n, random_state=seed)
                mixture.fit(adata)
                labels[f"GMM [{truth}]"] = np.asarray(mixture.predict(adata))
            yield f"CellCharter, {source}, {n_layers} hops", adata.obsm["X_cellcharter"], labels


def banksy(counts: AnnData, seed: int) -> Iterator[Embedding]:
    """20 principal components of expression beside its mean over neighbours and the size of its gradient."""
    from banksy.embed_banksy import generate_banksy_matrix
    from banksy.initialize_banksy import initialize_banksy
    from sklearn.decomposition import PCA

    adata = normalised(counts)
    adata.X = adata.X.toarray()
    for n in NEIGHBOURS:
        graphs = initialize_banksy(
            adata,
            ("x", "y", "spatial"),
            num_neighbours=n,
            plt_edge_hist=False,
            plt_nbr_weights=False,
            plt_theta=False,
        )
        generate_banksy_matrix(adata, graphs, list(LAMBDAS), max_m=1, verbose=False)
        for weight in LAMBDAS:
            matrix = graphs["scaled_gaussian"][weight]["adata"].X
            yield f"BANKSY, lambda {weight}, {n} neighbours", PCA(20, random_state=seed).fit_transform(matrix), {}


def novae(counts: AnnData, seed: int) -> Iterator[Embedding]:
    """Novae's own settings, trained on the section alone; prototypes merged until as many as the truth has classes."""
    import lightning
    from novae import Novae, spatial_neighbors

    for hops in HOPS:
        lightning.seed_everything(seed, verbose=False)
        adata = normalised(counts)
        spatial_neighbors(adata, radius=80)
        model = Novae(adata, n_hops_local=hops, n_hops_view=hops)
        model.fit(max_epochs=20, enable_progress_bar=False)
        model.compute_representations()
        labels = {}
        for truth, n in n_classes(counts).items():
            key = model.assign_domains(adata, n_domains=n)
            labels[f"levels [{truth}]"] = adata.obs[key].astype(str).to_numpy(str)
        yield f"Novae, {hops} hops", adata.obsm["novae_latent"], labels


PEERS = {"CellCharter": cellcharter, "BANKSY": banksy, "Novae": novae}


def embed(path: Path, peer: str, out: Path) -> None:
    """Write the embeddings of one package for one section, and what each has cost since the one before."""
    counts = ad.read_h5ad(path)
    if len(np.unique(counts.obsm["spatial"], axis=0)) < counts.n_obs:
        raise ValueError(f"{path} has two cells at one place; add a small random distance before comparing packages")
    out.mkdir(parents=True, exist_ok=True)
    costs = []
    start = time.process_time()
    for name, matrix, labels in PEERS[peer](counts, seed=int(path.stem.rsplit("_", 1)[1])):
        seconds = time.process_time() - start
        np.save(out / f"{name}.npy", np.asarray(matrix, np.float32))
        for clustering, found in labels.items():
            np.save(out / f"{name}, {clustering}.npy", np.asarray(found, str))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        costs.append({"method": name, "seconds": seconds, "peak_gb": peak, "zero_rows": (~matrix.any(1)).sum()})
        print(path.stem, costs[-1], flush=True)
        start = time.process_time()
    pd.DataFrame(costs).to_csv(out / f"{peer}.csv", index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", type=Path, help="a folder of .h5ad files, or one of them")
    parser.add_argument("out", type=Path)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    arguments = parser.parse_args()
    if arguments.sections.is_file():
        embed(arguments.sections, arguments.peers[0], arguments.out / arguments.sections.stem)
        return
    for path in sorted(arguments.sections.glob("*.h5ad")):
        for peer in arguments.peers:
            subprocess.run([sys.executable, __file__, path, arguments.out, "--peers", peer], check=True)


if __name__ == "__main__":
    main()
