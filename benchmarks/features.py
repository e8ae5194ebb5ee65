"""Multi-crop features per second: ours, from pixels on disk to features, beside a naive loop and the encoder alone.

    naive           each crop of each tile by itself: read from the image, resized, encoded in float32
    encoder alone   ready tensors of the same crops, in the same batches and precision: what reading costs on top of this is ours
    ours            PatchFeatures, as training uses it, with torch
    ours, ONNX      the same with ONNX Runtime, on a CPU where it is installed
    beside          user CPU of PatchFeatures per crop with an encoder that does next to nothing, without that encoder's own

Every distinct crop is encoded once by ours; all three are counted in crops per second. Shares are of the product of two large matrices of
the same type, measured in the same run. Weights are drawn: speed does not hang on them.

    python benchmarks/features.py
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import warnings
from importlib.util import find_spec

import dask.array as da
import numpy as np
import pandas as pd
import spatialdata
import torch
from PIL import Image
from spatialdata.models import Image2DModel
from torch.utils.flop_counter import FlopCounterMode

from sigmma_sc import SIGMMA, ImageEncoder, settings
from sigmma_sc.features.patches import CPU_BATCH, GPU_BATCH, PatchFeatures
from sigmma_sc.tissue.frame import image_levels
from sigmma_sc.tissue.setup import resolve_slides, stored_setup
from sigmma_sc.tissue.tiling import covering_tiles, crops_of_tiles

MICRONS, GRIDS = 0.5, (4, 2, 1)
CROPS = {"mobilenetv2_100": 420, "vit_small_patch16_224": 84, "vit_large_patch16_224": 8}
"""Crops by encoder, so that every row takes some seconds on two cores."""


def slide_on_disk(folder, side, seed=0):
    """A slide of smooth noise in chunks of 512 px, as spatialdata stores it."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
    pixels = np.asarray(rough.resize((side, side), Image.BICUBIC)).transpose(2, 0, 1)
    image = Image2DModel.parse(da.from_array(pixels, chunks=(3, 512, 512)), dims=("c", "y", "x"))
    path = f"{folder}/slide.zarr"
    spatialdata.SpatialData(images={"he_image": image}).write(path)
    sdata = spatialdata.read_zarr(path)
    SIGMMA.setup_spatialdata(sdata, table_key=None, microns_per_pixel=MICRONS)
    return resolve_slides(sdata, stored_setup(sdata))[0]


def naive(encoder, slide, crops, device):
    """One crop at a time."""
    image = image_levels(slide.sdata, slide.image_key)[0]
    for x, y, side in crops.round().astype(int):
        pixels = image[:, y : y + side, x : x + side].to_numpy().transpose(1, 2, 0)
        pixels = np.asarray(Image.fromarray(pixels).resize((encoder.input_size,) * 2, Image.BICUBIC))
        encoder.encode(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(device))


def alone(encoder, crops, device):
    """Ready crops in our batches; memory in our order."""
    batch = CPU_BATCH if device.type == "cpu" else GPU_BATCH
    for part in crops.split(batch):
        encoder.encode(part.to(device)).cpu()


def ours(features, slide, crops, device, runtime="torch"):
    """Nothing remembered but what runs the encoder."""
    settings.cpu_runtime = runtime
    features.once(slide, crops, device, features.encoder.input_size)


