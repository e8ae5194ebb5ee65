"""Kills at every rename and write, and full and read-only disks: the old result or the new one stands, whole.

As a script, this file runs one scenario: it counts what a run does to files, kills it with SIGKILL at each of these
moments, and runs it again. Python and its packages are imported once, and each run is a fork.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

SMALL = {"simulate": {"n_cells": 900, "seed": 0}, "setup": {"tile_size": 64}}
BENCHMARK = {"datasets": {"a": SMALL}, "methods": ["random", "gene-mean"], "seeds": [0]}
QUIET = {"batch_size": 16, "split": "blocks", "enable_progress_bar": False, "enable_model_summary": False}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def tissue():
    from sigmma_sc import SIGMMA
    from sigmma_sc.datasets import simulate_tissue

    sdata = simulate_tissue(n_cells=700, seed=0, microns_per_pixel=1.0)
    SIGMMA.setup_spatialdata(sdata, tile_size=64)
    return sdata


def encoder():
    import torch

    from sigmma_sc import ImageEncoder

    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    return ImageEncoder(module, name="pooled", input_size=16, mean=(0.0,) * 3, std=(1.0,) * 3)


def model_of(sdata):
    from sigmma_sc import SIGMMA

    return SIGMMA(sdata, encoder(), n_latent=8)


class Save:
    """``save(overwrite=True)`` over an older model."""

    def prepare(self, folder):
        assert in_fork(lambda: self.make(folder)) == 0

    def make(self, folder):
        model = model_of(tissue())
        for name in ("before", "after"):
            model.train(max_epochs=1, **QUIET)
            model.save(folder / name)

    def begin(self, place):
        shutil.copytree(place.parent / "before", place / "model")

    def run(self, place):
        from sigmma_sc import SIGMMA

        SIGMMA.load(place.parent / "after", tissue(), encoder()).save(place / "model", overwrite=True)

    def check(self, place):
        from sigmma_sc.store.model import read_model

        read_model(place / "model", "SIGMMA")
        known = [digest(place.parent / name) for name in ("before", "after")]
        return digest(place / "model") in known

    def result(self, place):
        return digest(place / "model")


class Train(Save):
    """Training with checkpoints and a cache, and saving."""

    def prepare(self, folder):
        pass

    def begin(self, place):
        place.mkdir()

    def run(self, place):
        from sigmma_sc import SIGMMA

        model = SIGMMA(tissue(), encoder(), n_latent=8, cache_dir=place / "cache")
        model.train(max_epochs=2, checkpoint_dir=place / "checkpoints", **QUIET)
        model.save(place / "model", overwrite=True)

    def check(self, place):
        from sigmma_sc.store.model import read_model
        from sigmma_sc.train.checkpoint import FILE, read_checkpoint

        if (place / "checkpoints" / FILE).exists():
            read_checkpoint(place / "checkpoints" / FILE)
        if (place / "model").exists():
            read_model(place / "model", "SIGMMA")
        return True


class Command(Save):
    """``sigmma-sc train --overwrite`` over older results; the renames at its end alone, as the rest is training."""

    def prepare(self, folder):
        assert in_fork(lambda: self.store(folder)) == 0
        assert in_fork(lambda: self.command(folder, folder / "before", 1)) == 0

    def store(self, folder):
        from sigmma_sc.datasets import simulate_tissue

        simulate_tissue(n_cells=700, seed=0, microns_per_pixel=1.0).write(folder / "slide.zarr")

    def begin(self, place):
        place.mkdir()
        shutil.copytree(place.parent / "before", place / "out")

    def run(self, place):
        self.command(place.parent, place / "out", 2)

    def command(self, folder, out, epochs):
        from sigmma_sc import cli

        options = ["--epochs", str(epochs), "--split", "none", "--overwrite", "--checkpoints", f"{folder}/{epochs}"]
        options += ["--cache", f"{folder}/cache", "--tile-size", "64", "--set", "n_latent=8"]
        sys.argv = ["sigmma-sc", "train", str(folder / "slide.zarr"), "--out", str(out), *options]
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code

    def check(self, place):
        from sigmma_sc.cli.results import require_free

        require_free(place / "out", overwrite=True)
        old = {path.name for path in (place.parent / "before").iterdir()}
        whole = {path.name for path in (place / "out").iterdir()} == old
        return whole and (place / "out" / "history.csv").read_text().count("\n") in (2, 3)

    def result(self, place):
        return digest(place / "out" / "model")


class Benchmark(Save):
    """A benchmark of two methods."""

    def prepare(self, folder):
        pass

    def begin(self, place):
        place.mkdir()

    def run(self, place):
        from sigmma_sc.benchmark import run

        run(BENCHMARK, place / "out", command="the command")

    def check(self, place):
        from sigmma_sc.benchmark.output import require_own
        from sigmma_sc.benchmark.trial import Trial

        require_own(place / "out", ["a-blocks.png"])
        for path in place.rglob("*.npz"):
            Trial.read(path)
        return True

    def result(self, place):
        return [(place / "out" / name).read_text() for name in ("results.csv", "intervals.csv")]


class Results(Save):
    """``write_results`` into a store; what touches the store itself, as else only a folder beside it is filled."""

    def make(self, folder):
        sdata = tissue()
        sdata.write(folder / "before")
        model = model_of(sdata)
        model.train(max_epochs=1, **QUIET)
        model.write_embeddings(n_offsets=1)
        sdata["table"].uns["sigmma"]["date"] = "the same"
        sdata["sigmma_tiles"].uns["sigmma"]["date"] = "the same"
        sdata.write(folder / "after")

    def begin(self, place):
        shutil.copytree(place.parent / "before", place / "slide.zarr")

    def run(self, place):
        import spatialdata

        from sigmma_sc import io

        sdata = spatialdata.read_zarr(place.parent / "after")
        sdata.path = place / "slide.zarr"
        io.write_results(sdata)

    def check(self, place):
        import spatialdata

        from sigmma_sc._files import recover

        recover(place / "slide.zarr")
        # Images and tables can be read, and results are whole or absent.
        sdata = spatialdata.read_zarr(place / "slide.zarr")
        present = "X_sigmma_meso" in sdata["table"].obsm
        images = digest(place / "slide.zarr" / "images") == digest(place.parent / "before" / "images")
        return images and ("sigmma_tiles" in sdata.tables) == ("sigmma_tiles_cell_circles" in sdata.shapes) == present

    def result(self, place):
        return digest(place / "slide.zarr")


SCENARIOS = {"save": Save, "train": Train, "command": Command, "benchmark": Benchmark, "results": Results}
N_RANDOM = {"save": 3, "train": 10, "command": 1, "benchmark": 3, "results": 3}


def digest(folder):
    """Hash of the files of a folder, with their names."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def in_fork(run, delay=None):
    """Run in a fork, killed after some seconds if asked; its exit code, negative for a signal."""
    process = os.fork()
    if process == 0:
        try:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
                run()
        finally:
            # Without the clean-up of the process that was copied.
            error = sys.exc_info()[1]
            if error is not None:
                traceback.print_exception(error)
            os._exit(int(error is not None))
    if delay is not None:
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def counted(place, log, at=None, ending=False):
    """Write what is done to files in ``place`` to ``log``, and end this process before the moment of number ``at``."""
    seen = []

    def hook(event, arguments):
        target = str(arguments[1 if event == "os.rename" else 0]) if arguments else ""
        swaps = event == "ctypes.dlsym" and arguments[1] == "renameat2"
        writes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.chmod")
        writes |= event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & WRITING)
        if ending:  # what touches the folder of results itself, and not what is in it
            writes &= Path(target).parent == place and event != "open"
        if swaps or (writes and target.startswith(str(place))):
            seen.append(f"{event} {Path(target).name}")
            if len(seen) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            elif at is None:
                os.write(log, f"{seen[-1]}\n".encode())

    sys.addaudithook(hook)


