"""Forward and backward of the cell-graph tower: ours against other ways to compute the same, and against no edge addition.

Tiles are drawn from whole sections: as they come, evenly over tile sizes of 5 to 400 cells mixed with tiles of 256 bins,
and bins alone. Every method gets the batch in its own layout beforehand; only the step itself is timed. Listed pairs of
256 tiles do not fit in 24 GB, so batches hold 64 tiles; what ours takes for 256 is measured at the end.

    pairs listed   candidate pairs as an edge list, [h_u ‖ h_v] materialised, messages scattered (PyG): the method as written
    padded         dense tiles, all padded to the largest of the batch
    fixed graphs   three PyG SAGE layers on the micro graph, no edge addition: what the rest of the tower costs at least

    python benchmarks/graph_tower.py pancreas.zarr kidney.zarr
"""

from __future__ import annotations

import argparse
import time
import warnings
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import spatialdata
import torch
from torch import nn
from torch_geometric.nn import SAGEConv
from torch_geometric.utils import scatter, softmax

from sigmma_sc import SIGMMA
from sigmma_sc.nn.cellgraph import CellGraphTower
from sigmma_sc.nn.layout import cell_layout
from sigmma_sc.tissue.graph import edges_within, spatial_graph
from sigmma_sc.tissue.tiling import block_of, covering_tiles

GRIDS, WIDTH, N_FEATURES = (4, 2, 1), 128, 50
LARGE = 256
"""Tiles of the large batches, of which only our peak memory is measured."""


def tiles_of(store, microns_per_pixel=None):
    """Cells of a section by tile: offsets in the tile, micro edges, tile sizes."""
    sdata = spatialdata.read_zarr(store)
    SIGMMA.setup_spatialdata(sdata, microns_per_pixel=microns_per_pixel)
    slide = SIGMMA(sdata)._slides[0]
    tiles, _ = covering_tiles(slide.xy, slide.width, slide.height, 128.0 / slide.microns_per_pixel)
    return slide, tiles, spatial_graph(slide.xy * slide.microns_per_pixel, 6, None)


def parts_of(section, which):
    """Offsets, tile sides and micro edges of some tiles of a section."""
    slide, tiles, adjacency = section
    some = tiles.take(which)
    tile = np.repeat(np.arange(len(which)), some.n_cells)
    blocks = np.stack([block_of(slide.xy[some.cells] - some.origins[tile], some.side, b) for b in GRIDS])
    source, target = edges_within(adjacency, some.cells, tile * GRIDS[0] ** 2 + blocks[0])
    return some.n_cells, blocks, source, target


def join(parts):
    """Several parts as one batch."""
    counts = np.concatenate([p[0] for p in parts])
    shift = np.cumsum([0] + [p[0].sum() for p in parts])
    source, target = (np.concatenate([p[i] + s for p, s in zip(parts, shift[:-1], strict=True)]) for i in (2, 3))
    return np.r_[0, np.cumsum(counts)], np.concatenate([p[1] for p in parts], axis=1), source, target


