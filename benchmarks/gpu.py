"""One call on a GPU machine, without a network: is the package right there, where does it wait, how fast is it, what fits.

    PYTHONPATH=src python benchmarks/gpu.py                             # at most 7 minutes; results in gpu.json
    PYTHONPATH=src python benchmarks/gpu.py --only environment waits
    PYTHONPATH=src python benchmarks/gpu.py --device cpu --small        # a trial of the script itself

Needs torch, timm, peft, lightning, numpy and scipy; section 'product' needs all that the package needs. benchmarks/gpu_wheels.sh
collects wheels for a machine without a network. There is no data: tiles are noise, cells lie at random, weights are drawn.

Sections stand alone. An error in one is recorded, and the next one runs. What is measured is written at once, so that a run
that is cut off leaves what it had. Shares of peak are of the bfloat16 product of two large matrices in the same run; a training
step counts what the model needs, without the recomputation of chunks.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # scvi-tools may import JAX, which would take most of the GPU's memory
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from sigmma_sc.config import Config
from sigmma_sc.encoders.device import bytes_of_crop, computing_in, crops_in_memory, feature_type, free_memory
from sigmma_sc.encoders.encoder import ImageEncoder, get_encoder
from sigmma_sc.encoders.tuning import tuned
from sigmma_sc.features.tensors import GraphTensors
from sigmma_sc.nn.cellgraph import AttentionPool
from sigmma_sc.nn.pairs import uniform_like
from sigmma_sc.nn.towers import Towers
from sigmma_sc.nn.trainable import StainJitter, TrainableEncoder, resampled
from sigmma_sc.tissue.tiling import covering_tiles

GRIDS, SCALES, N_NODES, SIDE = (4, 2, 1), ("micro", "meso", "macro"), 50, 256
CROPS = sum(grid * grid for grid in GRIDS)
LEAST_SECONDS = 15
"""A section is not begun with less time left."""


class Bench:
    """Device, sizes, time left, and results, which are on disk as soon as they are known."""

    def __init__(self, args):
        self.device = torch.device(args.device)
        self.cuda = self.device.type == "cuda"
        self.small = args.small
        self.arch = "vit_tiny_patch16_224" if args.small else args.arch
        self.size = 32 if args.small else 224
        self.end = time.perf_counter() + args.seconds
        self.out = Path(args.out)
        self.results = {}

    @property
    def left(self):
        return self.end - time.perf_counter()

    def note(self, section, name, value):
        """Add a result, print it and write the file, whole or not at all."""
        self.results.setdefault(section, {})[name] = value
        print(f"  {name}: {json.dumps(value, default=str)}", flush=True)
        self.save()

    def save(self):
        part = self.out.with_name(self.out.name + ".part")
        part.write_text(json.dumps(self.results, indent=1, default=str))
        part.replace(self.out)

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()

    def time(self, step, repeats=3, warm=2):
        """Median seconds of a call, and the GiB that it takes at its peak."""
        for _ in range(warm):
            step()
        self.wait()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            self.wait()
            seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.cuda else None
        return float(np.median(seconds)), peak

    def encoder(self, arch=None, size=None):
        torch.manual_seed(0)
        size = size or self.size
        options = {"depth": 2} if self.small else {}
        return ImageEncoder.from_timm(arch or self.arch, input_size=size, img_size=size, **options)

    def half(self):
        """Autocast to the type of features on this device; bfloat16 on a CPU."""
        kind = feature_type(self.device) if self.cuda else torch.bfloat16
        return computing_in(kind, self.device)


def apart(found, expected):
    """Distance relative to the expected norm."""
    found, expected = (x.detach().double().cpu() for x in (found, expected))
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def part_of(n_tiles, cells_a_tile, pixels=False, dim=0, seed=0):
    """Tiles with cells at random, with pixels of noise or with patch features, and the seconds that its cells took."""
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
    tensors = GraphTensors(xy, nodes, adjacency, GRIDS)
    start = time.perf_counter()
    part = tensors.part(tiles, np.arange(n_tiles))
    seconds = time.perf_counter() - start
    part["n_tiles"] = n_tiles
    if pixels:
        part["pixels"] = torch.from_numpy(rng.integers(0, 256, (n_tiles, 3, SIDE, SIDE), dtype=np.uint8))
    if dim:
        part["patches"] = torch.from_numpy(rng.normal(size=(n_tiles, CROPS, dim)).astype(np.float32))
    return part, seconds


def towers_of(bench, regime, encoder=None, dim=None, chunk=64, **switches):
    config = Config(regime=regime, lora_rank=8, last_k=2, **switches)
    torch.manual_seed(0)
    trainable = None
    if regime != "frozen":
        trainable = TrainableEncoder(tuned(encoder, config), GRIDS, (encoder.input_size,) * 3)
        trainable.chunk_size, trainable.augment = chunk, True
    towers = Towers(dim or encoder.dim, N_NODES, GRIDS, SCALES, config, trainable)
    return towers.to(bench.device).train()


def stepper(towers, part, autocast):
    """One contrastive step, as training does it."""
    optimiser = torch.optim.AdamW([p for p in towers.parameters() if p.requires_grad], lr=1e-4)

    def step():
        with autocast():
            loss = towers.total(towers.losses(towers([part])))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def environment(bench):
    """Versions, card, bandwidths, and the speed of matrix products."""
    note = lambda name, value: bench.note("environment", name, value)  # noqa: E731
    note("torch", torch.__version__)
    note("date", time.strftime("%Y-%m-%d"))
    if bench.cuda:
        note("card", torch.cuda.get_device_name())
        note("capability", torch.cuda.get_device_capability())
        note("memory, GiB", torch.cuda.get_device_properties(bench.device).total_memory / 2**30)
        note("bfloat16 in hardware", torch.cuda.is_bf16_supported(including_emulation=False))
        for pinned in (False, True):
            host = torch.empty(2**28, dtype=torch.uint8, pin_memory=pinned)
            seconds, _ = bench.time(lambda host=host: host.to(bench.device, non_blocking=True))
            note(f"to the GPU, GB/s, pinned={pinned}", 2**28 / seconds / 1e9)
    note("features are computed in", feature_type(bench.device))
    n = 256 if bench.small else 8192
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        a, b = (torch.randn(n, n, device=bench.device, dtype=kind) for _ in range(2))
        seconds, _ = bench.time(lambda a=a, b=b: a @ b, 5)
        note(f"matrix product, {kind}, TFLOP/s", 2 * n**3 / seconds / 1e12)


def correctness(bench):
    """Distances from the CPU in float32: below 1e-4 is right, where nothing else is said."""
    note = lambda name, value: bench.note("correctness", name, value)  # noqa: E731
    rng = np.random.default_rng(0)

    def crops(n, size):
        return torch.from_numpy(rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8))

    stain, some = get_encoder("stain-stats"), crops(6, 112)
    note("stain-stats", apart(copy.deepcopy(stain).to(bench.device).encode(some), stain.encode(some)))
    small, tiny = bench.encoder("vit_tiny_patch16_224", 32), crops(6, 32)
    there, expected = copy.deepcopy(small).to(bench.device), small.encode(tiny)
    note("ViT, float32", apart(there.encode(tiny), expected))
    with bench.half():
        note("ViT, half (1e-2 is right)", apart(there.encode(tiny), expected))
    big = crops(4, 150)
    grey = (resampled(big.to(bench.device), 224).cpu().int() - resampled(big, 224).int()).abs().max()
    note("resampled, grey levels (1 is right)", int(grey))
    with bench.half():
        note(
            "restained by nothing under autocast, grey levels (0 is right)",
            int(
                (StainJitter(0.0).to(bench.device)(big.to(bench.device)).cpu().int() - big.clamp_min(1).int())
                .abs()
                .max()
            ),
        )
    part, _ = part_of(12, 60, dim=96)
    for name, switches in {"edges none": {"edges": "none"}, "edges full": {"edges": "full"}}.items():
        towers = towers_of(bench, "frozen", dim=96, dropout=0.0, **switches)
        found = _loss_and_gradient(copy.deepcopy(towers), move_data_to_device(part, bench.device))
        note(f"towers, {name}: loss, gradient", list(map(apart, found, _loss_and_gradient(towers.cpu(), part))))
    drawn = uniform_like(torch.empty(1 << 20, device=bench.device))
    note("uniform numbers: least, most, mean", [float(drawn.min()), float(drawn.max()), float(drawn.mean())])
    for n in (85, 400, 1600):
        pool, tile = AttentionPool(128), torch.arange(4).repeat_interleave(n)
        h = torch.nn.functional.gelu(torch.randn(4 * n, 128) * 0.5 + 0.3).bfloat16()
        expected = copy.deepcopy(pool).double()(h.double(), tile, 4)
        pool.to(bench.device)
        with bench.half(), torch.no_grad():
            found = [pool(h.to(bench.device), tile.to(bench.device), 4) for _ in range(2)]
        note(f"pool of {n} cells in half: error (1e-3 is right), two runs", [apart(found[0], expected), apart(*found)])


def _loss_and_gradient(towers, part):
    loss = towers.total(towers.losses(towers([part])))
    loss.backward()
    return loss, torch.cat([p.grad.flatten() for p in towers.parameters() if p.grad is not None])


def waits(bench):
    """Lines where the host waits in a step, by torch's own watch, and kernels launched; none is right."""
    for regime in ("frozen", "lora"):
        small = bench.encoder("vit_tiny_patch16_224", 32)
        part, _ = part_of(
            2 if bench.small else 12, 85, pixels=regime != "frozen", dim=small.dim if regime == "frozen" else 0
        )
        step = stepper(towers_of(bench, regime, small), move_data_to_device(part, bench.device), bench.half)
        step()
        if not bench.cuda:
            bench.note("waits", regime, "needs a GPU")
            continue
        pinned = {k: v.pin_memory() if hasattr(v, "pin_memory") else v for k, v in part.items()}
        calls = {"moving a pinned batch": lambda pinned=pinned: move_data_to_device(pinned, bench.device), "step": step}
        for what, call in calls.items():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    call()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            lines = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
            bench.note("waits", f"{regime}, {what}", lines)
        activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            step()
            bench.wait()
        events = [e for e in profile.key_averages() if e.device_type.name == "CUDA"]
        bench.note("waits", f"{regime}, kernels of a step", sum(e.count for e in events))


