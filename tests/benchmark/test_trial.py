import json

import numpy as np
import pytest

from sigmma_sc.benchmark import read_config
from sigmma_sc.benchmark.trial import RankKey, Trial, require_same, settings_of, trial_path
from sigmma_sc.errors import ExistsError, SetupError


@pytest.fixture
def trial(make_trial, add_niches, rng):
    """One of everything; the lookup predicts the target of the default protocol."""
    trial = make_trial(slides=2, n=5, scales=("micro", "all"))
    trial.expression["default"].predicted["lookup"] = np.ones((10, 5), np.float32)
    return add_niches(trial, rng.integers(0, 3, 7), rng.normal(size=(7, 2)), np.array(["a", "", "b", "a", "", "", "b"]))


def same(a, b):
    assert a.meta == b.meta
    assert list(a.ranks) == list(b.ranks)
    for key, ranks in a.ranks.items():
        np.testing.assert_array_equal(b.ranks[key], ranks)
    assert list(a.expression) == list(b.expression)
    for protocol, expression in a.expression.items():
        for name in ("genes", "target", "mean"):
            np.testing.assert_array_equal(getattr(b.expression[protocol], name), getattr(expression, name))
        assert b.expression[protocol].predicted.keys() == expression.predicted.keys()
        for head, predicted in expression.predicted.items():
            np.testing.assert_array_equal(b.expression[protocol].predicted[head], predicted)
    for name in ("slide", "block"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.niches is None) == (b.niches is None)


def test_a_trial_survives_its_file(trial, make_trial, tmp_path):
    trial.save(tmp_path / "deep" / "0.npz")
    read = Trial.read(tmp_path / "deep" / "0.npz")
    same(trial, read)
    assert read.ranks.keys() >= {RankKey("image→transcriptome", "all")}
    for name in ("slide", "xy", "reference"):
        np.testing.assert_array_equal(getattr(read.niches, name), getattr(trial.niches, name))
    np.testing.assert_array_equal(read.niches.labels["macro"], trial.niches.labels["macro"])
    bare = make_trial(scales=())
    bare.save(tmp_path / "1.npz")
    same(bare, Trial.read(tmp_path / "1.npz"))


def test_no_bar_in_any_name_of_the_file(trial, tmp_path):
    trial.save(tmp_path / "0.npz")
    with np.load(tmp_path / "0.npz") as file:
        assert {"meta", "slide", "block", "ranks/image→transcriptome/all", "predicted/lookup"} < set(file.files)
        assert not any("|" in name for name in file.files)


def arrays_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_damaged_and_foreign_files_are_named(trial, tmp_path):
    path = tmp_path / "0.npz"
    trial.save(path)
    whole, arrays = path.read_bytes(), arrays_of(path)
    with pytest.raises(SetupError, match=r"1.npz is damaged, or no trial.*FileNotFoundError"):
        Trial.read(tmp_path / "1.npz")
    meta = json.loads(str(arrays["meta"]))
    foreign = {
        "no file of numpy": b"a trial",
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "no meta": {name: values for name, values in arrays.items() if name != "meta"},
        "no trial": {"x": np.zeros(3)},
        "pickled": {**arrays, "slide": np.array([{}, {}], dtype=object)},
        "meta of another kind": {**arrays, "meta": np.array(json.dumps({**meta, "colour": 1}))},
        "too few ranks": {**arrays, "ranks/image→transcriptome/all": np.ones(4, int)},
        "a target of too few genes": {**arrays, "target/hest": np.ones((10, 4), np.float32)},
        "a prediction of too few tiles": {**arrays, "predicted/lookup": np.ones((9, 5), np.float32)},
        "no target": {name: values for name, values in arrays.items() if name != "target/hest"},
        "cells without place": {**arrays, "cells/slide": np.zeros(3, int)},
    }
    for content in foreign.values():
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.savez(path, **content)
        with pytest.raises(SetupError, match=r"0.npz is damaged, or no trial of a benchmark \(\w+: .*Remove it"):
            Trial.read(path)


def test_any_byte_may_be_wrong(trial, tmp_path, rng):
    """Whatever byte of the file changes, it reads as the same trial or ends in the typed error."""
    path = tmp_path / "0.npz"
    trial.save(path)
    whole = path.read_bytes()
    refused = []
    for place in rng.integers(0, len(whole), 150):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            again = Trial.read(path)
        except SetupError as error:
            refused.append(str(error))
        else:
            same(again, trial)
    assert len(refused) > 75
    assert all(str(path) in words for words in refused)


DATA = {"simulate": {"n_cells": 500}, "note": "n", "splits": ["blocks"]}


def test_settings_hold_what_decides_the_outcome(tmp_path):
    def settings(**change):
        config = read_config({"datasets": {"a": {**DATA, **change.pop("data", {})}}, "methods": ["random"], **change})
        return settings_of(config, config.datasets[0], config.methods[0])

    plain = settings(seeds=[0, 1])
    # Neither the note, the other splits nor, but where they take turns, the seeds.
    assert settings(seeds=[4], data={"note": "m", "splits": ["end", "random"]}) == plain
    assert settings(seeds=[0, 1], data={"splits": ["section"]})["seeds"] == [0, 1]
    for changed in ({"train": {"lr": 1}}, {"data": {"reference": "niche"}}, {"encoder": "resnet50"}, {"score": "val"}):
        assert settings(seeds=[0, 1], **changed) != plain


def test_a_trial_of_other_settings_is_refused(make_trial, tmp_path):
    trial = make_trial()
    trial.meta.settings.update({"train": {"lr": 1}, "score": "test"})
    trial.save(tmp_path / "0.npz")
    require_same(tmp_path / "0.npz", {"train": {"lr": 1}, "score": "test"})
    with pytest.raises(ExistsError, match=r"0.npz was run with other settings \(train\)"):
        require_same(tmp_path / "0.npz", {"train": {"lr": 2}, "score": "test"})


def test_a_file_for_each_trial(tmp_path):
    data = {"a": {**DATA, "splits": ["blocks", "end"]}, "b": DATA}
    config = read_config({"datasets": data, "methods": ["random", "gene-mean"], "seeds": [3, 4]})
    paths = {trial_path(tmp_path, trial) for trial in config.trials()}
    assert len(paths) == 12
    assert tmp_path / "trials" / "a" / "end" / "gene-mean" / "4.npz" in paths
