"""Retrieval on held-out spatial blocks of one section: SIGMMA, its ablations, and a CLIP-style pair of linear heads.

Every method sees the same tiles, features of one frozen image encoder, split, batches and optimiser; what differs is named
in its row. The CLIP-style baseline is one scale: the 128 µm crop's feature and the tile's pooled gene vector, a linear head
each. "1D genes, three scales" keeps SIGMMA's image tower and its three losses, and replaces the cell graph by that vector.

    python benchmarks/heldout_blocks.py pancreas.zarr --weights mobilenetv2_100.safetensors
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import pandas as pd
import spatialdata
import torch
from torch import nn

from sigmma_sc import SIGMMA, ImageEncoder
from sigmma_sc.metrics import retrieval_table
from sigmma_sc.nn.image import ImageTower, Standardise
from sigmma_sc.nn.losses import info_nce
from sigmma_sc.nn.towers import ProjectionHead
from sigmma_sc.tissue.setup import get_table
from sigmma_sc.train.batches import make_batch
from sigmma_sc.train.nodes import counts_of


class GeneVector(nn.Module):
    """Pooled counts of a tile, scaled to the training median and logged, against patch features of some scales."""

    def __init__(self, counts, n_image, grids, scales, head, n_latent, temperature):
        super().__init__()
        self.counts, self.scales, self.temperature = counts, scales, temperature
        self.target = 1.0
        self.image_tower, self.gene_standardise = ImageTower(n_image, grids), Standardise(counts.shape[1])
        self.image_heads = nn.ModuleList([head(n_image, n_latent) for _ in scales])
        self.gene_heads = nn.ModuleList([head(counts.shape[1], n_latent) for _ in scales])

    def genes(self, batch):
        pooled = torch.zeros(len(batch["patches"]), self.counts.shape[1])
        return pooled.index_add_(0, batch["tile"], self.counts[batch["cells"]])

    def logs(self, pooled):
        return torch.log1p(pooled / pooled.sum(1, keepdim=True).clamp_min(1) * self.target)

    def fit(self, batch):
        pooled = self.genes(batch)
        self.target = float(pooled.sum(1).median())
        self.gene_standardise.fit(self.logs(pooled))
        self.image_tower.fit(batch["patches"])

    def forward(self, batch):
        genes = self.gene_standardise(self.logs(self.genes(batch)))
        # A single scale is the coarsest, the last of the tower.
        pooled = self.image_tower(batch["patches"])[-len(self.scales) :]
        image = {s: head(z) for s, head, z in zip(self.scales, self.image_heads, pooled, strict=True)}
        return {
            "image": image,
            "transcriptome": {s: h(genes) for s, h in zip(self.scales, self.gene_heads, strict=True)},
        }

    def losses(self, out):
        return {s: info_nce(out["image"][s], out["transcriptome"][s], self.temperature) for s in self.scales}


def batch_of(model, slide, role):
    """All covering tiles of one role as one batch, with their patch features."""
    tiles, _ = model.data.covering(slide)
    which = np.flatnonzero(model.data.roles_of(slide, len(tiles)) == role)
    data = model.data.tensors(slide, tiles, torch.device("cpu"))
    return {**make_batch(data, which, model.setup.grids), "patches": data.patch_batch(which)}


def gene_vector(model, slide, scales, head):
    """Replace the towers of an untrained model by gene vectors, fitted on the training tiles."""
    table = get_table(slide.sdata, model.setup)
    parts = [torch.from_numpy(part.toarray()) for _, part in counts_of(table, slide.rows, model.setup.layer)]
    counts = torch.cat(parts)
    model.data.assign_roles([slide], "blocks")
    model.data.fit_nodes([slide])
    config = model.config
    torch.manual_seed(config["seed"])
    model.module = GeneVector(
        counts, model.image_encoder.dim, model.setup.grids, scales, head, config["n_latent"], config["temperature"]
    )
    model.module.fit(batch_of(model, slide, "train"))


def linear(n_input, n_latent):
    return nn.Linear(n_input, n_latent)


def residual(n_input, n_latent):
    return ProjectionHead(n_input, n_latent, 0.1)


METHODS = {
    "CLIP-style, one scale, linear heads, 1D genes": (("macro",), linear),
    "1D genes, three scales": (("micro", "meso", "macro"), residual),
    "SIGMMA, no added edges": "none",
    "SIGMMA, fully connected": "full",
    "SIGMMA, sampled edges": "sampled",
}


def run(sdata, encoder, method, seed, features, train):
    """Train one method with one seed; its retrieval table."""
    edges = METHODS[method] if isinstance(METHODS[method], str) else "none"
    model = SIGMMA(sdata, encoder, edges=edges, seed=seed)
    model.data.features = features or model.data.features
    slide = model._slides[0]
    if not isinstance(METHODS[method], str):
        gene_vector(model, slide, *METHODS[method])
    start = time.perf_counter()
    model.train(split="blocks", enable_progress_bar=False, **train)
    seconds = time.perf_counter() - start
    if isinstance(METHODS[method], str):
        table = model.evaluate_retrieval()
    else:
        batch = batch_of(model, slide, "test")
        with torch.no_grad():
            out = model.module.eval()(batch)
        numpy = {tower: {s: z.numpy() for s, z in out[tower].items()} for tower in ("image", "transcriptome")}
        table = retrieval_table(numpy["image"], numpy["transcriptome"], np.full(len(batch["patches"]), slide.name))
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
