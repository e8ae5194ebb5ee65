import pytest

from sigmma_sc.benchmark import packaged, read_config
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.split import get_split

SMALL = {"datasets": {"a": {"simulate": {"n_cells": 500}}}, "methods": ["random"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metods": ["sigmma"]}, "has no key 'metods'. Did you mean 'methods'"),
        ({"methods": ["sigma"]}, "method='sigma' is not one of"),
        ({"methods": []}, "names no methods"),
        ({"methods": ["random", "random"]}, "methods names 'random' twice"),
        ({"methods": [{"method": "sigmma", "label": "a/b"}]}, "label='a/b' names a folder"),
        ({"methods": [{"method": "sigmma", "arguments": {"seed": 3}}]}, "hold 'seed'"),
        ({"methods": [{"method": "sigmma", "arguments": {"min_cells": 3}}]}, "hold 'min_cells'"),
        ({"datasets": {"a": {}}}, "must name one of store, simulate, hest, it names none"),
        ({"datasets": {"a": {"simulate": {}, "split": ["blocks"]}}}, "has no key 'split'. Did you mean 'splits'"),
        (
            {"datasets": {"a": {"simulate": {}, "splits": ["tiles"]}}},
            r"\['a'\] split='tiles' is not one of 'auto', 'sample'",
        ),
        ({"datasets": {"a": {"simulate": {}, "splits": ["none"]}}}, r"\['a'\] split='none' leaves no test tile"),
        ({"datasets": {"a": {"store": "${NO_SUCH_PLACE}/a.zarr"}}}, "NO_SUCH_PLACE.*is not set"),
        ({"datasets": {"a": {"simulate": {}, "window": [0, 0, 1, 1]}}}, "of a store"),
        ({"encoder": {"weights": "a.pt"}}, "has no name"),
        ({"niches": {"methods": ["sigmma"]}}, "niches.methods='sigmma' is not one of"),
        ({"seeds": []}, "names no seeds"),
        ({"seeds": [1, 1]}, "seeds names 1 twice"),
        ({"tune": {"lr": 1e-3}}, r"tune\['lr'\]=0.001 must be a list"),
        ({"tune": {"lr": []}}, "must be a list of values to try"),
        ({"tune": ["lr"]}, r"tune=.'lr',. must be a mapping"),
        ({"seeds": 3}, "seeds=3 must be a list"),
        ({"seeds": [0, "1"]}, r"seeds\[1\]='1' must be a whole number"),
        ({"seeds": [True]}, r"seeds\[0\]=True must be a whole number"),
        ({"seeds": [-1]}, "seeds=-1 must be a whole number, 0 or more"),
        ({"methods": "random"}, "methods='random' must be a list. Give a list"),
        ({"methods": [3]}, r"methods\[0\]=3 must be a text or a mapping"),
        ({"methods": None}, "methods=None must be a list"),
        ({"methods": [{"method": "sigmma", "train": 5}]}, "methods: train=5 must be a mapping"),
        ({"methods": [{"method": "sigmma", "arguments": ["edges"]}]}, "arguments=.* must be a mapping"),
        ({"methods": [{"label": "mine"}]}, "methods needs 'method'"),
        ({"datasets": ["a"]}, r"datasets=\['a'\] must be a mapping"),
        ({"datasets": {3: {"simulate": {}}}}, "A name in datasets=3 must be a text"),
        ({"datasets": {"a": "slide.zarr"}}, r"datasets\['a'\]='slide.zarr' must be a mapping"),
        ({"datasets": {"a": {"simulate": 500}}}, "simulate=500 must be a mapping or null"),
        ({"datasets": {"a": {"hest": "TENX95"}}}, "hest='TENX95' must be a mapping"),
        ({"datasets": {"a": {"simulate": {}, "splits": "blocks"}}}, "splits='blocks' must be a list"),
        ({"datasets": {"a": {"store": "a", "window": [0, 0, 1]}}}, "must have 4 values"),
        ({"datasets": {"a": {"simulate": {}, "published": {"SIGMMA": 0.5}}}}, r"published\['SIGMMA'\]=0.5 must be"),
        ({"datasets": {"a": {"simulate": {}, "note": 3}}}, "note=3 must be a text"),
        ({"title": ["a"]}, "title=.* must be a text"),
        ({"train": "fast"}, "train='fast' must be a mapping"),
        ({"niches": "sigmma"}, "niches='sigmma' must be a mapping"),
        ({"niches": {"methods": ["random"], "n_cells": 10.5}}, "n_cells=10.5 must be a whole number"),
        ({"encoder": 3}, "encoder=3 must be a text or a mapping or null"),
        ({"score": "train"}, "score='train' is not one of 'test', 'val'"),
        ({"score": "val", "tune": {"lr": [1e-3]}}, "score='val' with tune"),
        ({"datasets": {"a/b": {"simulate": {}}}}, "datasets='a/b' names a folder"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(SetupError, match=message):
        read_config(SMALL | change)


@pytest.mark.parametrize("text", [b"datasets: [", b"\xff\xfe\x00", b"a: !!python/object/apply:os.system [echo]"])
def test_a_file_that_is_no_yaml_is_named(tmp_path, text):
    (tmp_path / "c.yaml").write_bytes(text)
    with pytest.raises(SetupError, match="c.yaml is no YAML"):
        read_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("config", [3, None, [], b"c.yaml"])
def test_what_is_no_configuration_is_named(config):
    with pytest.raises(SetupError, match="config=.* must be a path"):
        read_config(config)


def test_paths_start_at_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", "stores")
    text = "datasets: {a: {store: '${PLACE}/a.zarr'}}\nmethods: [random]\nencoder: {name: resnet18, weights: w.pt}\n"
    (tmp_path / "c.yaml").write_text(text)
    config = read_config(tmp_path / "c.yaml")
    assert config.datasets[0].store == str(tmp_path / "stores" / "a.zarr")
    assert config.encoder == {"name": "resnet18", "weights": str(tmp_path / "w.pt")}
    assert config.seeds == (0, 1, 2, 3, 4)
    with pytest.raises(SetupError, match="does not exist, and is none of the configurations hest-idc"):
        read_config(tmp_path / "d.yaml")


def test_trials_and_budget():
    config = read_config(
        {
            "datasets": {"a": {"simulate": {}, "splits": ["blocks", "end"]}, "b": {"simulate": {}}},
            "methods": ["sigmma", "random"],
            "seeds": [3, 4],
            "tune": {"lr": [1e-3, 1e-2], "batch_size": [32, 64]},
        }
    )
    trials = config.trials()
    assert len(trials) == len({str(trial) for trial in trials}) == 12
    assert str(trials[-1]) == "b, blocks, random, seed 4"
    assert config.budget()[1] == {"lr": 1e-3, "batch_size": 64}
    assert len(config.budget()) == 4
    assert read_config(SMALL).budget() == [{}]


def test_the_papers_own_sets(monkeypatch):
    monkeypatch.setenv("HEST", "/data/hest")
    samples = {
        "hest-luad": ["TENX118", "TENX141"],
        "hest-paad": ["TENX116", "TENX126", "TENX140"],
        "hest-skcm": ["TENX115", "TENX117"],
        "hest-idc": ["TENX95", "TENX99", "NCBI783", "NCBI785"],
    }
    assert packaged() == sorted(samples)
    for name, ids in samples.items():
        config = read_config(name)
        (data,) = config.datasets
        assert data.hest == {"root": "/data/hest", "samples": ids}
        assert data.splits == ("donor",)
        labels = {m.label for m in config.methods}
        assert {"SIGMMA", "UNI", "CLIP", "PLIP", "BLEEP", "OmiCLIP"} <= labels
        assert set(data.published) <= labels
    idc = read_config("hest-idc").datasets[0]
    for turn in range(6):
        split = get_split("donor").in_turn(turn, idc.donors).resolve(idc.hest["samples"], seed=0)
        for part in (split.test, split.val):
            assert ("TENX95" in part) == ("TENX99" in part)  # one tumour
    # From the paper's tables.
    assert read_config("hest-luad").datasets[0].published["SIGMMA"]["I→T R@15 %"] == 0.826
    assert read_config("hest-skcm").datasets[0].published["BLEEP"]["PCC"] == "0.594 ± 0.232"
    assert read_config("hest-idc").datasets[0].published["CLIP"]["T→I R@5 %"] == 0.445
    assert read_config("hest-paad").datasets[0].published["OmiCLIP"]["MSE"] == "0.018 ± 0.016"
