"""Cells once, tables, report; and what must not leak does not."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from sigmma_sc.benchmark import METHODS, Method, read_config, run
from sigmma_sc.benchmark.sources import load
from sigmma_sc.benchmark.trial import Cell, _embed, _roles, _tiles
from sigmma_sc.errors import ExistsError, SetupError, SplitWarning
from sigmma_sc.metrics.retrieval import retrieval_table

SLIDES = {
    "simulate": {"n_cells": 1200, "n_slides": 4, "seed": 0},
    "setup": {
        "tile_size": 64,
        "image_key": {f"slide{k}_cell_circles": f"slide{k}_he_image" for k in range(1, 5)},
        "coordinate_system": {f"slide{k}_cell_circles": f"slide{k}" for k in range(1, 5)},
    },
}
SMALL = {"simulate": {"n_cells": 900, "seed": 0}, "setup": {"tile_size": 64}}
ONE = {"simulate": {"n_cells": 1500, "seed": 0}, "setup": {"tile_size": 64}}


class SlideIdentity(Method):
    """Knows of each tile which slide it is from, and nothing else."""

    def embed(self, slide, tiles):
        name = np.frombuffer(slide.name.encode(), np.uint8)
        own = np.random.default_rng([*name]).normal(size=32)
        noise = np.random.default_rng([len(tiles), *name]).normal(size=(2, len(tiles), 32))
        image, cells = (own + 0.01 * part for part in noise)
        return {"macro": image.astype(np.float32)}, {"macro": cells.astype(np.float32)}


@pytest.fixture
def slide_identity(monkeypatch):
    monkeypatch.setitem(METHODS, "slide-identity", SlideIdentity)


def test_a_method_that_knows_the_slide_alone_gains_nothing(slide_identity, tmp_path):
    config = {"datasets": {"a": {**SLIDES, "splits": ["blocks", "donor"]}}, "methods": ["slide-identity", "gene-mean"]}
    plan = read_config({**config, "seeds": [0, 1, 2, 3]})
    table = run(plan, tmp_path)
    own = table[table.method == "slide-identity"]
    for _, recall in own[own.metric.str.startswith("mean recall")].groupby("split"):
        # Some six queries a direction, slide and seed.
        assert recall.value.mean() < recall.chance.mean() + 3 * np.sqrt(0.25 / recall.n_test.sum())
    # The plant is alive: asked among the tiles of all slides at once it looks well.
    data = plan.datasets[0]
    roles = _roles(load(data), data, "blocks", 0, 0)
    chosen = _tiles(roles, load(data), "test")
    assert len(chosen) == 4
    image, cells = _embed(SlideIdentity(None), chosen)
    pooled = retrieval_table(image, cells, np.zeros(len(image["macro"])))
    assert (pooled["recall@15%"] > 2 * pooled["chance@15%"]).all()
    # On a donor it never saw it predicts no better than the mean of each gene.
    donor = table[(table.split == "donor") & (table["head"] == "default")]
    mse = donor[donor.metric == "mse"].groupby("method").value.mean()
    assert mse["slide-identity"] > 0.97 * mse["gene-mean"]
    pcc = donor[(donor.metric == "pcc") & (donor.method == "slide-identity")].value
    assert abs(pcc.mean()) < 0.15


def test_report_tables_and_resuming(tmp_path, monkeypatch):
    config = {
        "title": "Small",
        "datasets": {"a": {**SMALL, "splits": ["blocks", "random"], "reference": "niche", "note": "Simulated tissue."}},
        "methods": ["sigmma", {"method": "bleep", "label": "BLEEP"}, "frozen", "gene-mean"],
        "encoder": "stain-stats",
        "seeds": [0, 1],
        "train": {"max_epochs": 2},
        "niches": {"methods": ["sigmma"], "n_cells": 400},
    }
    config["datasets"]["a"]["published"] = {"SIGMMA": {"PCC": "0.7 ± 0.1", "I→T R@5 %": 0.59}}
    with pytest.warns(SplitWarning, match="split='random' of a "):
        table = run(config, tmp_path, command="the command")
    assert not table.duplicated(["dataset", "split", "method", "seed", "slide", "metric", "scale", "head"]).any()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "results.parquet"), table)
    genes = pd.read_parquet(tmp_path / "genes.parquet")
    assert (genes.groupby(["split", "method", "seed", "head"]).gene.nunique() == 50).all()
    mean = genes[(genes["head"] == "hest") & (genes.method == "frozen")].groupby(["split", "seed"]).pcc.mean()
    same = table[(table["head"] == "hest") & (table.method == "frozen") & (table.metric == "pcc")]
    np.testing.assert_allclose(mean, same.set_index(["split", "seed"]).value.sort_index())
    assert set(table[table.task == "niches"].metric) >= {"ari", "nmi", "contiguity"}
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    for part in ("the command", "a, blocks", "leakage", "BLEEP", "published", "0.590", "torch 2", "chance at 5 %"):
        assert part in page
        assert part in text
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert len(list((tmp_path / "figures").iterdir())) == 2

    # Done cells are not run again: whatever runs one now fails.
    monkeypatch.setattr("sigmma_sc.benchmark.runner.run_cell", lambda *_: pytest.fail("ran a cell again"))
    pd.testing.assert_frame_equal(run(config, tmp_path), table)
    other = {**config, "train": {"max_epochs": 3}}
    with pytest.raises(ExistsError, match=r"0.npz was run with other settings \(train\)"):
        run(other, tmp_path)
    monkeypatch.undo()
    again = run({**other, "seeds": [0, 1]}, tmp_path, overwrite=True)
    done = Cell.read(tmp_path / "cells" / "a" / "blocks" / "sigmma" / "1.npz")
    assert done.meta["fit"]["epochs"] == 3
    assert len(again) == len(table)


class Fails(Method):
    """Cannot be trained."""

    def fit(self, **training):
        raise SetupError("No luck.")


def test_a_method_that_fails_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "fails", Fails)
    config = {"datasets": {"a": ONE}, "methods": ["random", "fails"], "seeds": [0]}
    with (
        pytest.warns(UserWarning, match="fails, seed 0: No luck.*The benchmark goes on"),
        pytest.raises(SetupError, match="1 of 2"),
    ):
        run(config, tmp_path)
    assert "Cells that failed" in (tmp_path / "report.md").read_text()
    assert "0.npz" in {p.name for p in (tmp_path / "cells" / "a" / "blocks" / "random").iterdir()}


def test_encoders_are_tried_before_any_work(tmp_path):
    config = {
        "datasets": {"a": ONE},
        "methods": ["random", {"method": "frozen", "encoder": "no-such-net"}],
        "seeds": [0],
    }
    with pytest.raises(SetupError.__mro__[1], match="no-such-net"):
        run(config, tmp_path)
    assert not (tmp_path / "cells").exists()


def test_a_reference_that_does_not_exist_is_named_before_training(tmp_path):
    config = {"datasets": {"a": {**SMALL, "reference": "nich"}}, "methods": ["random"], "seeds": [0]}
    told = pytest.warns(UserWarning, match="The benchmark goes on")
    with told, pytest.raises(SetupError, match="reference='nich' is no column of obs, which has"):
        run(config, tmp_path)


@pytest.mark.slow
def test_a_budget_is_spent_on_validation_tiles(tmp_path):
    tissue = {**ONE, "simulate": {"n_cells": 3000, "seed": 0}}
    config = {"datasets": {"a": tissue}, "methods": ["genes", "random"], "seeds": [0], "encoder": "stain-stats"}
    config |= {"train": {"max_epochs": 80}, "tune": {"lr": [1e-7, 3e-3]}}
    run(config, tmp_path)
    fit = Cell.read(tmp_path / "cells" / "a" / "blocks" / "genes" / "0.npz").meta["fit"]
    assert fit["tuned"] == {"lr": 3e-3}
    assert Cell.read(tmp_path / "cells" / "a" / "blocks" / "random" / "0.npz").meta["fit"] == {}


@pytest.mark.slow
def test_killed_and_run_again_by_two_processes(tmp_path):
    config = {
        "datasets": {"a": ONE},
        "methods": ["genes", "sigmma", "random"],
        "seeds": [0, 1],
        "encoder": "stain-stats",
    }
    config["train"] = {"max_epochs": 3}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    arguments = ["benchmark", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", "from sigmma_sc.cli import main; main()", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while first.poll() is None and not list((tmp_path / "out").rglob("*.npz")):
        time.sleep(0.2)
    first.kill()
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npz")}
    assert 0 < len(kept) < 6
    subprocess.run([*command, "--jobs", "2"], env=environment, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    alone = run(read_config(tmp_path / "c.yaml"), tmp_path / "alone")
    both = pd.read_parquet(tmp_path / "out" / "results.parquet")
    np.testing.assert_allclose(both.value, alone.value, atol=0.02)
    assert Path(tmp_path / "out" / "report.html").exists()
