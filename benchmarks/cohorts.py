"""Cohorts: niches of donors that were left out, standardisation of slides, and the error rates of comparisons.

    python benchmarks/cohorts.py niches
    python benchmarks/cohorts.py abundance [--depths 1500 150]

`niches` trains one model a seed on six simulated donors with batch effects, and embeds three more. Niches that the
three get from prototypes are compared with a joint clustering of all nine. `abundance` tests simulated cohorts of 6 + 6
donors, whose niches are drawn without any tissue.
"""

from __future__ import annotations

import argparse
import time
import warnings
from importlib.util import find_spec

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix
from scipy.stats import binom
from spatialdata import SpatialData

import sigmma_sc as sg
from sigmma_sc import SIGMMA, NichePrototypes
from sigmma_sc.metrics import niche_agreement, niche_mixing
from sigmma_sc.niches.compare import abundance_table
from sigmma_sc.niches.standardise import standardise

N_DONORS, N_LEFT_OUT = 9, 3
SCALES = ("micro", "meso", "macro")


def cohort(n_cells: int, seed: int, strength: float) -> SpatialData:
    """One slide a donor: stains and genes differ as in `simulate_tissue`, genes and depth further still."""
    sdata = sg.datasets.simulate_tissue(n_cells=n_cells, n_slides=N_DONORS, seed=seed)
    table = sdata["table"]
    rng = np.random.default_rng([seed, N_DONORS])
    donor = table.obs["donor"].cat.codes.to_numpy()
    factor = rng.uniform(0.4, 1.0, (N_DONORS, 1)) * np.exp(rng.normal(0, strength, (N_DONORS, table.n_vars)))
    table.X = csr_matrix(rng.poisson(table.X.toarray() * factor[donor]).astype(np.float32))
    regions = [f"slide{k}_cell_circles" for k in range(1, N_DONORS + 1)]
    SIGMMA.setup_spatialdata(
        sdata,
        image_key={region: region.replace("cell_circles", "he_image") for region in regions},
        coordinate_system={region: region.split("_")[0] for region in regions},
        sample_key="donor",
    )
    return sdata


def embedded(n_cells: int, seed: int, strength: float, epochs: int) -> AnnData:
    """Cells of all donors, embedded by a model of the first six."""
    sdata = cohort(n_cells, seed, strength)
    model = SIGMMA(sdata, n_latent=64, seed=seed)
    left_out = [f"donor{k}" for k in range(N_DONORS - N_LEFT_OUT + 1, N_DONORS + 1)]
    model.train(epochs, batch_size=64, lr=3e-3, split={"test": left_out}, enable_progress_bar=False)
    model.write_embeddings()
    return sdata["table"]


def harmonised(x: np.ndarray, obs: pd.DataFrame) -> np.ndarray:
    """Harmony, where harmonypy is installed."""
    import harmonypy

    corrected = np.asarray(harmonypy.run_harmony(x, obs, "donor", verbose=False).Z_corr)
    return corrected if corrected.shape == x.shape else corrected.T


def versions(x: np.ndarray, obs: pd.DataFrame) -> dict[str, np.ndarray]:
    """An embedding as it is, and corrected for donors."""
    found = {"as embedded": x, "mean and SD of a slide": standardise(x, obs["donor"])}
    if find_spec("harmonypy"):
        found["Harmony"] = harmonised(x.astype(np.float64), obs)
    return found


def clustered(x: np.ndarray) -> pd.Categorical:
    """Niches by `tl.niches`."""
    table = AnnData(obs=pd.DataFrame(index=np.arange(len(x)).astype(str)), obsm={"X_sigmma_meso": x.astype(np.float32)})
    sg.tl.niches(table, ["meso"])
    return pd.Categorical(table.obs["sigmma_niche_meso"])


def ari(labels: np.ndarray, reference: np.ndarray) -> float:
    return niche_agreement(np.asarray(labels), np.asarray(reference))["ari"]


def left_out_rows(table: AnnData, seed: int) -> list[dict]:
    """Niches of the donors left out, by prototypes and by joint clustering."""
    rows = []
    out = (table.obs["donor"].cat.codes >= N_DONORS - N_LEFT_OUT).to_numpy()
    for scale in SCALES:
        for how, x in versions(table.obsm[f"X_sigmma_{scale}"], table.obs).items():
            joint = clustered(x)
            alone = clustered(x[~out])
            row = {"scale": scale, "embedding": how, "seed": seed, "niches": len(joint.categories)}
            for name, labels in (("joint", joint[~out]), ("alone", alone)):
                found, _ = NichePrototypes.fit({scale: x[~out]}, {scale: labels}).assign(scale, x[out])
                unlike = found == "unlike any"
                row[f"left out, {name}"] = ari(found[~unlike], joint[out][~unlike])
                row[f"unlike any, {name}"] = unlike.mean()
            row["clustering again"] = ari(alone, joint[~out])
            mixing = niche_mixing(joint, table.obs["donor"], x).loc["all"]
            row |= {"mixing": mixing.mixing, "silhouette": mixing.silhouette, "niche": ari(joint, table.obs["niche"])}
            rows.append(row)
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return rows


