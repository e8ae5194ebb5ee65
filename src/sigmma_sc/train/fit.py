"""One call of :meth:`sigmma_sc.SIGMMA.train`, from slides to trained towers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from sigmma_sc._random import drawing, kept_random_state
from sigmma_sc.errors import SetupError
from sigmma_sc.train.checkpoint import SaveEpochs, describe_run
from sigmma_sc.train.device import SINGLE, chunk_of, describe_device, precision_of, require_trainable
from sigmma_sc.train.options import ENCODER_LR, TrainOptions
from sigmma_sc.train.plan import AlignmentPlan, KeepBest, SeedEpochs, ShowEpochs, copy_of
from sigmma_sc.train.runner import interruptible, runner_for
from sigmma_sc.train.tiles import tile_batches, training_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from scvi.train import Trainer

    from sigmma_sc.features.data import TissueData
    from sigmma_sc.nn.towers import TwoTowers
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.train.batches import TileDataModule

    Build = Callable[[int, TissueData], TwoTowers]


@dataclass(frozen=True)
class Trained:
    """What training has to do with: tissue, towers, and how they came to be."""

    data: TissueData  # tissue, with roles of tiles and fitted node features
    towers: TwoTowers | None = None  # trained towers; None before the first call
    history: dict[str, pd.DataFrame] = field(default_factory=dict)  # losses by epoch
    epochs: int = 0  # epochs trained
    # Further arguments of the model's class, which a checkpoint has to share.
    extra: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer | None = None  # trainer of the last call


def fit(before: Trained, slides: Sequence[Slide], build: Build, options: TrainOptions) -> Trained:
    """Train towers, or train them on; if that does not end, ``before`` is as it was.

    ``build`` makes towers for node features of a width, and for tissue data, on the first call. An option or a slide
    that does not fit raises :class:`SetupError`, before any compute where that can be known.
    """
    if any(slide.region is None for slide in slides):
        raise SetupError("Training needs cells: set up with table_key=…, H&E alone can only be embedded.")
    data = before.data.copy()
    data.single_precision = str(options.precision) in SINGLE
    seed = data.config.seed + before.epochs
    options = replace(options, precision=precision_of(options))
    runner, stopping = runner_for(before.towers, before.history, options)
    described = partial(describe_run, data, slides, options, before.extra, before.epochs)
    checkpoints = SaveEpochs(data, described, options.checkpoint_dir, options.ckpt_path)
    data.assign_roles(slides, options.split)
    if before.towers is None and not checkpoints.restored:
        data.fit_node_features(slides)
    device = runner.trainer.strategy.root_device
    require_trainable(build, data, device)
    batches = tile_batches(data, slides, options.stride, options.batch_size, device)
    data.average_moments(batches.dataset.slides)
    callbacks = runner.trainer.callbacks
    callbacks.append(SeedEpochs(batches.train, data.config.seed, before.epochs))
    if options.has_own_bar:
        callbacks.append(ShowEpochs())
    weights = {} if before.towers is None else copy_of(before.towers)
    try:
        with drawing(seed, device), interruptible(runner.trainer):
            towers = before.towers or _built(build, data, batches, device, seed)
            if batches.val is None:
                runner.trainer.limit_val_batches = 0
            elif stopping is not None:
                callbacks += [stopping, KeepBest(towers)]
            towers.train()  # Lightning leaves the mode as it is, and an earlier call, or loading, left it in evaluation
            chunk = _ready_encoder(towers, data, options, device)
            describe_device(device, options.precision, data, chunk)
            runner.model.module = towers
            runner.data_splitter = batches
            encoder_lr = options.encoder_lr or ENCODER_LR[data.config.regime]
            taus = data.config.edge_temperatures
            runner.training_plan = AlignmentPlan(towers, options.lr, encoder_lr, options.weight_decay, taus)
            checkpoints.attach(runner)
            runner()
    except BaseException:
        if before.towers is not None:
            before.towers.load_trained_state(weights)
            before.towers.eval()
        raise
    # scvi-tools leaves the history with the first process.
    history = {name: frame.astype(float) for name, frame in runner.model.history_.items()}
    return Trained(
        data=data,
        towers=towers,
        history=runner.trainer.strategy.broadcast(history),
        epochs=before.epochs + runner.trainer.current_epoch,
        extra=before.extra,
        trainer=runner.trainer,
    )


def _ready_encoder(towers: TwoTowers, data: TissueData, options: TrainOptions, device: torch.device) -> int | None:
    """Set how an image encoder in training is trained, and return how many crops it encodes at once."""
    if towers.encoder is None:
        return None
    # Whatever was encoded before is not of the encoder that this call trains.
    data.use_encoder(towers.encoder.encoder)
    towers.encoder.augment = options.augment
    towers.encoder.chunk_size = options.chunk_size or chunk_of(towers.encoder, device, options.precision)
    return towers.encoder.chunk_size


def _built(build: Build, data: TissueData, batches: TileDataModule, device: torch.device, seed: int) -> TwoTowers:
    """Fresh towers, standardised on the training tiles."""
    with kept_random_state(device, seed):
        towers = build(batches.dataset.n_node_features, data)
    images, cells = training_sample(batches, towers.encoder, data.node_features.per_tile, device)
    towers.fit(images, cells, data.node_features.n_components)
    return towers
