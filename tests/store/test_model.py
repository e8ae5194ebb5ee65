import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from sigmma_sc import SIGMMA, NichePrototypes
from sigmma_sc.errors import EncoderError, ExistsError, MissingKeyError, NotTrainedError, SetupError, WriteError
from sigmma_sc.store.model import _from_elsewhere


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


def test_a_model_of_the_format_before_keeps_its_distances(saved, tiny, tmp_path):
    path, _ = saved
    assert SIGMMA.load(path, tiny).data.node_features.even_lattices
    shutil.copytree(path, tmp_path / "old")

    def age(described):
        described["format"] = 10
        del described["data"]["even_lattices"]

    edit(tmp_path / "old", age)
    old = SIGMMA.load(tmp_path / "old", tiny)
    assert not old.data.node_features.even_lattices
    old.save(tmp_path / "again")
    assert not SIGMMA.load(tmp_path / "again", tiny).data.node_features.even_lattices


def test_history_comes_back_to_the_last_bit(saved, tiny):
    path, model = saved
    loaded = SIGMMA.load(path, tiny)
    for name, frame in model.history.items():
        assert frame.equals(loaded.history[name])
        assert loaded.history[name].index.name == "epoch"


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


def test_weights_of_another_model_of_the_same_shape_are_not_taken(copied, saved, tiny):
    other = SIGMMA.load(saved[0], tiny)
    with torch.no_grad():
        next(other.module.image_heads.parameters()).add_(1)
    other.save(copied.parent / "other")
    shutil.copy(copied.parent / "other" / "weights.safetensors", copied / "weights.safetensors")
    with pytest.raises(SetupError, match=r"weights.safetensors is not the file that model.json describes"):
        SIGMMA.load(copied, tiny)


def nan_in(prefix):
    """Put NaN into a tensor, and change the checksum with it."""

    def harm(folder):
        path = folder / "weights.safetensors"
        tensors = load_file(path)
        name = min(name for name in tensors if name.startswith(prefix) and tensors[name].is_floating_point())
        tensors[name].view(-1)[0] = float("nan")
        save_file(tensors, path)
        edit(folder, lambda d: d.update(checksum=hashlib.sha256(path.read_bytes()).hexdigest()))

    return harm


def edited(change):
    return lambda folder: edit(folder, change)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (nan_in("towers."), r"tensor 'towers\..*' in weights.safetensors is not finite"),
        (nan_in("data."), r"tensor 'data\..*' in weights.safetensors is not finite"),
        (nan_in("reference."), r"tensor 'reference\..*' in weights.safetensors is not finite"),
        (edited(lambda d: d.pop("data")), "model.json lacks 'data'"),
        (edited(lambda d: d.update(own=1)), "model.json has an unknown key 'own'"),
        (edited(lambda d: d["data"].update(roles={"cell_circles": ["exam"]})), "'exam' is not one of 'train'"),
        (edited(lambda d: d["data"].update(split=3)), r"\['split'\]=3 must be a text or a mapping or null"),
        (edited(lambda d: d["encoder"].pop("dim")), r"\['encoder'\] lacks 'dim'"),
        (edited(lambda d: d.update(reference={"genes": "a", "library": 1})), "='a' must be a list"),
        (edited(lambda d: d["config"].update(cache_dir="/")), "'cache_dir' in model.json is no option"),
        (edited(lambda d: d["extra"].update(sdata=None)), "'sdata' in model.json is no option"),
        (lambda folder: (folder / "model.json").write_text("[" * 100_000), "damaged"),
    ],
)
def test_a_description_that_does_not_hold_is_named(copied, tiny, harm, words):
    harm(copied)
    with pytest.raises(SetupError, match=words):
        SIGMMA.load(copied, tiny)


def test_roles_of_other_tiles_are_refused(copied, tiny):
    edit(copied, lambda d: d["data"]["roles"]["cell_circles"].pop())
    model = SIGMMA.load(copied, tiny)
    with pytest.raises(SetupError, match=r"'cell_circles' has \d+ tiles, and had \d+ when the model was trained"):
        model.get_tile_representation()


def test_a_place_that_cannot_be_written_is_told_and_the_model_stays(copied, saved, monkeypatch):
    def full(*arguments, **options):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    _, model = saved
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(WriteError, match="cannot be written .*No space left.*The trained model is still in memory"):
            model.save(copied, overwrite=True)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    monkeypatch.setattr(SIGMMA, "_reference_from", lambda *_: pytest.fail("computed"))
    (copied.parent / "file").write_text("x")
    with pytest.raises(WriteError, match="file/model cannot be written"):
        model.save(copied.parent / "file" / "model")


def test_half_a_model_is_no_model(copied, tiny):
    (copied / "weights.safetensors").unlink()
    with pytest.raises(MissingKeyError, match="weights.safetensors is missing"):
        SIGMMA.load(copied, tiny)


def test_niches_are_saved_with_the_model_and_gone_after_training_on(saved, tiny, tmp_path):
    model = SIGMMA.load(saved[0], tiny)
    assert model.niches is None
    x = np.random.default_rng(0).normal(size=(300, 8))
    labels = np.repeat(["a", "b", "c"], 100)
    niches = NichePrototypes.fit({"micro": x, "meso": x + 1}, {"micro": labels, "meso": labels}, quantile=0.9)
    model.niches = niches
    model.save(tmp_path / "model")
    again = SIGMMA.load(tmp_path / "model", tiny)
    assert again.niches.quantile == 0.9
    for scale, own in niches.scales.items():
        other = again.niches.scales[scale]
        assert other.names == own.names
        for part in ("centres", "niche", "limits"):
            assert np.array_equal(getattr(other, part), getattr(own, part))
        assert other.centres.dtype == np.float32
    with pytest.raises(SetupError, match="niches is a dict"):
        again.niches = niches.to_dict()
    narrow = NichePrototypes.fit({"micro": x[:, :5]}, {"micro": labels})
    with pytest.raises(
        SetupError, match="of scale 'micro' and width 5, the model embeds 'micro', 'meso', 'macro' in width 8"
    ):
        again.niches = narrow
    assert list(again.niches.scales) == ["micro", "meso"]
    again.train(max_epochs=1, split="none", batch_size=32, enable_progress_bar=False)
    assert again.niches is None
    with pytest.raises(NotTrainedError):
        SIGMMA(tiny).niches = niches
