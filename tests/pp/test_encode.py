"""Features by several processes are those of one, and each crop is encoded once."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sigmma_sc import SIGMMA, ImageEncoder, pp
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError
from sigmma_sc.features import patches
from sigmma_sc.features.patches import PatchFeatures
from sigmma_sc.pp import encode

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import spatialdata, torch
torch.set_num_threads(1)
from sigmma_sc import SIGMMA, pp
sdata = spatialdata.read_zarr(sys.argv[1])
SIGMMA.setup_spatialdata(sdata, tile_size=64)
pp.encode_patches(sdata, "stain-stats", sys.argv[2])
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "tissue.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata = simulate_tissue(n_cells=400, seed=0)
        SIGMMA.setup_spatialdata(sdata, tile_size=64)
        sdata.write(path)
    return path, sdata


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of several processes has: their number moves last bits
    pp.encode_patches(store[1], "stain-stats", folder)
    torch.set_num_threads(threads)
    return contents(folder)


def contents(folder):
    """Crop → features, over all shards; how many rows there are in all."""
    from safetensors.torch import load_file

    shards = [load_file(path) for path in Path(folder).rglob("*.safetensors")]
    rows = [dict(zip(map(tuple, s["crops"].tolist()), s["features"], strict=True)) for s in shards]
    return {crop: f for part in rows for crop, f in part.items()}, sum(map(len, rows)), len(shards)


def same(found, expected):
    assert found[0].keys() == expected[0].keys()
    assert found[1] == len(found[0])  # none twice
    assert all(torch.equal(found[0][crop], features) for crop, features in expected[0].items())


@pytest.mark.slow
def test_training_finds_everything_there(store, alone, tmp_path, monkeypatch):
    pp.encode_patches(store[1], "stain-stats", tmp_path)
    asked = []
    monkeypatch.setattr(PatchFeatures, "_encode", lambda self, slide, crops, *_: asked.append(len(crops)))
    model = SIGMMA(store[1], n_latent=8, cache_dir=tmp_path)
    model.train(max_epochs=1, split="none", enable_progress_bar=False)
    model.get_tile_representation()
    assert not asked
    assert len(alone[0]) > 100


@pytest.mark.slow
def test_two_processes_under_torchrun_are_one(store, alone, tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *command, str(tmp_path / "run.py"), str(store[0]), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = contents(tmp_path / "cache")
    assert found[2] == 2
    same(found, alone)


@pytest.mark.slow
def test_two_dask_workers_are_one(store, alone, tmp_path):
    import spatialdata
    from distributed import Client, LocalCluster

    sdata = spatialdata.read_zarr(store[0])
    with LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        pp.encode_patches(sdata, "stain-stats", tmp_path, client=client)
    found = contents(tmp_path)
    assert found[2] == 2
    same(found, alone)


def test_what_workers_cannot_reach(store, tmp_path):
    mine = ImageEncoder(lambda x: x.mean((2, 3)), "mine", 16)
    with pytest.raises(SetupError, match="'mine' is a module that the workers cannot build"):
        pp.encode_patches(store[1], mine, tmp_path, client=object())
    memory = simulate_tissue(n_cells=100, seed=0)
    SIGMMA.setup_spatialdata(memory, tile_size=64)
    with pytest.raises(SetupError, match="Write it first"):
        pp.encode_patches(memory, "stain-stats", tmp_path, client=object())
    assert not np.any([p.suffix for p in tmp_path.rglob("*") if p.is_file()])


def test_precision_is_that_of_training(store, tmp_path, monkeypatch):
    """On a GPU the types differ, and features of one are not found by a model that trains in the other."""
    asked = []

    def encode(self, slide, crops, device, cache, size, kind):
        asked.append(kind)
        return torch.zeros(len(crops), self.encoder.dim, dtype=torch.float16)

    monkeypatch.setattr(PatchFeatures, "_encode", encode)
    monkeypatch.setattr(patches, "feature_type", lambda device, single: torch.float32 if single else torch.bfloat16)
    pp.encode_patches(store[1], "stain-stats", tmp_path)
    assert set(asked) == {torch.bfloat16}
    asked.clear()
    pp.encode_patches(store[1], "stain-stats", tmp_path, precision="32-true")
    assert set(asked) == {torch.float32}
    with pytest.raises(SetupError, match="precision='32' is not one of 'auto', '32-true'"):
        pp.encode_patches(store[1], "stain-stats", tmp_path, precision="32")


TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("given", "n_gpus", "place", "gpu"),
    [
        ({}, 2, (0, 1), 0),
        (TORCHRUN, 4, (5, 8), 1),
        (SRUN, 4, (3, 4), 1),
        (SRUN, 1, (3, 4), 0),  # one visible GPU a task
        (SRUN | TORCHRUN, 2, (5, 8), 1),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, 2, (0, 1), 0),  # a batch script, not one of its tasks
    ],
)
def test_place_and_gpu_of_a_process(given, n_gpus, place, gpu, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    assert encode._place() == place
    assert encode._device(place[0]) == torch.device("cuda", gpu)


def test_workers_of_dask_take_the_gpus_of_a_machine_in_turn(monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [encode._device(n).index for n in range(3)] == [0, 1, 0]
