import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
import torch

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import EncoderError, ExistsError, MissingKeyError, SetupError
from sigmma_sc.store.model import _from_elsewhere


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    model = SIGMMA(tiny, n_latent=8)
    model.train(max_epochs=1, split="none", batch_size=32, enable_progress_bar=False)
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save(path)
    return path, model


@pytest.fixture
def copied(saved, tmp_path):
    return Path(shutil.copytree(saved[0], tmp_path / "model"))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def edit(folder, change):
    described = json.loads((folder / "model.json").read_text())
    change(described)
    (folder / "model.json").write_text(json.dumps(described))


def part_of(tiny, table, **setup):
    other = sd.SpatialData(
        images={"he_image": tiny["he_image"]}, shapes={"cell_circles": tiny["cell_circles"]}, tables={"table": table}
    )
    SIGMMA.setup_spatialdata(other, **{"tile_size": 64, **setup})
    return other


def test_history_comes_back_to_the_last_bit(saved, tiny):
    path, model = saved
    loaded = SIGMMA.load(path, tiny)
    for name, frame in model.history.items():
        assert frame.equals(loaded.history[name])
        assert loaded.history[name].index.name == "epoch"


def test_everything_that_differs_is_named(saved, tiny):
    path, model = saved
    fewer = tiny["table"][:, 3:].copy()
    other = part_of(tiny, fewer, tile_size=128, grids=(2, 1))
    words = r"tile_size is 128\S* here and 64\S* in the model; grids is \(2, 1\) .*; 3 of 120 genes are missing, e.g. "
    with pytest.raises(SetupError, match=words):
        SIGMMA.load(path, other)
    with pytest.raises(SetupError, match=words):
        model.get_latent_representation(other)


def test_features_of_another_kind_or_width_are_named(saved, tiny, encoder, tmp_path):
    path, model = saved
    table = tiny["table"].copy()
    table.obsm["five"], table.obsm["six"] = np.ones((table.n_obs, 5), "f4"), np.ones((table.n_obs, 6), "f4")
    five, six = (part_of(tiny, table.copy(), features_key=key) for key in ("five", "six"))
    table.obsm["five"] = table.obsm["six"]
    wide = part_of(tiny, table, features_key="five")
    with pytest.raises(SetupError, match="features_key is 'five' here and None in the model"):
        SIGMMA.load(path, five)
    mine = SIGMMA(five, encoder(), n_latent=8)
    mine.train(max_epochs=1, split="none", batch_size=32, enable_progress_bar=False)
    mine.save(tmp_path / "mine")
    with pytest.raises(SetupError, match=r"obsm\['five'\] has 6 columns here and 5 in the model"):
        SIGMMA.load(tmp_path / "mine", wide, encoder())
    with pytest.raises(SetupError, match="features_key is 'six' here and 'five' in the model"):
        SIGMMA.load(tmp_path / "mine", six, encoder())
    with pytest.raises(SetupError, match="features_key is None here and 'five' in the model"):
        mine.get_latent_representation(tiny)
    # Images need no cells to fit, and are embedded all the same.
    np.testing.assert_array_equal(mine.get_tile_representation(six).X, mine.get_tile_representation().X)
    assert SIGMMA.load(tmp_path / "mine", five, encoder()).module.cell_tower.standardise.mean.shape == (
        6,
    )  # and how far the nearest cells are


def test_what_lies_beside_a_model_is_not_lost(copied, saved):
    _, model = saved
    (copied / "last.safetensors").write_text("a checkpoint")
    with pytest.raises(ExistsError, match=r"holds more than a saved model \(last.safetensors\)"):
        model.save(copied, overwrite=True)
    assert (copied / "last.safetensors").read_text() == "a checkpoint"
    (copied / "last.safetensors").unlink()
    model.save(copied, overwrite=True)


def test_an_encoder_whose_weights_lie_elsewhere_is_asked_for_by_name(copied, tiny):
    spec = {"kind": "registry", "name": "uni", "weights": "/gone/uni.bin"}
    edit(copied, lambda described: described["encoder"].update(name="uni", spec=spec))
    with pytest.raises(EncoderError, match=r"gone.*image_encoder=sg.get_encoder\('uni', weights=…\)"):
        SIGMMA.load(copied, tiny)


def test_a_pickle_in_place_of_weights_executes_nothing(copied, tiny, tmp_path):
    for write in (
        lambda p: p.write_bytes(pickle.dumps(Bomb(tmp_path / "x"))),
        lambda p: torch.save(Bomb(tmp_path / "x"), p),
    ):
        write(copied / "weights.safetensors")
        with pytest.raises(SetupError, match="damaged, or was not written by"):
            SIGMMA.load(copied, tiny)
    assert not (tmp_path / "x").exists()


def test_a_description_that_names_a_class_or_a_file_executes_nothing(copied, tiny, tmp_path):
    torch.save(Bomb(tmp_path / "x"), tmp_path / "bomb.pth")
    timm = {"kind": "timm", "arch": "resnet18", "weights": None, "pretrained": False}
    for spec in [
        {**timm, "checkpoint_path": str(tmp_path / "bomb.pth")},
        {**timm, "pretrained": True, "pretrained_cfg": {"file": str(tmp_path / "bomb.pth")}},
        {**timm, "pretrained": True, "pretrained_cfg_overlay": {"url": "http://localhost/bomb.pth"}},
        {**timm, "weights": str(tmp_path / "bomb.pth")},
        {**timm, "arch": f"local-dir:{tmp_path}"},
        {**timm, "arch": "hf-hub:someone/something", "pretrained": True},
        {**timm, "arch": "os.system"},
    ]:
        edit(copied, lambda d, spec=spec: d["encoder"].update(spec=spec))
        with pytest.raises(EncoderError):
            SIGMMA.load(copied, tiny)
    assert not (tmp_path / "x").exists()


def test_encoders_that_load_by_themselves_are_known_by_name_or_by_plain_tensors():
    assert not _from_elsewhere({"kind": "registry", "name": "uni", "weights": None})
    assert not _from_elsewhere({"kind": "timm", "arch": "resnet18", "weights": "a.safetensors", "pad_type": "same"})
    assert _from_elsewhere({"kind": "timm", "arch": "hf-hub:someone/something", "pretrained": True})


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "model.json").write_text('{"format": '), "damaged"),
        (lambda f: (f / "model.json").write_bytes(b"\x80\x04\x95"), "damaged"),
        (lambda f: (f / "model.json").write_text("[]"), "has format None"),
        (lambda f: edit(f, lambda d: d.update(format=99)), "has format 99"),
        (lambda f: os.truncate(f / "weights.safetensors", 5000), "damaged"),
    ],
)
def test_damage_is_told(copied, tiny, harm, words):
    harm(copied)
    with pytest.raises(SetupError, match=words):
        SIGMMA.load(copied, tiny)


def test_half_a_model_is_no_model(copied, tiny):
    (copied / "weights.safetensors").unlink()
    with pytest.raises(MissingKeyError, match="weights.safetensors is missing"):
        SIGMMA.load(copied, tiny)


def test_an_object_never_set_up_takes_the_setup_of_the_model(saved):
    sdata = simulate_tissue(n_cells=1200, seed=3)
    assert SIGMMA.load(saved[0], sdata).setup.tile_size == 64