def scenario(name, folder, step):
    """Count the moments of a run, kill others at every ``step``-th, and let the same call end; how many were killed."""
    import dask

    warnings.simplefilter("ignore")
    dask.config.set(scheduler="synchronous")  # threads do not survive a fork
    for module in ("sigmma_sc.benchmark", "sigmma_sc.cli", "sigmma_sc.train.fit", "scvi.train", "spatialdata"):
        import_module(module)  # once, before the forks
    made = SCENARIOS[name]()
    made.prepare(folder)
    ending = name in ("command", "results")

    def run(place, at=None, log=None):
        counted(place, log, at, ending)
        made.run(place)

    places = (folder / f"run{n}" for n in range(10_000))
    whole = next(places)
    made.begin(whole)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    start = time.monotonic()
    assert in_fork(lambda: run(whole, None, log)) == 0
    seconds = time.monotonic() - start
    expected = made.result(whole)
    moments = (folder / "log").read_text().splitlines()
    rng = np.random.default_rng(0)
    kills = [(at, None) for at in range(1, len(moments) + 1, step)]
    kills += [(None, float(delay)) for delay in rng.uniform(0, seconds, N_RANDOM[name])]
    for (at, delay), place in zip(kills, places, strict=False):
        made.begin(place)
        what = f"{name}, {moments[at - 1]} (number {at} of {len(moments)})" if at else f"{name}, after {delay:.2f} s"
        code = in_fork(lambda at=at, place=place: run(place, at or 10**9), delay)
        assert code == -signal.SIGKILL or (delay and code == 0), f"{what}: ended by {code}"
        assert made.check(place), f"{what}: neither the old result nor the new one"
        assert in_fork(lambda place=place: made.run(place)) == 0, f"{what}: the same call fails"
        assert made.result(place) == expected, f"{what}: other bits"
        left = list(place.rglob("*.part"))
        assert not left, f"{what}: {left}"
        shutil.rmtree(place)
    print(len(kills))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("name", "step", "least"),
    [("save", 2, 8), ("train", 4, 11), ("command", 1, 4), ("benchmark", 4, 11), ("results", 1, 6)],
)
def test_killed_at_every_write_and_rename(tmp_path, name, step, least):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, name, str(tmp_path), str(step)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= least


