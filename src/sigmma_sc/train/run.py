"""One call of ``SIGMMA.train``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sigmma_sc._checks import SetupError
from sigmma_sc.nn.towers import Towers
from sigmma_sc.tissue.split import near, resolve_split
from sigmma_sc.tissue.tiling import lattice_tiles
from sigmma_sc.train.batches import TileDataModule, TilePairs, WithinSlideBatches
from sigmma_sc.train.checkpoint import SaveEpochs
from sigmma_sc.train.plan import AlignmentPlan, KeepBest, SeedEpochs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles
    from sigmma_sc.train.data import TissueData


def fit(
    model: Any,
    split: str | Mapping[str, Sequence[str]],
    stride: float,
    batch_size: int,
    lr: float,
    weight_decay: float,
    checkpoint_dir: str | Path | None,
    ckpt_path: str | Path | None,
    **trainer: Any,
) -> None:
    """Prepare data, build the towers on the first call, and run scvi-tools' trainer."""
    from scvi.model._utils import parse_device_args
    from scvi.train import TrainRunner

    data, slides, seed = model.data, model._slides, model.config["seed"]
    if any(slide.region is None for slide in slides):
        raise SetupError("Training needs cells: set up with table_key=…, H&E alone can only be embedded.")
    run = {"split": split, "stride": stride, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay}
    fresh = data.split is None
    checkpoints = SaveEpochs(model, run | trainer, checkpoint_dir, ckpt_path)
    if data.split is None:
        data.assign_roles(slides, split)
        data.fit_nodes(slides)
    elif not fresh and split != "auto" and data.split != resolve_split(split, [s.sample for s in slides], seed):
        raise SetupError(
            f"The model is trained on split={data.split!r}; another split would leak. Make a new model for {split!r}."
        )
    device = parse_device_args(accelerator=trainer["accelerator"], devices=trainer["devices"], return_device="torch")[2]
    module_data = _batches(data, slides, stride, batch_size, seed, torch.device(device))
    if module_data.val is None:
        trainer["early_stopping"] = False
    epochs = len(next(iter(model.history.values()), ()))
    # The user's own random state is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + epochs)
        if model.module is None:
            model.module = _build(model, module_data)
        model.module.train()  # Lightning leaves the mode as it is, and an earlier call, or loading, left it in evaluation
        plan = AlignmentPlan(model.module, lr, weight_decay)
        callbacks = [*(trainer.pop("callbacks", None) or []), SeedEpochs(seed, epochs), KeepBest()]
        runner = TrainRunner(model, training_plan=plan, data_splitter=module_data, callbacks=callbacks, **trainer)
        checkpoints.attach(runner)
        model._reference = None  # its embeddings are those of the weights before
        runner()
    for name, frame in model.history_.items():
        model.history_[name] = frame.astype(float)


def _build(model: Any, data: TileDataModule) -> Towers:
    config, slides = model.config, data.dataset.slides
    towers = Towers(
        n_image=model.image_encoder.dim,
        n_nodes=slides[0].nodes.shape[1],
        grids=model.setup.grids,
        scales=model.setup.scales,
        **{name: config[name] for name in ("n_latent", "edges", "edge_temperature", "dropout", "temperature")},
    )
    train = {k: [] for k in range(len(slides))}
    for k, tiles in data.train.groups:
        train[k].append(tiles)
    chosen = {k: np.concatenate(tiles) for k, tiles in train.items() if tiles}
    towers.image_tower.fit(torch.cat([slides[k].patch_batch(which) for k, which in chosen.items()]))
    cells = {k: np.unique(slides[k].tiles.take(which).cells) for k, which in chosen.items()}
    towers.node_standardise.fit(torch.cat([slides[k].nodes[torch.from_numpy(c)] for k, c in cells.items()]))
    return towers


def _batches(
    data: TissueData, slides: Sequence[Slide], stride: float, batch_size: int, seed: int, device: torch.device
) -> TileDataModule:
    """Training tiles on a lattice of step ``stride``, validation tiles as they cover the slide."""
    dataset, train, val = [], [], []
    for slide in slides:
        covering, _ = data.covering(slide)
        role = data.roles_of(slide, len(covering))
        if (role == "train").any():
            tiles = _training_tiles(data, slide, covering, role, stride)
            train += [(len(dataset), np.flatnonzero(tiles.phase == phase)) for phase in np.unique(tiles.phase)]
            dataset.append(data.tensors(slide, tiles, device))
        if (role == "val").any():
            val.append((len(dataset), np.arange((role == "val").sum())))
            dataset.append(data.tensors(slide, covering.take(np.flatnonzero(role == "val")), device))
    sampler = WithinSlideBatches(train, batch_size, shuffle=True, seed=seed)
    if not len(sampler):
        raise SetupError("No slide has two training tiles with enough cells. Lower min_cells or tile_size.")
    held_out = WithinSlideBatches(val, batch_size, shuffle=False, seed=seed)
    return TileDataModule(TilePairs(dataset, data.setup.grids), sampler, held_out if len(held_out) else None)


def _training_tiles(data: TissueData, slide: Slide, covering: Tiles, role: NDArray, stride: float) -> Tiles:
    """Tiles at every step of the lattice that lie on training tiles and keep the guard band from all that is held out."""
    tiles = lattice_tiles(slide.xy, slide.width, slide.height, data.side(slide), stride / slide.microns_per_pixel)
    held_out = covering.origins[np.isin(role, ["val", "test"])]
    return tiles.take(np.flatnonzero(data.usable(slide, tiles) & ~near(tiles, held_out)))
