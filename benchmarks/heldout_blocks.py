"""Retrieval on held-out spatial blocks of one section: SIGMMA and its ablations.

Every method sees the same tiles, features of one frozen image encoder, split, batches and optimiser; its row names the
switches that differ.

    python benchmarks/heldout_blocks.py pancreas.zarr --weights mobilenetv2_100.safetensors
"""

from __future__ import annotations

import argparse
import time
import warnings

import pandas as pd
import spatialdata

from sigmma_sc import SIGMMA, ImageEncoder

METHODS = {
    "1D genes, macro": {"cells": "genes", "loss_weights": (0, 0, 1)},
    "1D genes, three scales": {"cells": "genes"},
    "cell graph, macro": {"loss_weights": (0, 0, 1)},
    "SIGMMA, no added edges": {"edges": "none"},
    "SIGMMA, fully connected": {"edges": "full"},
    "SIGMMA, sampled edges": {},
}


def run(sdata, encoder, method, seed, features, train):
    """Train one method with one seed; its retrieval table, and the patch features for the next."""
    model = SIGMMA(sdata, encoder, seed=seed, **METHODS[method])
    model.data.features = features or model.data.features
    start = time.perf_counter()
    model.train(split="blocks", enable_progress_bar=False, **train)
    seconds = time.perf_counter() - start
    table = model.evaluate_retrieval()
    if len(set(table.scale)) > 1:
        table = table[table.scale == "all"]
    loss = model.history["validation_loss"].to_numpy()
    row = {"method": method, "seed": seed, "epochs": int(loss.argmin()) + 1, "seconds": seconds}
    return table.assign(**row), model.data.features


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--weights", required=True, help="mobilenetv2_100.safetensors")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--max-epochs", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--csv", help="write every row here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    sdata = spatialdata.read_zarr(args.store)
    SIGMMA.setup_spatialdata(sdata)
    encoder = ImageEncoder.from_timm("mobilenetv2_100", args.weights, mean=(0.5,) * 3, std=(0.5,) * 3, pad_type="same")
    rows, features = [], None
    for seed in range(args.seeds):
        for method in args.methods:
            table, features = run(
                sdata, encoder, method, seed, features, {"max_epochs": args.max_epochs, "lr": args.lr}
            )
            rows.append(table)
            said = table.set_index("direction")[["recall@5%", "recall@10%", "recall@15%"]].round(3)
            print(f"seed {seed}, {method}, best epoch {table.epochs.iloc[0]}\n{said}\n", flush=True)
    rows = pd.concat(rows)
    if args.csv:
        rows.to_csv(args.csv, index=False)
    columns = ["recall@5%", "recall@10%", "recall@15%"]
    groups = rows.groupby(["direction", "method"], sort=False)
    mean, spread = groups[columns].mean().round(3).astype(str), groups[columns].std().round(3).astype(str)
    pools, chance = rows.groupby("seed")["pool"].first().tolist(), rows[[f"chance@{p}%" for p in (5, 10, 15)]].mean()
    print(f"Split: spatial blocks, guard band of one tile. Pool by seed: {pools}. Chance: {chance.round(3).tolist()}.")
    print(f"Mean ± SD over {args.seeds} seeds.")
    print((mean + " ± " + spread).to_string())


if __name__ == "__main__":
    main()