@pytest.fixture
def disk(tmp_path):
    """A disk of two MiB, which can be filled and made read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this user cannot mount a disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk):
    room = shutil.disk_usage(disk).free
    (disk / "fill").write_bytes(bytes(room))


def read_only(disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


@pytest.fixture(scope="module")
def trained():
    sdata = tissue()
    model = model_of(sdata)
    model.train(max_epochs=1, **QUIET)
    return sdata, model


@pytest.mark.slow
@pytest.mark.parametrize("lack", [fill, read_only])
def test_a_disk_without_room_keeps_the_old_model_and_says_so(trained, disk, lack):
    from sigmma_sc import SIGMMA
    from sigmma_sc.errors import WriteError

    sdata, model = trained
    model.save(disk / "model")
    before = digest(disk / "model")
    lack(disk)
    with pytest.raises(WriteError, match="model cannot be written .*(No space|Read-only)"):
        model.save(disk / "model", overwrite=True)
    fresh = model_of(sdata)
    with pytest.raises(WriteError, match="last.safetensors cannot be written .*(No space|Read-only)"):
        fresh.train(max_epochs=1, checkpoint_dir=disk / "checkpoints", **QUIET)
    assert not fresh.is_trained
    assert digest(disk / "model") == before
    SIGMMA.load(disk / "model", sdata, encoder())


@pytest.mark.slow
def test_a_disk_that_fills_up_in_training_ends_it_and_the_same_call_resumes(trained, disk, tmp_path):
    import lightning.pytorch as pl
    import torch

    from sigmma_sc.errors import WriteError

    class Fill(pl.Callback):
        def on_train_epoch_start(self, trainer, plan):
            if trainer.current_epoch == 1:
                fill(disk)

    sdata, _ = trained
    how = {"max_epochs": 3, "checkpoint_dir": disk / "checkpoints", **QUIET}
    model, whole = model_of(sdata), model_of(sdata)
    with pytest.raises(WriteError, match="last.safetensors cannot be written .*No space left"):
        model.train(callbacks=[Fill()], **how)
    assert not model.is_trained
    (disk / "fill").unlink()
    model.train(**how)
    whole.train(**{**how, "checkpoint_dir": None})
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, model.module.state_dict()[name])


@pytest.mark.slow
def test_a_read_only_cache_is_read(trained, disk):
    from sigmma_sc import SIGMMA, pp
    from sigmma_sc.errors import CacheWarning, WriteError

    sdata, _ = trained
    pp.encode_patches(sdata, encoder(), disk / "cache")
    before = digest(disk / "cache")
    read_only(disk)
    own = encoder()
    own.encode = lambda images, encode=own.encode: encode(images) if len(images) == 1 else pytest.fail("encoded")
    with pytest.warns(CacheWarning, match="cannot be written .*Read-only"):
        SIGMMA(sdata, own, n_latent=8, cache_dir=disk / "cache").train(max_epochs=1, **QUIET)
    assert digest(disk / "cache") == before
    with pytest.raises(WriteError, match="Read-only"):
        pp.encode_patches(sdata, encoder(), disk / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("lack", [fill, read_only])
def test_a_benchmark_without_room_says_so_before_any_trial(disk, lack, monkeypatch):
    from sigmma_sc.benchmark import run
    from sigmma_sc.errors import WriteError

    lack(disk)
    monkeypatch.setattr("sigmma_sc.benchmark.runner.run_trial", lambda *_: pytest.fail("ran a trial"))
    with pytest.raises(WriteError, match="cannot be written .*(No space|Read-only)"):
        run(BENCHMARK, disk / "out")


if __name__ == "__main__":
    scenario(sys.argv[1], Path(sys.argv[2]).resolve(), int(sys.argv[3]))
