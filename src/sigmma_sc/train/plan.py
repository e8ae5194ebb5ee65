"""The Lightning side of training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch

from sigmma_sc._progress import Display
from sigmma_sc._random import reseed
from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

    from sigmma_sc.nn.part import Part
    from sigmma_sc.nn.towers import TwoTowers
    from sigmma_sc.train.batches import TileBatches


class AlignmentPlan(pl.LightningModule):
    """Sum of the scales' contrastive losses, by AdamW with a cosine schedule after a short warm-up.

    Logs every scale's loss, and ln(batch) beside it: a run whose loss per scale stays at ln(batch) has learned nothing.
    ``edge_temperatures`` are the first and last τ of the edge sampler.
    """

    def __init__(
        self,
        module: TwoTowers,
        lr: float,
        encoder_lr: float,
        weight_decay: float,
        edge_temperatures: tuple[float, float],
    ):
        super().__init__()
        self.module = module
        self.lr = lr
        self.encoder_lr = encoder_lr
        self.weight_decay = weight_decay
        self.edge_temperatures = edge_temperatures
        self.strict_loading = False  # checkpoints leave out what is frozen, see state_dict

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]  # torch's overloads
        """Weights for checkpoints, without the frozen ones of the image encoder."""
        return {f"module.{name}": value for name, value in self.module.trained_state().items()}

    def _gathered(self, out: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
        """Embeddings of all processes, in all of them, with gradient.

        Each process then has the loss of the global batch. The gathering sums what flows back through it, so that its mean over
        processes is the gradient of one process on that batch.
        """
        if self.trainer.world_size == 1:
            return out
        gathered = {}
        for tower, scales in out.items():
            gathered[tower] = {scale: self._of_all(z) for scale, z in scales.items()}
        return gathered

    def _of_all(self, z: torch.Tensor) -> torch.Tensor:
        """Rows of all processes, one process after the other."""
        every = self.all_gather(z, sync_grads=True)
        if not isinstance(every, torch.Tensor):
            raise TypeError(f"all_gather returned {type(every).__name__} for a tensor.")
        return every.flatten(0, 1)

    def _step(self, batch: list[Part], name: str, prefix: str) -> torch.Tensor:
        n = sum(part["n_tiles"] for part in batch) * self.trainer.world_size
        losses = self.module.losses(self._gathered(self.module(batch)))
        total = self.module.total(losses)
        values = {name: total}
        for scale, loss in losses.items():
            values[f"{prefix}_loss_{scale}"] = loss
        # Lightning would copy a float to the device, and wait for that.
        values[f"{prefix}_ln_batch"] = torch.full((), math.log(n), device=total.device)
        several = self.trainer.world_size > 1
        for key, value in values.items():
            self.log(key, value, prog_bar=key == name, batch_size=n, on_epoch=True, on_step=False, sync_dist=several)
        return total

    def on_train_batch_start(self, batch: list[Part], batch_idx: int) -> None:
        """Anneal the edge sampler."""
        first, last = self.edge_temperatures
        if first != last:
            done = self.trainer.global_step / max(1, int(self.trainer.estimated_stepping_batches) - 1)
            self.module.anneal(first * (last / first) ** done)

    def training_step(self, batch: list[Part], _: int) -> torch.Tensor:
        """Loss of one batch."""
        return self._step(batch, "train_loss_epoch", "train")

    def on_train_batch_end(self, *args: Any) -> None:
        """Bring parameters back within their bounds."""
        self.module.temperature.clamp()

    def on_train_epoch_end(self) -> None:
        """Raise :class:`SetupError` as soon as a weight is not finite, before a checkpoint or a model holds it."""
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise SetupError(
                    f"Training diverged in epoch {self.current_epoch}: {name} is not finite. The model is as before the call. "
                    f"Lower lr={self.lr!r} (or encoder_lr), or raise temperature."
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise :class:`SetupError` for weights that do not fit, before Lightning loads them."""
        require_weights(checkpoint["state_dict"], self.state_dict())

    def validation_step(self, batch: list[Part], _: int) -> None:
        """Log the losses of one batch of held-out tiles."""
        self._step(batch, "validation_loss", "validation")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; warm-up over a twentieth of the steps, then cosine to a hundredth.

        Biases, norms and temperatures are not decayed: they have one dimension.
        """
        groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                lr = self.encoder_lr if name.startswith("encoder.") else self.lr
                decay = self.weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((lr, decay), []).append(parameter)
        optimiser = torch.optim.AdamW(
            [{"params": parameters, "lr": lr, "weight_decay": decay} for (lr, decay), parameters in groups.items()]
        )
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        warm = max(1, steps // 20)

        def rate(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.01 + 0.495 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def require_weights(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Raise :class:`SetupError` unless weights of a checkpoint are finite, and have names and shapes of the model's."""
    for name in sorted(found.keys() | wanted.keys()):
        here, there = wanted.get(name), found.get(name)
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (there, here)]
        if there is None or shapes[0] != shapes[1]:
            raise SetupError(
                f"The checkpoint does not fit the model: {name} has shape {shapes[0]} there and {shapes[1]} here. Give another, "
                "or delete it and train anew."
            )
        if there.is_floating_point() and not torch.isfinite(there).all():
            raise SetupError(f"The checkpoint's {name} is not finite. Give another, or delete it and train anew.")


