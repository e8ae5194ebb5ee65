"""What one GPU makes of it: frozen, adapter and full training of a UNI-sized encoder, and the cell-graph tower.

Needs torch, timm, peft, lightning, numpy, pandas and scipy, and no data: tiles are noise, cells lie at random, weights are drawn;
speed hangs on none of them. Shares are of the bfloat16 (float32) product of two large matrices, measured in the same run. A
training step with recomputation costs four forward passes of what is trained, of which three are the model's own; both shares are given.

    PYTHONPATH=src python benchmarks/gpu.py

Without a GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from torch.utils.flop_counter import FlopCounterMode

from sigmma_sc.config import Config
from sigmma_sc.encoders.encoder import ImageEncoder
from sigmma_sc.encoders.tuning import tuned
from sigmma_sc.features.tensors import GraphTensors
from sigmma_sc.nn.towers import Towers
from sigmma_sc.nn.trainable import TrainableEncoder
from sigmma_sc.tissue.tiling import covering_tiles

GRIDS, SCALES, N_NODES = (4, 2, 1), ("micro", "meso", "macro"), 50
SIDE = 256
PRECISIONS = {"bf16-mixed": torch.bfloat16, "32-true": None}


def part_of(n_tiles, cells_a_tile, pixels, seed=0):
    """Tiles with cells at random, with pixels of noise or without an image."""
    rng = np.random.default_rng(seed)
    across = int(np.ceil(n_tiles**0.5))
    size = across * SIDE
    xy = rng.uniform(0, size, (across * across * cells_a_tile, 2))
    tiles, _ = covering_tiles(xy, size, size, float(SIDE))
    pairs = cKDTree(xy).query(xy, 7)[1][:, 1:]
    rows = np.repeat(np.arange(len(xy)), 6)
    adjacency = csr_matrix((np.ones(len(rows), np.float32), (rows, pairs.ravel())), shape=(len(xy), len(xy)))
    adjacency = adjacency.maximum(adjacency.T).tocsr()
    nodes = torch.from_numpy(rng.normal(size=(len(xy), N_NODES)).astype(np.float32))
    noise = rng.integers(0, 256, (n_tiles, 3, SIDE, SIDE), dtype=np.uint8)
    part = GraphTensors(xy, nodes, adjacency, GRIDS).part(tiles, np.arange(n_tiles))
    part["n_tiles"] = n_tiles
    if pixels:
        part["pixels"] = torch.from_numpy(noise)
    return part


class Clock:
    """Seconds of repeated calls, waiting for the device at both ends, and the memory they take."""

    def __init__(self, device):
        self.device = device

    def __call__(self, step, repeats, warm=2):
        for _ in range(warm):
            step()
        self.wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        self.wait()
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else float("nan")
        return (time.perf_counter() - start) / repeats, peak

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def peaks(clock, n, repeats):
    """FLOP/s of a matrix product in each precision."""
    found = {}
    for name, half in PRECISIONS.items():
        a, b = (torch.randn(n, n, device=clock.device, dtype=half or torch.float32) for _ in range(2))
        found[name] = 2 * n**3 / clock(lambda a=a, b=b: a @ b, repeats)[0]
    return found


def encoder_of(arch, size):
    torch.manual_seed(0)
    return ImageEncoder.from_timm(arch, input_size=size, img_size=size)


def flops_of(encoder, size, device):
    """FLOPs of one crop, forward."""
    crops = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        encoder.encode(crops)
    return counter.get_total_flops()


def training(regime, encoder, size, part, chunk, clock, precision, repeats):
    """One contrastive step with the encoder in training; seconds and memory."""
    config = Config(regime=regime, lora_rank=8)
    torch.manual_seed(0)
    trainable = None
    if regime != "frozen":
        trainable = TrainableEncoder(tuned(encoder, config), GRIDS, (size,) * 3)
        trainable.chunk_size, trainable.augment = chunk, True
    towers = Towers(encoder.dim, N_NODES, GRIDS, SCALES, config, trainable).to(clock.device).train()
    optimiser = torch.optim.AdamW([p for p in towers.parameters() if p.requires_grad], lr=1e-4)

    def step():
        with torch.autocast(clock.device.type, PRECISIONS[precision], enabled=PRECISIONS[precision] is not None):
            loss = towers.total(towers.losses(towers([part])))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return clock(step, repeats)


def frozen(encoder, size, n, chunk, clock, precision, repeats):
    """Features of crops as a frozen encoder makes them; seconds and memory."""
    crops = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8).to(clock.device)

    def step():
        with torch.autocast(clock.device.type, PRECISIONS[precision], enabled=PRECISIONS[precision] is not None):
            for part in crops.split(chunk):
                encoder.encode(part)

    return clock(step, repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--arch", default="vit_large_patch16_224", help="UNI's")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--tiles", type=int, default=64, help="of a training step")
    parser.add_argument("--graph-tiles", type=int, default=256)
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 168])
    parser.add_argument("--matrix", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("No GPU here: nothing to measure.")
        return 0
    device = torch.device(args.device)
    clock = Clock(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}, {args.arch} at {args.size} px, {sum(b * b for b in GRIDS)} crops a tile",
        flush=True,
    )
    # float32 means TF32 on tensor cores here, as Lightning's "high" has it.
    torch.set_float32_matmul_precision("high")
    peak = peaks(clock, args.matrix, 10)
    for precision, value in peak.items():
        print(f"matrix product of {args.matrix}², {precision}: {value / 1e12:.1f} TFLOP/s", flush=True)
    encoder = encoder_of(args.arch, args.size).to(device)
    one, crops = flops_of(encoder, args.size, device), sum(b * b for b in GRIDS)
    part = move_data_to_device(part_of(args.tiles, 85, pixels=True), device)
    rows = []

    def note(what, precision, seconds, memory, tiles, own, done):
        rate = tiles / seconds
        shares = [f * crops * one * rate / peak[precision] if f else float("nan") for f in (own, done)]
        rows.append((what, precision, seconds * 1e3, rate, *shares, memory))
        print(f"  {what}, {precision}: {seconds * 1e3:.0f} ms, {rate:.1f} tiles/s, {shares[0]:.2f} of peak ({shares[1]:.2f} with "
              f"recomputation), {memory:.1f} GiB", flush=True)  # fmt: skip

    for precision in PRECISIONS:
        for chunk in args.chunks:
            seconds, memory = frozen(encoder, args.size, args.tiles * crops, chunk, clock, precision, args.repeats)
            note(f"frozen features, {chunk} at once", precision, seconds, memory, args.tiles, 1, 1)
    for precision in PRECISIONS:
        for regime, own, done in (("lora", 2, 3), ("full", 3, 4)):
            for chunk in args.chunks if precision == "bf16-mixed" else args.chunks[:1]:
                found = training(regime, encoder, args.size, part, chunk, clock, precision, args.repeats)
                note(f"{regime}, step of {args.tiles} tiles, {chunk} at once", precision, *found, args.tiles, own, done)
    batch = part_of(args.graph_tiles, 85, pixels=False)
    batch["patches"] = torch.randn(args.graph_tiles, crops, encoder.dim)
    batch = move_data_to_device(batch, device)
    for precision in PRECISIONS:
        found = training("frozen", encoder, args.size, batch, 0, clock, precision, args.repeats * 5)
        note(
            f"towers on ready features, step of {args.graph_tiles} tiles of 85 cells",
            precision,
            *found,
            args.graph_tiles,
            0,
            0,
        )
    columns = ["what", "precision", "ms", "tiles/s", "of peak", "with recomputation", "peak GiB"]
    print(pd.DataFrame(rows, columns=columns).round(2).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
