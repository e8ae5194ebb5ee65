"""Trials once, tables, report; and what must not leak does not."""

import errno
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from sigmma_sc.benchmark import METHODS, Method, MethodSpec, read_config, run
from sigmma_sc.benchmark.evaluation import divide, embed
from sigmma_sc.benchmark.runner import arguments_of
from sigmma_sc.benchmark.sources import load
from sigmma_sc.benchmark.trial import Trial
from sigmma_sc.encoders.registry import _registered
from sigmma_sc.errors import EncoderError, ExistsError, SetupError, SplitWarning, WriteError
from sigmma_sc.features.registry import NODE_FEATURES
from sigmma_sc.metrics.retrieval import retrieval_table
from sigmma_sc.nn.objectives import OBJECTIVES
from sigmma_sc.tissue.split import SPLITS

SLIDES = {
    "simulate": {"n_cells": 1200, "n_slides": 4, "seed": 0},
    "setup": {
        "tile_size": 64,
        "image_key": {f"slide{k}_cell_circles": f"slide{k}_he_image" for k in range(1, 5)},
        "coordinate_system": {f"slide{k}_cell_circles": f"slide{k}" for k in range(1, 5)},
    },
}
SMALL = {"simulate": {"n_cells": 900, "seed": 0}, "setup": {"tile_size": 64}}


class SlideIdentity(Method):
    """Knows of each tile which slide it is from, and nothing else."""

    def embed(self, slide, tiles):
        name = np.frombuffer(slide.name.encode(), np.uint8)
        of_slide = np.random.default_rng([*name]).normal(size=32)
        image, cells = of_slide + 0.01 * np.random.default_rng([len(tiles), *name]).normal(size=(2, len(tiles), 32))
        return {"macro": image.astype(np.float32)}, {"macro": cells.astype(np.float32)}


@pytest.mark.slow
def test_a_method_that_knows_the_slide_alone_gains_nothing(monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "slide-identity", SlideIdentity)
    config = {"datasets": {"a": {**SLIDES, "splits": ["blocks", "donor"]}}, "methods": ["slide-identity", "gene-mean"]}
    plan = read_config({**config, "seeds": [0, 1]})
    table = run(plan, tmp_path)
    planted = table[table.method == "slide-identity"]
    for _, recall in planted[planted.metric.str.startswith("mean recall")].groupby("split"):
        # Some six queries a direction, slide and seed.
        assert recall.value.mean() < recall.chance.mean() + 3 * np.sqrt(0.25 / recall.n_test.sum())
    # The plant is alive: asked among the tiles of all slides at once it looks well.
    data = plan.datasets[0]
    chosen = divide(load(data), data, "blocks", 0, 0).tiles("test")
    assert len(chosen) == 4
    embedded = embed(SlideIdentity(None), chosen)
    pooled = retrieval_table(embedded.image, embedded.transcriptome, np.zeros(len(embedded.slide)))
    assert (pooled["recall@15%"] > 2 * pooled["chance@15%"]).all()
    # On a donor it never saw it predicts no better than the mean of each gene.
    donor = table[(table.split == "donor") & (table["head"] == "default")]
    mse = donor[donor.metric == "mse"].groupby("method").value.mean()
    assert mse["slide-identity"] > 0.97 * mse["gene-mean"]
    pcc = donor[(donor.metric == "pcc") & (donor.method == "slide-identity")].value
    assert abs(pcc.mean()) < 0.15


def settings(**change):
    data = {**SMALL, "splits": ["blocks", "random"]}
    return {"datasets": {"a": data}, "methods": ["random", "gene-mean"], "seeds": [0, 1], **change}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Folder of a benchmark, and its table."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.warns(
        SplitWarning, match="split='random' of a puts neighbouring tiles of one tissue into train and test"
    ):
        table = run(settings(), folder, command="the command")
    return folder, table


def test_tables(first):
    folder, table = first
    assert not table.duplicated(["dataset", "split", "method", "seed", "slide", "metric", "scale", "head"]).any()
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "results.parquet"), table)
    genes = pd.read_parquet(folder / "genes.parquet")
    assert (genes.groupby(["split", "method", "seed", "head"]).gene.nunique() == 50).all()
    mse = genes[(genes["head"] == "hest") & (genes.method == "random")].groupby(["split", "seed"]).mse.mean()
    same = table[(table["head"] == "hest") & (table.method == "random") & (table.metric == "mse")]
    np.testing.assert_allclose(mse, same.set_index(["split", "seed"]).value.sort_index())
    intervals = pd.read_csv(folder / "intervals.csv")
    assert set(intervals.groupby(["dataset", "split"]).n_seeds.max()) == {2}
    text = (folder / "report.md").read_text()
    assert "the command" in text
    assert "8 of 8 trials" in text
    assert len(list((folder / "trials").rglob("*.npz"))) == 8