def cpu_seconds(call):
    """User CPU of all threads."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime - before


def beside(slide, crops, ready, device, rounds):
    """User CPU of everything but the encoder, ms per crop: the median of some rounds."""
    nothing = ImageEncoder(lambda images: images[:, :, 0, 0], "nothing", ready.shape[-1]).to(device)
    features = PatchFeatures(nothing)
    times = []
    for _ in range(rounds):
        encoding = cpu_seconds(lambda: alone(nothing, ready, device))
        times.append(cpu_seconds(lambda: ours(features, slide, crops, device)) - encoding)
    return 1000 * float(np.median(times)) / len(crops)


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(call, device):
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def peak(device, kind, n):
    """FLOP/s of a product of two matrices."""
    a, b = (torch.randn(n, n, device=device).to(kind) for _ in range(2))
    timed(lambda: a @ b, device)
    return 2 * n**3 / min(timed(lambda: a @ b, device) for _ in range(3))


def flops(encoder, device):
    """Of one crop."""
    crop = torch.zeros(1, 3, encoder.input_size, encoder.input_size, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        encoder.encode(crop)
    return counter.get_total_flops()


def shares(name, encoder, crops, device, n):
    """Crops per second and share of the matrix product's FLOP/s, in float32 and bfloat16."""
    one, rows = flops(encoder, device), []
    batch = crops[: CPU_BATCH if device.type == "cpu" else GPU_BATCH]
    for kind in (torch.float32, torch.bfloat16):
        top = peak(device, kind, n)

        def encode(kind=kind):
            with torch.autocast(device.type, kind, enabled=kind != torch.float32):
                encoder.encode(batch.to(device))

        timed(encode, device)
        rate = len(batch) / min(timed(encode, device) for _ in range(2))
        rows.append((name, str(kind).removeprefix("torch."), rate, rate * one / 1e9, top / 1e9, rate * one / top))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--encoders", nargs="+", default=list(CROPS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="More crops, for a GPU.")
    parser.add_argument("--matrix", type=int, default=2048)
    parser.add_argument("--compile", action="store_true", help="torch.compile beside it.")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device(args.device)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}")
    rows, used = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.encoders:
            n = int(CROPS.get(name, 84) * args.scale)
            across = int(np.ceil((n / 21) ** 0.5))
            slide = slide_on_disk(f"{folder}/{name}", 256 * across)
            tiles, _ = covering_tiles(slide.xy, slide.width, slide.height, 128 / MICRONS)
            crops = crops_of_tiles(tiles, GRIDS)[0]
            crops = crops[np.linspace(0, len(crops) - 1, n).astype(int)]
            torch.manual_seed(0)
            encoder = ImageEncoder.from_timm(name).to(device)
            size = encoder.input_size
            ready = torch.randint(0, 256, (len(crops), size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
            features = PatchFeatures(encoder)
            calls = {
                "naive": lambda e=encoder, s=slide, c=crops: naive(e, s, c, device),
                "encoder alone": lambda e=encoder, r=ready: alone(e, r, device),
                "ours": lambda f=features, s=slide, c=crops: ours(f, s, c, device),
            }
            if device.type == "cpu" and find_spec("onnxruntime"):
                calls["ours, ONNX"] = lambda f=features, s=slide, c=crops: ours(f, s, c, device, "auto")
            if args.compile:
                fast = ImageEncoder(torch.compile(encoder.module), "compiled", size, dim=encoder.dim)
                calls["compiled, alone"] = lambda e=fast, r=ready: alone(e, r, device)
            for call in calls.values():
                call()
            # One after the other in every round, so that a slow moment of the machine falls on all.
            times = pd.DataFrame([{k: timed(call, device) for k, call in calls.items()} for _ in range(args.rounds)])
            for k in calls:
                rate, ratio = len(crops) / times[k].median(), (times["encoder alone"] / times[k]).median()
                print(f"{name}, {k}: {rate:.1f} crops/s, {ratio:.2f} of the encoder alone", flush=True)
                rows.append((name, len(crops), k, rate, ratio))
            cost = beside(slide, crops, ready, device, args.rounds)
            print(f"{name}, beside the encoder: {cost:.2f} ms of user CPU a crop", flush=True)
            if name.startswith("vit"):
                used += shares(name, encoder, ready, device, args.matrix)
    print(
        pd.DataFrame(rows, columns=["encoder", "crops", "method", "crops/s", "of the encoder alone"])
        .round(2)
        .to_string(index=False)
    )
    columns = ["encoder", "type", "crops/s", "GFLOP/s", "matrix product GFLOP/s", "share"]
    print(pd.DataFrame(used, columns=columns).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
