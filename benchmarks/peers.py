"""Embeddings of other packages for the sections that `niches.py --write-tissue` wrote.

Runs in an environment of its own, without this package:

python3.11 -m venv peers && peers/bin/pip install -r benchmarks/peers.txt
python benchmarks/niches.py --write-tissue sections --variants
peers/bin/python benchmarks/peers.py sections embeddings
python benchmarks/niches.py --embeddings embeddings --variants

Each section and package has a process of its own, so that its peak memory is known. One setting of a package gives
`<setting>.npy`. Labels of the package's own clustering, at the number of classes of a truth, are in
`<setting>, <clustering> [<truth>].npy`. Costs are in `<package>.csv`. A package that has this file for a section is not
run again.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from functools import partial
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
RUNS = 5  # fits of its mixture, of which its ClusterAutoK takes the likeliest
NEIGHBOURS = (6, 10, 15, 30)  # BANKSY's k_geom; twice as many for its gradient
LAMBDAS = (0.2, 0.8)  # BANKSY's weights for cell typing and for domains
HOPS = (2,)  # Novae's n_hops_local and n_hops_view; 2 is its default
COMPONENTS = (10, 50)  # of the PCA: as many as scVI's by default, and as for the methods of `niches.py`

Embedding = tuple[str, np.ndarray, dict[str, np.ndarray], float]  # name, matrix, labels, seconds of the processor


def normalised(counts: AnnData) -> AnnData:
    """Log-normalised copy."""
    adata = counts.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    return adata


def n_classes(adata: AnnData) -> dict[str, int]:
    """Number of classes of each truth that the section has."""
    return {truth: adata.obs[truth].nunique() for truth in TRUTHS if truth in adata.obs}


def pca(counts: AnnData, seed: int) -> Iterator[Embedding]:
    """CellCharter on principal components."""
    for n in COMPONENTS:
        start = time.process_time()
        adata = normalised(counts)
        sc.pp.pca(adata, n_comps=n, random_state=seed)
        yield from cellcharter(f"CellCharter, PCA of {n}", adata, "X_pca", seed, time.process_time() - start)


def scvi(counts: AnnData, seed: int) -> Iterator[Embedding]:
    """CellCharter on scVI's latent space, as its tutorials do for counts."""
    import scvi

    start = time.process_time()
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(counts)
    model = scvi.model.SCVI(counts)
    model.train(early_stopping=True, enable_progress_bar=False)
    counts.obsm["X_scVI"] = model.get_latent_representation(counts)
    yield from cellcharter("CellCharter, scVI", counts, "X_scVI", seed, time.process_time() - start)


def cellcharter(name: str, adata: AnnData, use_rep: str, seed: int, spent: float) -> Iterator[Embedding]:
    """Averages over each hop of a Delaunay graph without its longest edges; the likeliest of some mixtures of Gaussians.

    ``spent`` is what the input of every setting has cost, in seconds of the processor.
    """
    import cellcharter as cc
    import lightning
    import squidpy as sq

    start = time.process_time()
    sq.gr.spatial_neighbors(adata, coord_type="generic", delaunay=True)
    cc.gr.remove_long_links(adata)
    shared = spent + time.process_time() - start
    for n_layers in LAYERS:
        start = time.process_time()
        cc.gr.aggregate_neighbors(adata, n_layers=n_layers, use_rep=use_rep)
        seconds = shared + time.process_time() - start
        labels = {}
        for truth, n in n_classes(adata).items():
            lightning.seed_everything(seed, verbose=False)  # the mixture does not use its own random_state
            mixtures = [cc.tl.Cluster(n_clusters=n) for _ in range(RUNS)]
            for mixture in mixtures:
                mixture.fit(adata)
            likeliest = min(mixtures, key=lambda mixture: mixture.nll_)
            labels[f"GMM [{truth}]"] = np.asarray(likeliest.predict(adata))
        yield f"{name}, {n_layers} hops", adata.obsm["X_cellcharter"], labels, seconds


def banksy(centred: bool, counts: AnnData, seed: int) -> Iterator[Embedding]:
    """20 principal components of expression beside its mean over neighbours and the size of its gradient.

    pybanksy 1.3.5 takes the neighbours' mean off before the gradient only where `variance_balance` is set, which does
    nothing else (`findings/banksy_variance_balance_is_centring.sh`).
    """
    from banksy.embed_banksy import generate_banksy_matrix
    from banksy.initialize_banksy import initialize_banksy
    from sklearn.decomposition import PCA

    for n in NEIGHBOURS:
        for weight in LAMBDAS[1:] if centred else LAMBDAS:
            start = time.process_time()
            adata = normalised(counts)
            adata.X = adata.X.toarray()
            graphs = initialize_banksy(
                adata,
                ("x", "y", "spatial"),
                num_neighbours=n,
                plt_edge_hist=False,
                plt_nbr_weights=False,
                plt_theta=False,
            )
            _, matrix = generate_banksy_matrix(adata, graphs, [weight], 1, variance_balance=centred, verbose=False)
            embedding = PCA(20, random_state=seed).fit_transform(matrix.X)
            name = f"BANKSY{', centred' if centred else ''}, {n} neighbours, lambda {weight}"
            yield name, embedding, {}, time.process_time() - start


def novae(counts: AnnData, seed: int) -> Iterator[Embedding]:
    """Novae trained on the section alone; its prototypes are merged until as many are left as the truth has classes."""
    import lightning
    from novae import Novae, spatial_neighbors

    for hops in HOPS:
        start = time.process_time()
        lightning.seed_everything(seed, verbose=False)
        adata = normalised(counts)
        spatial_neighbors(adata, radius=80)
        model = Novae(adata, n_hops_local=hops, n_hops_view=hops)
        model.fit(enable_progress_bar=False)
        model.compute_representations()
        seconds = time.process_time() - start
        labels = {}
        for truth, n in n_classes(counts).items():
            if adata.obs["novae_leaves"].nunique() < n:
                print(f"Novae has fewer prototypes with cells than {truth} has classes: Leiden alone")
                continue
            key = model.assign_domains(adata, n_domains=n)
            labels[f"levels [{truth}]"] = adata.obs[key].astype(str).to_numpy(str)
        yield f"Novae, {hops} hops", adata.obsm["novae_latent"], labels, seconds


PEERS = {
    "CellCharter, PCA": pca,
    "CellCharter, scVI": scvi,
    "BANKSY": partial(banksy, False),
    "BANKSY, centred": partial(banksy, True),
    "Novae": novae,
}


def embed(path: Path, peer: str, out: Path) -> None:
    """Write the embeddings of one package for one section, and what each cost."""
    counts = ad.read_h5ad(path)
    if len(np.unique(counts.obsm["spatial"], axis=0)) < counts.n_obs:
        raise ValueError(f"{path} has two cells at one place; add a small random distance before comparing packages")
    out.mkdir(parents=True, exist_ok=True)
    costs = []
    for name, matrix, labels, seconds in PEERS[peer](counts, seed=int(path.stem.rsplit("_", 1)[1])):
        np.save(out / f"{name}.npy", np.asarray(matrix, np.float32))
        for clustering, found in labels.items():
            np.save(out / f"{name}, {clustering}.npy", np.asarray(found, str))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        costs.append({"method": name, "seconds": seconds, "peak_gb": peak, "zero_rows": (~matrix.any(1)).sum()})
        print(path.stem, costs[-1], flush=True)
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
            if (arguments.out / path.stem / f"{peer}.csv").exists():
                continue
            subprocess.run([sys.executable, __file__, path, arguments.out, "--peers", peer], check=True)


if __name__ == "__main__":
    main()