def test_trials_that_are_done_are_not_run_again(first, monkeypatch):
    folder, table = first
    monkeypatch.setattr("sigmma_sc.benchmark.runner.run_trial", lambda *_: pytest.fail("ran a trial again"))
    pd.testing.assert_frame_equal(run(settings(), folder, command="the command"), table)
    with pytest.raises(ExistsError, match=r"0.npz was run with other settings \(train\)"):
        run(settings(train={"max_epochs": 3}), folder)


def count_runs(monkeypatch):
    """Trials that are run from now on."""
    from sigmma_sc.benchmark import runner

    ran, run_trial = [], runner.run_trial
    monkeypatch.setattr(
        runner, "run_trial", lambda plan, spec, cache: ran.append(str(spec)) or run_trial(plan, spec, cache)
    )
    return ran


def test_what_has_changed_or_is_damaged_is_run_anew_if_asked(tmp_path, monkeypatch):
    ran = count_runs(monkeypatch)
    one = settings(datasets={"a": SMALL}, seeds=[0])
    run(one, tmp_path)
    assert ran == ["a, blocks, random, seed 0", "a, blocks, gene-mean, seed 0"]
    path = tmp_path / "trials" / "a" / "blocks" / "gene-mean" / "0.npz"
    path.write_bytes(path.read_bytes()[:-100])
    ran.clear()
    with pytest.raises(SetupError, match=r"gene-mean/0.npz is damaged.*overwrite=True"):
        run(one, tmp_path)
    assert ran == []
    run(one, tmp_path, overwrite=True)
    assert ran == ["a, blocks, gene-mean, seed 0"]
    ran.clear()
    other = {**one, "methods": [{"method": "random", "train": {"lr": 1}}, "gene-mean"]}
    run(other, tmp_path, overwrite=True)
    assert ran == ["a, blocks, random, seed 0"]
    assert Trial.read(tmp_path / "trials" / "a" / "blocks" / "random" / "0.npz").meta.settings["method"]["train"] == {
        "lr": 1
    }


class Fails(Method):
    """Cannot be trained."""

    def fit(self, **training):
        raise SetupError("No luck.")


class Crashes(Method):
    """Has a fault of its own."""

    def embed(self, slide, tiles):
        return {"macro": 1 / 0}, None


def test_methods_that_fail_leave_the_others(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "fails", Fails)
    monkeypatch.setitem(METHODS, "crashes", Crashes)
    config = {"datasets": {"a": SMALL}, "methods": ["crashes", "random", "fails"], "seeds": [0]}
    with (
        pytest.warns(UserWarning, match="fails, seed 0: No luck.*The benchmark goes on"),
        pytest.raises(SetupError, match="2 of 3 trials failed.*crashes, seed 0: ZeroDivisionError: division by zero"),
    ):
        run(config, tmp_path)
    failed = (tmp_path / "report.md").read_text().split("## Trials that failed")[1]
    assert failed.split("\n")[2:4] == [
        "- a, blocks, crashes, seed 0: ZeroDivisionError: division by zero",
        "- a, blocks, fails, seed 0: No luck.",
    ]
    assert [p.name for p in (tmp_path / "trials" / "a" / "blocks" / "random").iterdir()] == ["0.npz"]
    told = pytest.warns(UserWarning, match="The benchmark goes on")
    with told, pytest.raises(SetupError, match="No trial could be run. a, blocks, fails, seed 0: No luck."):
        run({**config, "methods": ["fails"]}, tmp_path / "none")


def test_a_full_disk_ends_it_and_what_is_done_is_kept(tmp_path, monkeypatch):
    ran = count_runs(monkeypatch)
    one = settings(datasets={"a": SMALL}, seeds=[0])
    savez, saved = np.savez_compressed, []

    def filling(file, **arrays):
        saved.append(file)
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(file, **arrays)

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez_compressed", filling)
        with pytest.raises(WriteError, match="gene-mean/0.npz cannot be written .*No space"):
            run(one, tmp_path)
    run(one, tmp_path)
    assert ran == [f"a, blocks, {method}, seed 0" for method in ("random", "gene-mean", "gene-mean")]


def test_files_of_the_user_are_refused_before_any_trial(tmp_path, monkeypatch):
    monkeypatch.setattr("sigmma_sc.benchmark.runner.run_trial", lambda *_: pytest.fail("ran a trial"))
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(ExistsError, match="holds report.md, which this benchmark did not write"):
        run(settings(), tmp_path)
    assert (tmp_path / "report.md").read_text() == "mine"


