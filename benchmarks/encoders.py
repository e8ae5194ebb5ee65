"""Image encoders beside each other: crops a second on one core, and retrieval of the same held-out tiles.

Speed is of the encoder alone, in batches as the package uses on a CPU, in seconds of the processor; weights are random, as
speed does not depend on them. Retrieval needs trained weights, so only these encoders have a row: the one that needs none,
and those given by --weights.

    OMP_NUM_THREADS=1 python benchmarks/encoders.py
    OMP_NUM_THREADS=1 python benchmarks/encoders.py --store pancreas.zarr --weights mobilenetv2_100.safetensors
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings

import numpy as np
import pandas as pd
import spatialdata
import torch

from sigmma_sc import SIGMMA, ImageEncoder, get_encoder
from sigmma_sc.encoders.folding import folded
from sigmma_sc.encoders.onnx import run_by_onnx
from sigmma_sc.features.patches import CPU_BATCH

CROPS = {"stain-stats": 200, "mobilenetv2_100": 120, "resnet50": 40, "vit_small_patch16_224": 40}
"""Crops by encoder, so that every row takes a few seconds."""

WINDOW = ((0.3, 0.3), (0.7, 0.7))
"""Corners of the part of the section for retrieval, as shares of its extent."""

MOBILENET = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "pad_type": "same"}


def speed(name, n, rounds):
    """Name, input size, dimension, and the best of some rounds in crops a CPU second, by torch and by ONNX Runtime."""
    torch.manual_seed(0)
    encoder = get_encoder(name) if name == "stain-stats" else ImageEncoder.from_timm(name)
    size = encoder.input_size
    crops = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    by_onnx = run_by_onnx(encoder, size, CPU_BATCH)
    rates = [rate(folded(encoder).encode, crops, rounds), np.nan if by_onnx is None else rate(by_onnx, crops, rounds)]
    return name, size, encoder.dim, *rates


def rate(encode, crops, rounds):
    """Crops a CPU second."""
    encode(crops[:CPU_BATCH])
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        for batch in crops.split(CPU_BATCH):
            encode(batch)
        seconds.append(time.process_time() - start)
    return len(crops) / min(seconds)


def window(path):
    """The middle of a section."""
    sdata = spatialdata.read_zarr(path)
    extent = spatialdata.get_extent(sdata["he_image"], coordinate_system="global")
    low, high = (np.array([extent[axis][end] for axis in "xy"]) for end in (0, 1))
    corners = [low + np.array(share) * (high - low) for share in WINDOW]
    return spatialdata.bounding_box_query(
        sdata, axes=("x", "y"), min_coordinate=corners[0], max_coordinate=corners[1], target_coordinate_system="global"
    )


def retrieval(name, encoder, sdata, seed, folder):
    """Mean recall of one seed at 5, 10 and 15 %, in both directions, and the pool."""
    start = time.process_time()
    model = SIGMMA(sdata, encoder, seed=seed, cache_dir=folder)
    model.train(split="blocks", enable_progress_bar=False)
    table = model.evaluate_retrieval().query("scale == 'all'").set_index("direction")
    recall = table[["recall@5%", "recall@10%", "recall@15%"]].mean(axis=1)
    return name, seed, *recall, table["pool"].iloc[0], time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="A section; without it only speed is measured.")
    parser.add_argument("--weights", help="mobilenetv2_100.safetensors")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.store is None:
        rows = [speed(name, n, args.rounds) for name, n in CROPS.items()]
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        columns = ["encoder", "input, px", "dim", "crops a CPU second", "by ONNX Runtime"]
        print(pd.DataFrame(rows, columns=columns).round(1).to_string())
        return
    sdata = window(args.store)
    SIGMMA.setup_spatialdata(sdata)
    encoders = {"stain-stats": get_encoder("stain-stats")}
    if args.weights:
        encoders["mobilenetv2_100"] = ImageEncoder.from_timm("mobilenetv2_100", args.weights, **MOBILENET)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for name, encoder in encoders.items():
                rows.append(retrieval(name, encoder, sdata, seed, folder))
                print(rows[-1], flush=True)
    columns = ["encoder", "seed", "image → transcriptome", "transcriptome → image", "pool", "CPU s"]
    table = pd.DataFrame(rows, columns=columns)
    print(f"{sdata['table'].n_obs} cells")
    print(table.groupby("encoder").agg(["mean", "std"]).round(3).to_string())


if __name__ == "__main__":
    main()