def batches(cells, bins, n_tiles, seed=0):
    """Name → batch."""
    rng = np.random.default_rng(seed)
    n = cells[1].n_cells
    whole = np.flatnonzero(bins[1].n_cells >= 250)
    edges = np.geomspace(5, min(400, n.max()) + 1, 9)
    even = [np.flatnonzero((n >= a) & (n < b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    even = np.concatenate(
        [rng.choice(found, (n_tiles - n_tiles // 8) // 8, replace=True) for found in even if len(found)]
    )
    return {
        "cells as they come": join([parts_of(cells, rng.choice(np.flatnonzero(n >= 5), n_tiles, replace=False))]),
        "mixed, 5 to 400 cells and bins": join(
            [parts_of(cells, even), parts_of(bins, rng.choice(whole, n_tiles // 8))]
        ),
        "256 bins": join([parts_of(bins, rng.choice(whole, n_tiles, replace=False))]),
    }


class Listed(nn.Module):
    """The same tower with the same weights on edge lists, candidate pairs materialised."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def prepare(self, indptr, blocks, source, target):
        """Micro edges and all ordered pairs inside a block at each coarser grid."""
        self.tile = torch.from_numpy(np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)))
        self.n_tiles = len(indptr) - 1
        self.micro = torch.from_numpy(np.stack([source, target]))
        n = indptr[-1]
        linked = set((source * n + target).tolist())
        self.pairs = []
        for level in blocks[1:]:
            found = []
            for a, b in zip(indptr[:-1], indptr[1:], strict=True):
                same = level[a:b, None] == level[None, a:b]
                np.fill_diagonal(same, False)
                found.append(np.argwhere(same) + a)
            pairs = np.concatenate(found).T
            fresh = np.fromiter((k not in linked for k in (pairs[0] * n + pairs[1]).tolist()), bool, pairs.shape[1])
            self.pairs.append(torch.from_numpy(pairs[:, fresh]))

    def forward(self, x):
        """Tile embeddings of every scale."""
        tower, h, out = self.tower, x, []
        edges, weights, drawn = self.micro, torch.ones(self.micro.shape[1]), None
        for k, layer in enumerate(tower.layers):
            if k:
                sampler, (source, target) = tower.samplers[k - 1], self.pairs[k - 1]
                both = torch.cat([h[target], h[source]], 1)
                first = torch.cat([sampler.target.weight, sampler.source.weight], 1)
                logits = (
                    torch.relu(nn.functional.linear(both, first, sampler.target.bias)) @ sampler.weight + sampler.bias
                )
                uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
                noisy = logits + uniform.log() - (-uniform).log1p()
                soft = torch.sigmoid(noisy / tower.edge_temperature)
                new = (noisy > 0).float() + soft - soft.detach()
                # An edge drawn at meso and at macro would count twice: its list is joined once, at the last level.
                edges = torch.cat([edges, self.pairs[k - 1]], 1)
                weights = torch.cat([weights, new if drawn is None else new * (1 - self._at(drawn))])
                drawn = new
            total = scatter(h[edges[0]] * weights[:, None], edges[1], 0, len(h))
            mean = total / scatter(weights, edges[1], 0, len(h))[:, None].clamp_min(1)
            h = nn.functional.gelu(layer.root(h) + layer.neighbours(mean))
            gate = softmax(tower.pools[k].gate(h).squeeze(-1), self.tile, num_nodes=self.n_tiles)
            out.append(scatter(gate[:, None] * h, self.tile, 0, self.n_tiles))
        return out

    def _at(self, drawn):
        """What was drawn at meso, at the places of the macro pairs."""
        if not hasattr(self, "place"):
            n = int(self.tile.shape[0])
            meso, macro = (p[0] * n + p[1] for p in self.pairs)
            order = meso.argsort()
            at = torch.searchsorted(meso[order], macro).clamp_max(len(meso) - 1)
            self.place, self.found = order[at], meso[order[at]] == macro
        return drawn[self.place] * self.found


class Ours(nn.Module):
    """The package's tower."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def prepare(self, indptr, blocks, source, target):
        """Lay out in blocks."""
        self.layout = cell_layout(indptr, blocks, source, target)

    def forward(self, x):
        """Tile embeddings of every scale."""
        return self.tower(x, self.layout)[1]


class PairScore(torch.autograd.Function):
    """``out[t, v, u] = Σ_k w_k relu(a[t, v, k] + b[t, u, k])``, one hidden unit at a time, so that padding fits in memory."""

    @staticmethod
    def forward(ctx, a, b, w):
        ctx.save_for_backward(a, b, w)
        out = a.new_zeros(a.shape[0], a.shape[1], b.shape[1])
        for k in range(a.shape[2]):
            out.addcmul_((a[:, :, None, k] + b[:, None, :, k]).relu_(), w[k])
        return out

    @staticmethod
    def backward(ctx, grad):
        a, b, w = ctx.saved_tensors
        da, db, dw = torch.empty_like(a), torch.empty_like(b), torch.empty_like(w)
        for k in range(a.shape[2]):
            active = (a[:, :, None, k] + b[:, None, :, k]).relu_()
            dw[k] = (grad * active).sum()
            through = grad * (active > 0)
            da[:, :, k], db[:, :, k] = w[k] * through.sum(2), w[k] * through.sum(1)
        return da, db, dw


class Padded(nn.Module):
    """The same tower with the same weights on dense tiles, all padded to the largest of the batch."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def prepare(self, indptr, blocks, source, target):
        """Slots of the cells, and the micro graph as a matrix a tile."""
        counts = np.diff(indptr)
        tile, size = np.repeat(np.arange(len(counts)), counts), counts.max()
        slot = np.arange(indptr[-1]) - indptr[tile]
        index = np.full((len(counts), size), indptr[-1])
        index[tile, slot] = np.arange(indptr[-1])
        self.index, self.mask = torch.from_numpy(index), torch.from_numpy(index < indptr[-1])
        block = np.zeros((len(blocks), *index.shape), np.int64)
        block[:, tile, slot] = blocks
        self.blocks = torch.from_numpy(block)
        self.micro = torch.zeros(len(counts), size, size)
        self.micro[tile[target], slot[target], slot[source]] = 1.0

    def forward(self, x):
        """Tile embeddings of every scale."""
        tower, out, weights = self.tower, [], self.micro
        h = torch.cat([x, x.new_zeros(1, x.shape[1])])[self.index]
        pairs = self.mask[:, :, None] & self.mask[:, None, :] & ~torch.eye(h.shape[1], dtype=torch.bool)
        for k, layer in enumerate(tower.layers):
            if k:
                sampler, block = tower.samplers[k - 1], self.blocks[k]
                logits = PairScore.apply(sampler.target(h), sampler.source(h), sampler.weight) + sampler.bias
                uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
                noisy = logits + uniform.log() - (-uniform).log1p()
                soft = torch.sigmoid(noisy / tower.edge_temperature)
                new = (noisy > 0).float() + soft - soft.detach()
                new = torch.where(pairs & (block[:, :, None] == block[:, None, :]), new, 0.0)
                weights = weights + (1 - weights) * new
            mean = (weights @ h) / weights.sum(-1, keepdim=True).clamp_min(1)
            h = nn.functional.gelu(layer.root(h) + layer.neighbours(mean))
            gate = tower.pools[k].gate(h).squeeze(-1).masked_fill(~self.mask, -torch.inf).softmax(-1)
            out.append(torch.einsum("tp,tpd->td", gate, h))
        return out


class Fixed(nn.Module):
    """Three SAGE layers of PyG on the micro graph, same pooling."""

    def __init__(self, tower):
        super().__init__()
        self.pools = tower.pools
        self.layers = nn.ModuleList([SAGEConv(N_FEATURES if k == 0 else WIDTH, WIDTH) for k in range(3)])

    def prepare(self, indptr, blocks, source, target):
        """Keep the edge list."""
        self.tile = torch.from_numpy(np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)))
        self.n_tiles, self.edges = len(indptr) - 1, torch.from_numpy(np.stack([source, target]))

    def forward(self, x):
        """Tile embeddings of every scale."""
        out = []
        for layer, pool in zip(self.layers, self.pools, strict=True):
            x = nn.functional.gelu(layer(x, self.edges))
            gate = softmax(pool.gate(x).squeeze(-1), self.tile, num_nodes=self.n_tiles)
            out.append(scatter(gate[:, None] * x, self.tile, 0, self.n_tiles))
        return out


def methods():
    """Name → fresh method, all with the same weights."""
    torch.manual_seed(0)
    tower = CellGraphTower(N_FEATURES, WIDTH, dropout=0.0).train()
    return {
        "ours": Ours(tower),
        "pairs listed": Listed(tower),
        "padded": Padded(tower),
        "fixed graphs": Fixed(tower),
    }


def step(method, x):
    """Forward and backward; seconds."""
    start = time.perf_counter()
    sum(z.square().sum() for z in method(x)).backward()
    method.zero_grad()
    return time.perf_counter() - start


def peak(name, batch, threads):
    """Memory that one step adds to the process, in MB."""
    torch.set_num_threads(threads)
    method = methods()[name]
    method.prepare(*batch)
    x = torch.randn(int(batch[0][-1]), N_FEATURES)
    # A small step first, so that libraries are loaded before the measurement.
    (x[:8] @ torch.randn(N_FEATURES, 4, requires_grad=True)).sum().backward()
    # A new process takes over its parent's peak, so Linux is asked to forget it.
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    step(method, x)
    return high_water() - before


def high_water():
    """Largest resident memory so far, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peaks(names, batch):
    """Name → memory of one step in MB, each in a process of its own."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return {name: pool.apply(peak, (name, batch, torch.get_num_threads())) for name in names}


def described(drawn, batch):
    """A batch in words."""
    n = np.diff(batch[0])
    return f"{drawn}: {len(n)} tiles of {n.min()} to {n.max()} cells, median {np.median(n):.0f}, {len(batch[2]):,} micro edges"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", help="store of single cells")
    parser.add_argument("bins", help="store of bins of 8 µm")
    parser.add_argument("--bins-pixel", type=float, default=2.006, help="µm per pixel of the bins' image")
    parser.add_argument("--tiles", type=int, default=64)
    parser.add_argument("--methods", nargs="+", default=["ours", "pairs listed", "padded", "fixed graphs"])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, sections = [], (tiles_of(args.cells), tiles_of(args.bins, args.bins_pixel))
    for drawn, batch in batches(*sections, args.tiles).items():
        print(described(drawn, batch))
        x = torch.randn(int(batch[0][-1]), N_FEATURES)
        ready = {name: method for name, method in methods().items() if name in args.methods}
        for method in ready.values():
            method.prepare(*batch)
            step(method, x)
        # One after the other in every round, so that a slow moment of the machine falls on all.
        times = pd.DataFrame([{m: step(method, x) for m, method in ready.items()} for _ in range(args.repeats)])
        del ready
        memory = peaks(times, batch)
        for m in times:
            ratio = (times[m] / times["ours"]).median()
            print(f"  {m}: {times[m].median():.2f} s, {ratio:.2f} of ours; {memory[m]:.0f} MB", flush=True)
            rows.append((drawn, m, times[m].median(), ratio, memory[m], memory[m] / memory["ours"]))
    columns = ["batch", "method", "seconds", "time / ours", "peak MB", "memory / ours"]
    print(pd.DataFrame(rows, columns=columns).round(2).to_string(index=False))
    for drawn, batch in batches(*sections, LARGE).items():
        print(f"{described(drawn, batch)}: peak of ours {peaks(['ours'], batch)['ours']:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