def processes(bench):
    """Gathering with gradient by the device's own library, which a CPU does not show; one process."""
    import torch.distributed as dist
    from torch.distributed.nn.functional import all_gather

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if bench.cuda else "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        try:
            for kind in (torch.float32, torch.bfloat16):
                z = torch.randn(16, 8, device=bench.device, dtype=kind, requires_grad=True)
                torch.stack(list(all_gather(z))).flatten(0, 1).square().sum().backward()
                bench.note("processes", f"gradient, {kind}", apart(z.grad, 2 * z.detach()))
        finally:
            dist.destroy_process_group()


def graph(bench):
    """A step on ready features: assembled, moved, run."""
    n, dim = (8, 64) if bench.small else (128, 1024)
    for cells in (20,) if bench.small else (85, 300):
        part, assembled = part_of(n, cells, dim=dim)
        moved, _ = bench.time(lambda part=part: move_data_to_device(part, bench.device))
        there = move_data_to_device(part, bench.device)
        for name, autocast in (("half", bench.half), ("float32", lambda: computing_in(torch.float32, bench.device))):
            seconds, peak = bench.time(stepper(towers_of(bench, "frozen", dim=dim), there, autocast), 5)
            row = {"assemble ms": assembled * 1e3, "move ms": moved * 1e3, "step ms": seconds * 1e3, "GiB": peak}
            bench.note("graph", f"{n} tiles of {cells} cells, {name}", row)


