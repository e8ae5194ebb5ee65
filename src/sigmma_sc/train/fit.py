"""One call of ``SIGMMA.train``."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.split import get_split, near
from sigmma_sc.tissue.tiling import lattice_tiles
from sigmma_sc.train.batches import TileBatches, TileDataModule, TilePairs
from sigmma_sc.train.checkpoint import SaveEpochs
from sigmma_sc.features.patches import CPU_BATCH
from sigmma_sc.train.plan import AlignmentPlan, KeepBest, SeedEpochs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lightning.pytorch.callbacks import EarlyStopping
    from numpy.typing import NDArray
    from scvi.train import TrainRunner

    from sigmma_sc.nn.trainable import Backbone
    from sigmma_sc.nn.towers import TwoTowers
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.split import SplitJson
    from sigmma_sc.tissue.tiling import Tiles
    from sigmma_sc.train.batches import SlideTensors
    from sigmma_sc.features.data import TissueData


RATES = {"frozen": 0.0, "lora": 1e-4, "last_k": 2e-5, "full": 2e-5}
"""Learning rate of the image encoder by regime (our choices)."""

PRECISIONS = ("auto", "32", "32-true", "bf16", "bf16-mixed", "16", "16-mixed")
"""Lightning's, but for those that cast the weights."""

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
    if any(slide.region is None for slide in model._slides):
        raise SetupError("Training needs cells: set up with table_key=…, H&E alone can only be embedded.")
    run = {"split": split, "stride": stride, "batch_size": batch_size, **rates, **tuning}
    with _all_or_nothing(model):
        trainer["precision"] = _precision(trainer)
        run |= trainer
        runner, stopping = _runner(model, trainer)
        checkpoints = SaveEpochs(model, run, checkpoint_dir, ckpt_path)
        _assign(model, split)
        device = runner.trainer.strategy.root_device
        module_data = runner.data_splitter = _batches(model.data, model._slides, stride, batch_size, device)
        model.data.learn_typical(module_data.dataset.slides)
        callbacks = runner.trainer.callbacks
        callbacks.append(SeedEpochs(model.config.seed, model.epochs_))
        if module_data.val is None:
            runner.trainer.limit_val_batches = 0
        elif stopping is not None:
            callbacks += [stopping, KeepBest()]
        # The user's own random state is left as it was.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(model.config.seed + model.epochs_)
            if model.module is None:
                model.module = _build(model, module_data, device)
            model.module.train()  # Lightning leaves the mode as it is, and an earlier call, or loading, left it in evaluation
            encoder_lr = _ready_encoder(model, tuning, device)
            runner.training_plan = AlignmentPlan(
                model.module, rates["lr"], encoder_lr, rates["weight_decay"], model.config.edge_temperatures
            )
            checkpoints.attach(runner)
            model._reference = None  # its embeddings are those of the weights before
            runner()
        model.epochs_ += runner.trainer.current_epoch
        # scvi-tools leaves the history with the first process.
        model.history_ = runner.trainer.strategy.broadcast(
            {name: frame.astype(float) for name, frame in model.history_.items()}
        )


def _precision(trainer: dict[str, Any]) -> str:
    """Precision to train in: what was asked for, or bfloat16 autocast on a GPU that has it."""
    from scvi.model._utils import parse_device_args

    precision = str(trainer["precision"])
    if precision not in PRECISIONS:
        raise SetupError(
            f"precision={precision!r} is not one of 'auto', '32-true', 'bf16-mixed' and '16-mixed'; weights stay in float32."
        )
    if precision != "auto":
        return precision
    device = parse_device_args(trainer["accelerator"], trainer["devices"], return_device="torch")[2]
    half = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if half else "32-true"


def _runner(model: Any, trainer: dict[str, Any]) -> tuple[TrainRunner, EarlyStopping | None]:
    """scvi-tools' runner, before there is anything to run: what Lightning refuses, it refuses before any compute.

    Early stopping is a callback beside it, as scvi-tools switches its own off where there are several processes.
    """
    from scvi.train import LoudEarlyStopping, TrainRunner

    early = {
        name: trainer.pop(f"early_stopping_{name}", default)
        for name, default in (
            ("monitor", "validation_loss"), ("min_delta", 0.0), ("patience", 10), ("mode", "min"), ("warmup_epochs", 0),
        )
    }  # fmt: skip
    stopping = LoudEarlyStopping(**early) if trainer.pop("early_stopping") else None
    trainer.setdefault("check_val_every_n_epoch", 1)  # scvi-tools would not validate without its early stopping
    # Batches are dealt out to the processes by our own sampler.
    runner = TrainRunner(model, training_plan=None, data_splitter=None, use_distributed_sampler=False, **trainer)
    runner.device = runner.trainer.strategy.root_device  # of this process, not of the first
    return runner, stopping


@contextmanager
def _all_or_nothing(model: Any) -> Iterator[None]:
    """Leave a model as it was if its training does not end, be it for an error or an interruption."""
    data, module = model.data, model.module
    of_data = {name: getattr(data, name) for name in ("split", "roles", "identities", "nodes", "typical", "features")}
    of_model = {name: getattr(model, name) for name in ("module", "is_trained_", "epochs_", "_reference")}
    of_model["history_"] = dict(model.history)  # scvi-tools adds to it in place
    weights = {} if module is None else {name: v.detach().cpu().clone() for name, v in module.own_state().items()}
    try:
        yield
    except BaseException:
        for owner, values in ((data, of_data), (model, of_model)):
            for name, value in values.items():
                setattr(owner, name, value)
        if module is not None:
            module.load_own_state(weights)
            module.eval()
        raise


def _assign(model: Any, split: str | Mapping[str, Sequence[str]]) -> None:
    """Give roles to the slides that have none, and fit node features the first time."""
    data, slides = model.data, model._slides
    unseen = [slide for slide in slides if not data.knows(slide)]
    if unseen:
        data.assign_roles(unseen, split)
    elif split != "auto" and data.split != _stored_form(split, slides, model.config.seed):
        raise SetupError(
            f"The model is trained on split={data.split!r}; another split would leak. Make a new model for {split!r}."
        )
    if model.module is None and data.nodes is None:
        data.fit_nodes(slides)


def _stored_form(split: str | Mapping[str, Sequence[str]], slides: Sequence[Slide], seed: int) -> SplitJson:
    """What a model that is trained on these slides and this split stores of it."""
    return get_split(split).resolve([slide.sample for slide in slides], seed).to_json()


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

    The split says how wide the band is; a random split has none, for what it shows is the leak.
    """
    tiles = lattice_tiles(slide.xy, slide.width, slide.height, data.side(slide), stride / slide.microns_per_pixel)
    held_out = covering.origins[np.isin(role, ["val", "test"])]
    guard = get_split(data.split).guard
    return tiles.take(np.flatnonzero(data.usable(slide, tiles) & ~near(tiles, held_out, guard)))