def composition_rows(table: AnnData, seed: int) -> list[dict]:
    """The same donors after most tumour is taken from three of them, and most exocrine tissue from three others."""
    donor = table.obs["donor"].cat.codes.to_numpy()
    compartment = table.obs["compartment"].to_numpy()
    lost = ((donor % 3 == 0) & (compartment == "tumor")) | ((donor % 3 == 1) & (compartment == "exocrine"))
    kept = ~lost | (np.random.default_rng(seed).random(len(lost)) < 0.1)
    rows = []
    for scale in SCALES:
        for how, x in versions(table.obsm[f"X_sigmma_{scale}"][kept], table.obs[kept]).items():
            found = clustered(x)
            scores = {truth: ari(found, table.obs[truth][kept]) for truth in ("niche", "compartment")}
            rows.append({"scale": scale, "embedding": how, "seed": seed, **scores})
    return rows


def niches(n_cells: int, seeds: int, strength: float, epochs: int) -> None:
    rows, composition = [], []
    for seed in range(seeds):
        start = time.process_time()
        table = embedded(n_cells, seed, strength, epochs)
        print(f"seed {seed}: trained and embedded in {time.process_time() - start:.0f} s of CPU time", flush=True)
        rows += left_out_rows(table, seed)
        composition += composition_rows(table, seed)
    for found in (rows, composition):
        mean = pd.DataFrame(found).drop(columns="seed").groupby(["scale", "embedding"], sort=False)
        print(mean.mean().round(3).to_markdown())
        print(mean.min().round(3).to_markdown())


def drawn(rng: np.random.Generator, growth: float, n_niches: int, n_donors: int, depths: list[int]) -> pd.DataFrame:
    """Cells of each niche in two groups of donors, Dirichlet-multinomial; one niche grows in the second group."""
    base = rng.dirichlet(np.full(n_niches, 3.0))
    rows = []
    for factor, n_cells in zip((1.0, growth), depths, strict=True):
        share = base * np.r_[factor, np.ones(n_niches - 1)]
        rows += [rng.multinomial(n_cells, rng.dirichlet(50 * share / share.sum())) for _ in range(n_donors)]
    return pd.DataFrame(rows, columns=[str(k) for k in range(n_niches)])


def abundance(n_simulations: int, n_donors: int, depths: list[int]) -> None:
    condition = pd.Series(pd.Categorical(np.repeat(["a", "b"], n_donors)))
    low, high = binom.interval(0.95, n_simulations, 0.05)
    print(f"95 % of a binomial around 0.05: {low / n_simulations:.3f} to {high / n_simulations:.3f}")
    rows = []
    for n_niches in (4, 6, 8, 12, 20):
        for growth in (1.0, 2.0, 4.0):
            rng = np.random.default_rng(n_niches)
            p_first, found, power = [], [], []
            for _ in range(n_simulations):
                test = abundance_table(drawn(rng, growth, n_niches, n_donors, depths), condition, "a")
                significant = (test.q_value < 0.05).to_numpy()
                # Under the null the first niche is any niche; otherwise the second is the first that stays.
                p_first.append(test.p_value[0 if growth == 1 else 1] < 0.05)
                wrong = significant if growth == 1 else significant[1:]
                found.append(wrong.sum() / max(1, significant.sum()))
                power.append(significant[0])
            row = {"niches": n_niches, "growth": growth, "p < 0.05, niche that stays": np.mean(p_first)}
            rows.append({**row, "false discoveries": np.mean(found), "power": np.mean(power) if growth > 1 else np.nan})
    print(pd.DataFrame(rows).round(3).to_markdown(index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["niches", "abundance"])
    parser.add_argument("--cells", type=int, default=1500, help="cells of a slide")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument(
        "--strength", type=float, default=0.3, help="standard deviation of a donor's log factor of a gene"
    )
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--depths", type=int, nargs=2, default=[1500, 1500], help="cells of a donor of each condition")
    parser.add_argument("--donors", type=int, default=6, help="donors of a condition")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.what == "niches":
        niches(arguments.cells, arguments.seeds, arguments.strength, arguments.epochs)
    else:
        abundance(arguments.simulations, arguments.donors, arguments.depths)


if __name__ == "__main__":
    main()