def encoder(bench):
    """Crops a second: frozen, compiled, and in training by regime and chunk; share of peak, memory."""
    from torch.utils.flop_counter import FlopCounterMode

    network = bench.encoder().to(bench.device)
    blank = torch.zeros(1, 3, bench.size, bench.size, dtype=torch.uint8, device=bench.device)
    with FlopCounterMode(display=False) as counter:
        network.encode(blank)
    flops = counter.get_total_flops()
    kind = "torch.bfloat16" if feature_type(bench.device) != torch.float16 else "torch.float16"
    peak = bench.results.get("environment", {}).get(f"matrix product, {kind}, TFLOP/s")
    bench.note("encoder", "GFLOP a crop", flops / 1e9)

    def measure(name, n, call, passes=1):
        if bench.left < LEAST_SECONDS:
            bench.note("encoder", name, "no time left")
            return
        try:
            seconds, memory = bench.time(call)
        except torch.OutOfMemoryError as error:
            bench.note("encoder", name, f"out of memory: {str(error)[:60]}")
        else:
            share = peak and passes * flops * n / seconds / (peak * 1e12)
            bench.note("encoder", name, {"crops/s": n / seconds, "of peak": share, "GiB": memory})
        if bench.cuda:
            torch.cuda.empty_cache()

    def encode(module, crops):
        with bench.half():
            module.encode(crops)

    for batch in (4,) if bench.small else (128, 512):
        crops = torch.randint(0, 256, (batch, 3, bench.size, bench.size), dtype=torch.uint8, device=bench.device)
        measure(f"frozen, autocast, {batch} at once", batch, lambda crops=crops: encode(network, crops))
        if bench.cuda and batch == 128:
            compiled = ImageEncoder(torch.compile(network.module), "compiled", bench.size, dim=network.dim)
            measure(f"frozen, compiled, {batch} at once", batch, lambda c=compiled, x=crops: encode(c, x))
    n = 2 if bench.small else 64
    part = move_data_to_device(part_of(n, 20 if bench.small else 85, pixels=True)[0], bench.device)
    for regime, passes in (("lora", 2), ("last_k", 1), ("full", 3)):
        towers = towers_of(bench, regime, network)
        with bench.half():
            a_crop = bytes_of_crop(towers.encoder.encoder, bench.size)
            chosen = crops_in_memory(towers.encoder.encoder, bench.size, free_memory(bench.device)) if bench.cuda else 8
        bench.note("encoder", f"{regime}: MiB a crop keeps, crops at once", [a_crop / 2**20, chosen])
        for chunk in sorted({64, chosen}) if bench.cuda else (chosen,):
            towers.encoder.chunk_size = chunk
            measure(
                f"{regime}, step of {n} tiles, {chunk} at once", n * CROPS, stepper(towers, part, bench.half), passes
            )
        del towers