def copy_of(towers: TwoTowers) -> dict[str, torch.Tensor]:
    """Trained weights, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in towers.trained_state().items()}


class SeedEpochs(pl.Callback):
    """Let every epoch draw its batches and its random numbers from the seed and its own number alone.

    What came before it, in this process or in one that was killed, then does not matter. ``first`` epochs were trained
    before.
    """

    def __init__(self, batches: TileBatches, seed: int, first: int):
        self.batches = batches
        self.seed = seed
        self.first = first

    def on_train_epoch_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Tell the sampler which epoch it is."""
        self.batches.epoch = self.first + trainer.current_epoch

    def on_train_batch_start(
        self, trainer: pl.Trainer, plan: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Seed before the first batch."""
        if batch_idx == 0:
            words = np.random.SeedSequence([self.seed, self.first + trainer.current_epoch, trainer.global_rank])
            reseed(int(words.generate_state(1, np.uint64)[0] >> 1))


class ShowEpochs(pl.Callback):
    """Show the progress of training, with the loss of the last epoch."""

    def __init__(self) -> None:
        self.display: Display | None = None

    def on_train_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Begin, where training was resumed at the epoch it ended."""
        self.display = Display("Training", trainer.max_epochs or 0, "epochs", trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Count an epoch."""
        if self.display is not None:
            loss = trainer.callback_metrics.get("train_loss_epoch")
            self.display.advance(1, "" if loss is None else f"loss {float(loss):.3g}")

    def on_train_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """End."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, plan: pl.LightningModule, exception: BaseException) -> None:
        """End."""
        self._close()

    def _close(self) -> None:
        if self.display is not None:
            self.display.close()
        self.display = None


class KeepBest(pl.Callback):
    """Remember the weights of the lowest validation loss and put them back when training ends."""

    def __init__(self, towers: TwoTowers) -> None:
        self.towers = towers
        self.loss = math.inf
        self.state: dict[str, torch.Tensor] | None = None

    def on_validation_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Copy the weights when this epoch is the best so far."""
        loss = trainer.callback_metrics.get("validation_loss")
        if loss is not None and not trainer.sanity_checking and float(loss) < self.loss:
            self.loss = float(loss)
            self.state = copy_of(self.towers)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"loss": self.loss, "state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.loss = state_dict["loss"]
        self.state = state_dict["state"]

    def on_fit_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Restore them."""
        if self.state is not None:
            self.towers.load_trained_state(self.state)
