"""What smaller crops cost and save: one section, one frozen encoder, its micro, meso and macro crops at several sizes.

Each setting encodes everything anew, trains with the defaults on spatial blocks and is scored on the test blocks: retrieval with the aligned
embeddings, and the ridge probe (METHOD: Task 1) on the frozen features themselves.

    python benchmarks/crop_sizes.py pancreas.zarr --weights mobilenetv2_100.safetensors
"""

from __future__ import annotations

import argparse
import time
import warnings

import pandas as pd
import spatialdata
import torch

from sigmma_sc import SIGMMA, ImageEncoder

SIZES = [(224, 224, 224), (112, 224, 224), (64, 128, 224), (64, 64, 64)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--weights", required=True, help="mobilenetv2_100.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    sdata = spatialdata.read_zarr(args.store)
    SIGMMA.setup_spatialdata(sdata)
    encoder = ImageEncoder.from_timm("mobilenetv2_100", args.weights, mean=(0.5,) * 3, std=(0.5,) * 3, pad_type="same")
    rows = []
    for sizes in SIZES:
        model = SIGMMA(sdata, encoder, crop_sizes=sizes, seed=args.seed)
        start = time.perf_counter()
        model.data.patches(model._slides[0], model._slides[0].tiles, torch.device("cpu"))
        seconds = time.perf_counter() - start
        model.train(split="blocks", enable_progress_bar=False)
        recall = model.evaluate_retrieval().query("scale == 'all'").set_index("direction")["recall@5%"]
        genes = model.evaluate_expression()
        rows.append((sizes, seconds, *recall, genes.pcc_frozen.mean(), genes.pcc.mean(), genes.n_test.iloc[0]))
        print(rows[-1], flush=True)
    columns = ["sizes, px", "encoding, s", "R@5% i→t", "R@5% t→i", "PCC frozen", "PCC aligned", "pool"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(2, "of the first", (table["encoding, s"] / table["encoding, s"][0]).round(2))
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
