"""One call of ``SIGMMA.train``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.split import near, resolve_split
from sigmma_sc.tissue.tiling import lattice_tiles
from sigmma_sc.train.batches import TileBatches, TileDataModule, TilePairs
from sigmma_sc.train.checkpoint import SaveEpochs
from sigmma_sc.train.features import CPU_BATCH
from sigmma_sc.train.plan import AlignmentPlan, KeepBest, SeedEpochs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sigmma_sc.nn.backbone import Backbone
    from sigmma_sc.nn.towers import TwoTowers
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles
    from sigmma_sc.train.batches import SlideTensors
    from sigmma_sc.train.data import TissueData


RATES = {"frozen": 0.0, "lora": 1e-4, "last_k": 2e-5, "full": 2e-5}
"""Learning rate of the image encoder by regime (our choices)."""

GPU_CHUNK = 64
"""Crops that pass the encoder at once on a GPU: of a ViT-L in half precision they take some 10 GB in the backward pass."""

FIT_TILES = {"ready": 4096, "in training": 256}
"""Tiles of all slides on which features are standardised: those at hand are gathered, the others cost a pass of the encoder."""


def fit(
    model: Any,
    split: str | Mapping[str, Sequence[str]],
    stride: float,
    batch_size: int,
    rates: dict[str, float],
    tuning: dict[str, Any],
    checkpoint_dir: str | Path | None,
    ckpt_path: str | Path | None,
    **trainer: Any,
) -> None:
    """Prepare data, build the towers on the first call, and run scvi-tools' trainer.

    ``rates`` holds lr and weight_decay, ``tuning`` what matters where the image encoder is trained: encoder_lr, augment and
    chunk_size.
    """
    from scvi.model._utils import parse_device_args
    from scvi.train import TrainRunner

    data, slides, config = model.data, model._slides, model.config
    seed = config.seed
    if any(slide.region is None for slide in slides):
        raise SetupError("Training needs cells: set up with table_key=…, H&E alone can only be embedded.")
    device = parse_device_args(accelerator=trainer["accelerator"], devices=trainer["devices"], return_device="torch")[2]
    device = torch.device(device)
    if trainer["precision"] == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        trainer["precision"] = "bf16-mixed" if half else "32-true"
    run = {"split": split, "stride": stride, "batch_size": batch_size, **rates, **tuning}
    fresh = data.split is None
    checkpoints = SaveEpochs(model, run | trainer, checkpoint_dir, ckpt_path)
    if data.split is None:
        data.assign_roles(slides, split)
        data.fit_nodes(slides)
    elif not fresh and split != "auto" and data.split != resolve_split(split, [s.sample for s in slides], seed):
        raise SetupError(
            f"The model is trained on split={data.split!r}; another split would leak. Make a new model for {split!r}."
        )
    module_data = _batches(data, slides, stride, batch_size, device)
    if module_data.val is None:
        trainer["early_stopping"] = False
    else:
        trainer.setdefault("check_val_every_n_epoch", 1)  # scvi-tools would not validate without early stopping
    epochs = len(next(iter(model.history.values()), ()))
    # The user's own random state is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + epochs)
        if model.module is None:
            model.module = _build(model, module_data, device)
        model.module.train()  # Lightning leaves the mode as it is, and an earlier call, or loading, left it in evaluation
        encoder_lr = _ready_encoder(model, tuning, device)
        plan = AlignmentPlan(model.module, rates["lr"], encoder_lr, rates["weight_decay"], config.edge_temperatures)
        callbacks = [*(trainer.pop("callbacks", None) or []), SeedEpochs(seed, epochs)]
        if trainer["early_stopping"]:
            callbacks.append(KeepBest())
        # Batches are dealt out to the processes by our own sampler.
        trainer["use_distributed_sampler"] = False
        runner = TrainRunner(model, training_plan=plan, data_splitter=module_data, callbacks=callbacks, **trainer)
        checkpoints.attach(runner)
        model._reference = None  # its embeddings are those of the weights before
        runner()
    for name, frame in model.history_.items():
        model.history_[name] = frame.astype(float)


def _ready_encoder(model: Any, tuning: dict[str, Any], device: torch.device) -> float:
    """Tell an image encoder in training how it is trained; its learning rate, zero if it is frozen."""
    backbone = model.module.backbone
    if backbone is not None:
        # Whatever becomes of this call, features of before are not this encoder's.
        model.data.use_encoder(backbone.encoder)
        backbone.augment = tuning["augment"]
        backbone.chunk_size = tuning["chunk_size"] or (CPU_BATCH if device.type == "cpu" else GPU_CHUNK)
    return tuning["encoder_lr"] or RATES[model.config.regime]


def _build(model: Any, data: TileDataModule, device: torch.device) -> TwoTowers:
    """Fresh towers, standardised on the training tiles."""
    slides = data.dataset.slides
    first = slides[0]
    towers = model._towers(first.nodes.shape[1] if first.genes is None else first.genes.shape[1])
    slide, tile = np.concatenate([tiles for phases in data.train.slides for tiles in phases]).T
    every = {int(k): tile[slide == k] for k in np.unique(slide)}
    most = -(-FIT_TILES["ready" if towers.backbone is None else "in training"] // len(every))
    chosen = {k: which[np.linspace(0, len(which) - 1, min(len(which), most)).astype(int)] for k, which in every.items()}
    if towers.backbone is None:
        patches = [slides[k].patch_batch(which) for k, which in chosen.items()]
    else:
        towers.backbone.to(device).eval()
        patches = [_encoded(towers.backbone, slides[k], which, device) for k, which in chosen.items()]
    if first.genes is not None:
        cells = [slides[k].gene_batch(which) for k, which in chosen.items()]
    else:
        of_tiles = {k: np.unique(slides[k].tiles.take(which).cells) for k, which in every.items()}
        cells = [slides[k].nodes[torch.from_numpy(c)] for k, c in of_tiles.items()]
    towers.fit(torch.cat(patches), torch.cat(cells), model.data.n_components)
    return towers


@torch.no_grad()
def _encoded(backbone: Backbone, slide: SlideTensors, which: NDArray, device: torch.device) -> torch.Tensor:
    """Patch features of some training tiles, before the encoder is trained."""
    tiles = torch.from_numpy(slide.pixels(slide.tiles.origins[which]))
    return torch.cat([backbone(part.to(device)).cpu() for part in tiles.split(8)])


def _batches(
    data: TissueData, slides: Sequence[Slide], stride: float, batch_size: int, device: torch.device
) -> TileDataModule:
    """Training tiles on a lattice of step ``stride``, validation tiles as they cover the slide."""
    config, dataset, train, val = data.config, [], [], []
    tune = config.regime != "frozen"
    for slide in slides:
        covering, _ = data.covering(slide)
        role = data.roles_of(slide, len(covering))
        tiles = _training_tiles(data, slide, covering, role, stride) if (role == "train").any() else ()
        if len(tiles):
            train.append([_keys(len(dataset), tiles.phase == phase) for phase in np.unique(tiles.phase)])
            dataset.append(data.tensors(slide, tiles, device, pixels=tune))
        if (role == "val").any():
            val.append([_keys(len(dataset), np.ones(int((role == "val").sum()), bool))])
            dataset.append(data.tensors(slide, covering.take(np.flatnonzero(role == "val")), device, pixels=tune))
    pooled = config.negatives == "pooled"
    sampler = TileBatches(train, batch_size, shuffle=True, seed=config.seed, pooled=pooled)
    if not len(sampler):
        raise SetupError("No slide has two training tiles with enough cells. Lower min_cells or tile_size.")
    held_out = TileBatches(val, batch_size, shuffle=False, seed=config.seed, pooled=pooled)
    return TileDataModule(TilePairs(dataset, data.setup.grids), sampler, held_out if len(held_out) else None)


def _keys(slide: int, which: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Tiles of a slide as (slide, tile) pairs."""
    tile = np.flatnonzero(which)
    return np.column_stack([np.full(len(tile), slide), tile])


def _training_tiles(data: TissueData, slide: Slide, covering: Tiles, role: NDArray, stride: float) -> Tiles:
    """Tiles at every step of the lattice that lie on training tiles and keep the guard band from all that is held out.

    A random split has no guard band: what it shows is the leak.
    """
    tiles = lattice_tiles(slide.xy, slide.width, slide.height, data.side(slide), stride / slide.microns_per_pixel)
    held_out = covering.origins[np.isin(role, ["val", "test"])]
    gap = 0.0 if data.split == "random" else 1.0
    return tiles.take(np.flatnonzero(data.usable(slide, tiles) & ~near(tiles, held_out, gap)))