def test_encoders_are_tried_before_any_work(tmp_path):
    config = settings(methods=["random", {"method": "frozen", "encoder": "no-such-net"}])
    with pytest.raises(EncoderError, match="no-such-net"):
        run(config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "encoder", "text"),
    [
        ("plip", "plip", "plip"),
        ("omiclip", "omiclip", "omiclip"),
        ("clip", "clip", "clip"),
        ("gene-sentence", "clip", "genes"),
        ("bleep", "resnet50", None),
        ("sigmma-macro", "stain-stats", None),
        ("random", None, None),
    ],
)
def test_what_a_method_takes_by_itself(method, encoder, text):
    arguments = arguments_of(MethodSpec(method=method, arguments={"text_weights": "w.pt"}))
    assert arguments.get("image_encoder") == encoder
    assert arguments.get("text") == text
    assert arguments["text_weights"] == "w.pt"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("plip", "'plip' cannot be fetched.*sg.get_encoder"),
        ("bleep", "'resnet50' cannot be fetched"),
        ({"method": "omiclip", "encoder": "stain-stats"}, "'omiclip' cannot be fetched.*text_weights=path"),
        ({"method": "clip", "encoder": "stain-stats", "arguments": {"text_weights": "no.pt"}}, "no.pt' is no file"),
    ],
)
def test_weights_that_cannot_be_had_are_told_before_any_work(method, words, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(EncoderError, match=words):
        run(settings(methods=["random", method]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_trained_model_beside_its_baselines(tmp_path):
    """The whole way: training, niches and figures."""
    config = {
        "datasets": {"a": {**SMALL, "reference": "niche"}},
        "methods": ["sigmma", {"method": "bleep", "label": "BLEEP"}, "frozen"],
        "encoder": "stain-stats",
        "seeds": [0, 1],
        "train": {"max_epochs": 2},
        "niches": {"methods": ["sigmma"], "n_cells": 400},
    }
    table = run(config, tmp_path)
    assert set(table[table.task == "niches"].metric) >= {"ari", "nmi", "contiguity"}
    assert set(table[table.task == "retrieval"].method) == {"sigmma", "BLEEP"}
    assert Trial.read(tmp_path / "trials" / "a" / "blocks" / "sigmma" / "1.npz").meta.fit["epochs"] == 2
    text = (tmp_path / "report.md").read_text()
    assert "Agreement of the niches of two seeds" in text
    assert "![a, blocks" in text


@pytest.mark.slow
def test_a_budget_is_spent_on_validation_tiles(tmp_path):
    tissue = {**SMALL, "simulate": {"n_cells": 3000, "seed": 0}}
    config = {"datasets": {"a": tissue}, "methods": ["genes", "random"], "seeds": [0], "encoder": "stain-stats"}
    config |= {"train": {"max_epochs": 80}, "tune": {"lr": [1e-7, 3e-3]}}
    run(config, tmp_path)
    folder = tmp_path / "trials" / "a" / "blocks"
    assert Trial.read(folder / "genes" / "0.npz").meta.fit["tuned"] == {"lr": 3e-3}
    assert Trial.read(folder / "random" / "0.npz").meta.fit == {}


OWN = """
import sigmma_sc as sg


class Mine(sg.benchmark.Random):
    pass


class Halves(sg.Split):
    name = "halves"

    def groups(self, tiles, usable):
        return (tiles.origins[:, 0] // (2 * tiles.side)).astype(int)

    def order(self, groups, rng):
        return groups


def squared(image, transcriptome, temperature):
    return (image - transcriptome).pow(2).mean() / temperature


class FiveGenes(sg.NodeFeatures):
    def transform(self, slide, tiles):
        return slide.table[slide.rows].X.toarray()[:, :5]


def colour(weights):
    from torch import nn

    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())


sg.benchmark.METHODS["mine"] = Mine
sg.register_split(Halves())
sg.register_objective("squared", squared)
sg.register_node_features("five-genes", FiveGenes)
sg.register_encoder("colour", colour, input_size=16, mean=(0, 0, 0), std=(1, 1, 1), overwrite=True)
"""


@pytest.mark.slow
def test_killed_and_run_again_by_two_processes(tmp_path, monkeypatch):
    """With variants of each kind that a module registers, which every process has to import."""
    (tmp_path / "own.py").write_text(OWN)
    own = {"objective": "squared", "node_features": "five-genes"}
    config = {
        "datasets": {"a": {**SMALL, "splits": ["halves"]}},
        "methods": ["genes", {"label": "own", "method": "sigmma", "arguments": own}, "mine"],
        "seeds": [0, 1],
        "encoder": "colour",
        "train": {"max_epochs": 3},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--import", "own", "benchmark", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", "from sigmma_sc.cli import main; main()", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, **quiet)
    while process.poll() is None and not list((tmp_path / "out").rglob("*.npz")):
        time.sleep(0.2)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npz")}
    assert 0 < len(kept) < 6
    subprocess.run([*command, "--jobs", "2"], env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    monkeypatch.syspath_prepend(tmp_path)
    import_module("own")
    try:
        alone = run(read_config(tmp_path / "c.yaml"), tmp_path / "alone")
    finally:
        registered = {"mine": METHODS, "halves": SPLITS, "squared": OBJECTIVES, "five-genes": NODE_FEATURES}
        for name, known in {**registered, "colour": _registered}.items():
            known.pop(name, None)
    both = pd.read_parquet(tmp_path / "out" / "results.parquet")
    np.testing.assert_allclose(both.value, alone.value, atol=0.02)
    assert Path(tmp_path / "out" / "report.html").exists()