def data_path(bench):
    """Crops a second of the reader's resampling on this host, and of the encoder behind it, in turn and overlapped."""
    from PIL import Image

    from sigmma_sc.features.ahead import ahead, late

    length, size, n = 150.59, bench.size, 32 if bench.small else 1024
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 256, (2048, 2048, 3), dtype=np.uint8)
    width = math.ceil(length) + 7
    corners = rng.integers(0, 2048 - width, (n, 2))
    box = (3.3, 3.6, 3.3 + length, 3.6 + length)

    def cut(number):
        x, y = corners[number]
        window = Image.fromarray(canvas[y : y + width, x : x + width])
        return np.asarray(window.resize((size, size), Image.Resampling.BICUBIC, box=box))

    bench.note("data_path", "cores", os.cpu_count())
    for threads in sorted({1, os.cpu_count()}):
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(cut, range(n)))
            bench.note("data_path", f"resampling, {threads} threads, crops/s", n / (time.perf_counter() - start))
    network = bench.encoder().to(bench.device)
    groups = np.array_split(np.arange(n), max(1, n // 128))

    def read(pool):
        for group in groups:
            yield torch.from_numpy(np.stack(list(pool.map(cut, group)))).permute(0, 3, 1, 2)

    def encoded(batches):
        for batch in batches:
            sent = batch.pin_memory() if bench.cuda else batch
            with bench.half():
                yield network.encode(sent.to(bench.device, non_blocking=True))

    def in_turn(pool):
        for features in encoded(read(pool)):
            features.cpu()

    def overlapped(pool):
        for features in late(encoded(ahead(read(pool)))):
            features.cpu()

    with ThreadPoolExecutor() as pool:
        for name, call in (("in turn", in_turn), ("overlapped", overlapped)):
            seconds, _ = bench.time(lambda call=call: call(pool), 2, 1)
            bench.note("data_path", f"resampled and encoded, {name}, crops/s", n / seconds)


def product(bench):
    """The package as a user calls it, on the device and on the CPU, with saving, loading and resuming."""
    from sigmma_sc import SIGMMA
    from sigmma_sc.datasets import simulate_tissue

    sdata = simulate_tissue(n_cells=400 if bench.small else 3000, seed=0)
    SIGMMA.setup_spatialdata(sdata, tile_size=64, grids=(2, 1))
    quiet = {"enable_progress_bar": False, "batch_size": 32, "max_epochs": 1 if bench.small else 3, "split": "none"}
    there = {"accelerator": "gpu" if bench.cuda else "cpu", "devices": 1}
    on_cpu = {"accelerator": "cpu", "precision": "32-true"}
    cases = {"frozen": {}, "lora": {"regime": "lora", "lora_rank": 2}, "full": {"regime": "full"}}
    for regime, switches in cases.items():
        if bench.left < LEAST_SECONDS:
            bench.note("product", regime, "no time left")
            continue
        plain = {} if regime == "frozen" else {"augment": False}
        losses = {}
        for where, how in (("CPU", on_cpu), ("float32", there | {"precision": "32-true"}), ("auto", there)):
            encoder = bench.encoder("vit_tiny_patch16_224", 32)
            model = SIGMMA(sdata, encoder, n_latent=16, edges="none", dropout=0.0, **switches)
            start = time.perf_counter()
            model.train(**quiet, **how, **plain)
            losses[where] = model.history["train_loss_epoch"].iloc[:, 0].tolist()
            bench.note("product", f"{regime}, {where}, seconds", time.perf_counter() - start)
        bench.note("product", f"{regime}, losses (alike but for their last digits)", losses)
        cells = torch.from_numpy(model.get_latent_representation(scale="all", n_offsets=2))
        with tempfile.TemporaryDirectory() as folder:
            model.save(f"{folder}/model")
            again = SIGMMA.load(f"{folder}/model", sdata, model.image_encoder)
            loaded = torch.from_numpy(again.get_latent_representation(scale="all", n_offsets=2))
            bench.note("product", f"{regime}, loaded on the CPU, embeddings apart", apart(loaded, cells))
            for _ in range(2):
                resumed = SIGMMA(sdata, bench.encoder("vit_tiny_patch16_224", 32), n_latent=16, **switches)
                resumed.train(**quiet, **there, checkpoint_dir=f"{folder}/checkpoints")
            bench.note("product", f"{regime}, epochs after resuming", resumed.epochs_trained)
        model.evaluate_retrieval(split="all")


SECTIONS = (environment, correctness, waits, processes, graph, encoder, data_path, product)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--arch", default="vit_large_patch16_224", help="UNI's")
    parser.add_argument("--seconds", type=float, default=420, help="No section is begun after this time.")
    parser.add_argument("--small", action="store_true", help="Small networks and batches, to try the script on a CPU.")
    parser.add_argument("--only", nargs="+", choices=[section.__name__ for section in SECTIONS])
    parser.add_argument("--out", default="gpu.json")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("No GPU here: nothing to measure.")
        return 0
    bench = Bench(args)
    torch.backends.cuda.matmul.allow_tf32 = False
    failed = False
    for section in SECTIONS:
        name = section.__name__
        if args.only and name not in args.only:
            continue
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        if bench.left < LEAST_SECONDS:
            bench.note(name, "left out", "no time left")
            continue
        try:
            section(bench)
        except Exception as error:  # noqa: BLE001 - the other sections are to run
            failed = True
            traceback.print_exc()
            bench.note(name, "error", f"{type(error).__name__}: {error}"[:300])
        bench.note(name, "seconds", time.perf_counter() - start)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
