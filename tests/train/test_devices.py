"""Two processes against one, on the same global batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import os, sys, warnings
import lightning.pytorch as pl
import torch
from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.train.batches import TileBatches
sys.path.insert(0, sys.argv[2])
from test_regimes import network

warnings.simplefilter("ignore")
torch.set_num_threads(1)
world = int(os.environ.get("WORLD_SIZE", 1))
if world == 1:
    # Two processes leave out the odd tile of a batch; the one process has to meet the same tiles.
    plain = TileBatches.__iter__
    TileBatches.__iter__ = lambda self: (batch[: len(batch) // 2 * 2] for batch in plain(self))
found = []

class Watch(pl.Callback):
    def on_before_optimizer_step(self, trainer, plan, optimiser):
        if not found:
            found.append({n: p.grad.clone() for n, p in plan.module.named_parameters() if p.grad is not None})
            found.append(plan.module.trained_state())

sdata = simulate_tissue(n_cells=900, seed=0)
SIGMMA.setup_spatialdata(sdata, tile_size=64, grids=(2, 1))
model = SIGMMA(sdata, network(), n_latent=16, edges="none", dropout=0.0, regime=sys.argv[3], learn_temperature=True)
model.train(max_epochs=2, batch_size=32, split="end", augment=None if sys.argv[3] == "frozen" else False, accelerator="cpu", devices=world,
            strategy="ddp" if world > 1 else "auto", enable_progress_bar=False, callbacks=[Watch()])
if int(os.environ.get("RANK", 0)) == 0:
    losses = {name: frame[name].tolist() for name, frame in model.history.items()}
    torch.save({"gradients": found[0], "losses": losses, "state": model.module.trained_state()}, sys.argv[1])
    print(model.get_latent_representation(scale="all").shape)
"""


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["frozen", "full"])
def test_two_processes_are_one(regime, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    here = str(Path(__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, how in (("one", []), ("two", torchrun)):
        command = [sys.executable, *how, str(script), str(tmp_path / name), here, regime]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    assert one["gradients"].keys() == two["gradients"].keys()
    assert any("encoder" in name for name in one["gradients"]) == (regime == "full")
    largest = {}  # of a layer: the bias of a gate has no gradient, as a softmax does not see it, and holds rounding alone
    for name, gradient in one["gradients"].items():
        layer = name.rpartition(".")[0]
        largest[layer] = max(largest.get(layer, 0.0), float(gradient.abs().max()))
    for name, gradient in one["gradients"].items():
        # In single precision; chunks of another size alone, in one process, move it by 5e-6 of the largest.
        atol = 2e-5 * largest[name.rpartition(".")[0]]
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=0, atol=atol)
    assert one["losses"].keys() == two["losses"].keys()
    for name, values in one["losses"].items():
        assert two["losses"][name] == pytest.approx(values, rel=2e-3), name
    assert two["losses"]["train_ln_batch"] == one["losses"]["train_ln_batch"]


TWICE = """
import json, os, sys, warnings
import torch
from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.train.batches import TileBatches
sys.path.insert(0, sys.argv[2])
from test_regimes import network

warnings.simplefilter("ignore")
torch.set_num_threads(1)
out, rank = sys.argv[1], int(os.environ["RANK"])
drawn = []
plain = TileBatches.__iter__

def watched(self):
    for batch in plain(self):
        if self.shuffle:
            drawn.append([self.epoch, batch])
        yield batch

TileBatches.__iter__ = watched
sdata = simulate_tissue(n_cells=900, seed=0)
SIGMMA.setup_spatialdata(sdata, tile_size=64, grids=(2, 1))
model = SIGMMA(sdata, network(), n_latent=8)
how = dict(batch_size=32, accelerator="cpu", devices=2, strategy="ddp", enable_progress_bar=False, log_save_dir=out)
model.train(max_epochs=2, split="end", checkpoint_dir=f"{out}/first", **how)
model.train(max_epochs=9, early_stopping=True, early_stopping_patience=2, lr=1e-12, weight_decay=0.0, checkpoint_dir=f"{out}/second", **how)
model.save(f"{out}/model")
told = {"drawn": drawn, "epochs": model.epochs_trained, "losses": model.history["validation_loss"]["validation_loss"].tolist()}
with open(f"{out}/{rank}.json", "w") as file:
    json.dump(told, file)
"""


@pytest.mark.slow
def test_two_processes_train_on_stop_early_and_save_once(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(TWICE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    # A rate of next to nothing: after the best epoch two pass, each told to both.
    assert first["epochs"] == second["epochs"] < 11
    assert first["losses"] == second["losses"]
    assert len(first["losses"]) == first["epochs"]
    epochs = [epoch for epoch, _ in first["drawn"]]
    assert sorted(set(epochs)) == list(range(first["epochs"]))
    assert epochs == [epoch for epoch, _ in second["drawn"]]
    for (epoch, mine), (_, theirs) in zip(first["drawn"], second["drawn"], strict=True):
        assert len(mine) == len(theirs), epoch
        assert not {*map(tuple, mine)} & {*map(tuple, theirs)}, epoch
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    assert described["epochs"] == first["epochs"]
    assert described["history"]["validation_loss"]["values"] == first["losses"]
