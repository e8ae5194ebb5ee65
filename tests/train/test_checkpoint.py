import copy
import errno
import math
import os
import pickle
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError, WriteError
from sigmma_sc.train.checkpoint import FILE, OURS, SafetensorsIO, find_checkpoint, read_checkpoint

OPTIONS = {"max_epochs": 5, "batch_size": 16, "split": "blocks", "lr": 3e-3, "enable_progress_bar": False}


class Killed(Exception):
    pass


class Kill(pl.Callback):
    """Ends training in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == self.epoch:
            raise Killed


class Steps(pl.Callback):
    """Epochs of the steps taken, and whether dropout was on."""

    def __init__(self):
        self.epochs, self.modes = [], set()

    def on_train_batch_start(self, trainer, plan, *_):
        self.epochs.append(trainer.current_epoch)
        self.modes.add(plan.module.training)


def model_of(tissue, encoder, **options):
    return SIGMMA(tissue, encoder(), **{"n_latent": 8, **options})


def kill_and_resume(tiny, encoder, folder, epochs, **options):
    for epoch in epochs:
        with pytest.raises(Killed):
            model_of(tiny, encoder).train(**OPTIONS, **options, checkpoint_dir=folder, callbacks=[Kill(epoch)])
    model, steps = model_of(tiny, encoder), Steps()
    model.train(**OPTIONS, **options, checkpoint_dir=folder, callbacks=[steps])
    return model, steps


def assert_same(a, b):
    assert list(a.history) == list(b.history)
    for name in a.history:
        pd.testing.assert_frame_equal(a.history[name], b.history[name], check_exact=True)
    for name, value in a.module.state_dict().items():
        assert torch.equal(value, b.module.state_dict()[name]), name
    assert a.data.roles.split == b.data.roles.split
    assert {k: v.tolist() for k, v in a.data.roles.by_slide.items()} == {
        k: v.tolist() for k, v in b.data.roles.by_slide.items()
    }


def test_killed_twice_is_as_if_never(tiny, encoder, tmp_path):
    whole = model_of(tiny, encoder)
    whole.train(**OPTIONS)
    torch.manual_seed(99)  # the global state must not matter
    resumed, steps = kill_and_resume(tiny, encoder, tmp_path, [0, 3])
    assert sorted(set(steps.epochs)) == [3, 4]
    assert_same(whole, resumed)
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
    # A finished run does no more than return, also from a copy of its file elsewhere.
    for where in ({"ckpt_path": tmp_path}, {"ckpt_path": tmp_path / FILE}):
        again, steps = model_of(tiny, encoder), Steps()
        again.train(**OPTIONS, **where, callbacks=[steps])
        assert steps.epochs == []
        assert_same(whole, again)
    np.testing.assert_array_equal(again.get_latent_representation(), whole.get_latent_representation())


def test_early_stopping_and_the_best_weights_survive(tiny, encoder, tmp_path):
    # No loss falls by 100: two epochs after the first one are without progress, whatever the losses are.
    early = {"early_stopping": True, "early_stopping_patience": 2, "early_stopping_min_delta": 100.0}
    whole = model_of(tiny, encoder)
    whole.train(**OPTIONS, **early)
    n = len(whole.history["train_loss_epoch"])
    assert n == 3
    resumed, _ = kill_and_resume(tiny, encoder, tmp_path, [2], **early)
    assert_same(whole, resumed)
    # Killed after the last epoch: what early stopping had ended is not taken up again.
    again, steps = model_of(tiny, encoder), Steps()
    again.train(**OPTIONS, **early, checkpoint_dir=tmp_path, callbacks=[steps])
    assert steps.epochs == []
    assert_same(whole, again)


def test_another_run_is_refused_and_what_differs_is_named(tiny, encoder, tmp_path):
    with pytest.raises(Killed):
        model_of(tiny, encoder).train(**OPTIONS, checkpoint_dir=tmp_path, callbacks=[Kill(1)])
    before = (tmp_path / FILE).read_bytes()
    other = simulate_tissue(n_cells=1400, seed=1)
    SIGMMA.setup_spatialdata(other, tile_size=64)
    for model, options, words in [
        (model_of(tiny, encoder, seed=1), {}, r"differs in seed \(0 there, 1 here\)\."),
        (model_of(tiny, encoder, n_latent=9, dropout=0.2), {}, r"dropout \(0.1 there, 0.2 here\), n_latent"),
        (
            model_of(tiny, lambda: encoder(gain=2.0)),
            {},
            "differs in the image encoder's weights, the image encoder's output",
        ),
        (model_of(other, encoder), {}, "differs in cells of cell_circles .* image of cell_circles"),
        (model_of(tiny, encoder), {"max_epochs": 6, "lr": 1e-4}, r"lr \(0.003 there, 0.0001 here\), max_epochs"),
        (model_of(tiny, encoder), {"gradient_clip_val": 1.0}, r"gradient_clip_val \(None there, 1.0 here\)"),
    ]:
        with pytest.raises(SetupError, match=words):
            model.train(**{**OPTIONS, **options}, checkpoint_dir=tmp_path)
        assert model.data.roles.split is None
    assert (tmp_path / FILE).read_bytes() == before


def test_training_on_has_a_folder_of_its_own_and_resumes_too(tiny, encoder, tmp_path):
    models = [model_of(tiny, encoder) for _ in range(2)]
    for model in models:
        model.train(**OPTIONS, checkpoint_dir=tmp_path / "first")
    with pytest.raises(SetupError, match=r"epochs trained before \(0 there, 5 here\)"):
        models[0].train(**OPTIONS, checkpoint_dir=tmp_path / "first")
    steps = Steps()
    models[0].train(**OPTIONS, callbacks=[steps])
    assert steps.modes == {True}
    with pytest.raises(Killed):
        models[1].train(**OPTIONS, checkpoint_dir=tmp_path / "second", callbacks=[Kill(2)])
    models[1] = model_of(tiny, encoder)
    models[1].train(**OPTIONS, checkpoint_dir=tmp_path / "first")
    models[1].train(**OPTIONS, checkpoint_dir=tmp_path / "second")
    assert models[1].history["train_loss_epoch"].index.tolist() == list(range(10))
    assert_same(*models)


def test_paths_that_cannot_be_meant(tiny, encoder, tmp_path):
    with pytest.raises(MissingKeyError, match="nowhere"):
        model_of(tiny, encoder).train(ckpt_path=tmp_path / "nowhere")
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).write_bytes(b"")
    with pytest.raises(ExistsError, match="Choose another checkpoint_dir"):
        model_of(tiny, encoder).train(checkpoint_dir=tmp_path / "a", ckpt_path=tmp_path / "b")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_a_checkpoint_executes_nothing(tiny, encoder, tmp_path):
    for write in (
        lambda p: p.write_bytes(pickle.dumps(Bomb(tmp_path / "x"))),
        lambda p: torch.save(Bomb(tmp_path / "x"), p),
    ):
        write(tmp_path / FILE)
        with pytest.raises(SetupError, match="no checkpoint of sigmma-sc"):
            model_of(tiny, encoder).train(**OPTIONS, checkpoint_dir=tmp_path)
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def written(tiny, encoder, tmp_path_factory):
    """A checkpoint after two of five epochs, as bytes and as a dict."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.raises(Killed):
        model_of(tiny, encoder).train(**OPTIONS, checkpoint_dir=folder, callbacks=[Kill(2)])
    return (folder / FILE).read_bytes(), read_checkpoint(folder / FILE)


def without(*keys):
    def change(checkpoint):
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        del checkpoint[keys[-1]]

    return change


def with_value(value, *keys):
    def change(checkpoint):
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = value

    return change


def first_weight(change):
    def of_state(checkpoint):
        state = checkpoint["state_dict"]
        name = min(name for name in state if state[name].ndim == 2)
        state[name] = change(state[name])

    return of_state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without(OURS), "sigmma=None must be a mapping"),
        (without("state_dict"), "state_dict=None must be a mapping"),
        (with_value("1", "epoch"), "epoch='1' must be a whole number"),
        (with_value(3, "loops"), "loops=3 must be a mapping"),
        (without(OURS, "stopped"), r"sigmma lacks 'stopped'"),
        (with_value(1, OURS, "stopped"), r"sigmma\['stopped'\]=1 must be true or false"),
        (with_value("mine", OURS, "own"), "sigmma has an unknown key 'own'"),
        (with_value({"cell_circles": ["train", "exam"]}, OURS, "data", "roles"), "'exam' is not one of 'train', 'val'"),
        (with_value([1.0], OURS, "history", "train_loss_epoch"), r"\['train_loss_epoch'\]=\[1.0\] must be a mapping"),
        (first_weight(lambda weight: weight[:-1]), r"does not fit the model: .* has shape \(\d+, \d+\) there"),
        (first_weight(lambda weight: weight * math.nan), "is not finite"),
    ],
)
def test_a_checkpoint_of_another_form_is_refused_by_what_is_wrong(tiny, encoder, tmp_path, written, change, words):
    checkpoint = copy.deepcopy(written[1])
    change(checkpoint)
    SafetensorsIO().save_checkpoint(checkpoint, tmp_path / FILE)
    with pytest.raises(SetupError, match=words):
        model_of(tiny, encoder).train(**OPTIONS, checkpoint_dir=tmp_path)


def test_a_checkpoint_of_the_format_before_keeps_its_distances(tmp_path, written, monkeypatch):
    checkpoint = copy.deepcopy(written[1])
    assert checkpoint[OURS]["data"].pop("even_lattices")
    monkeypatch.setattr("sigmma_sc.train.checkpoint.FORMAT", 5)
    SafetensorsIO().save_checkpoint(checkpoint, tmp_path / FILE)
    assert read_checkpoint(tmp_path / FILE)[OURS]["data"]["even_lattices"] is False


@pytest.mark.parametrize("place", [20, -3, -3000])
def test_a_flipped_bit_of_a_checkpoint_is_told(tiny, encoder, tmp_path, written, place):
    raw = bytearray(written[0])
    raw[place] ^= 4
    (tmp_path / FILE).write_bytes(raw)
    with pytest.raises(SetupError, match="damaged"):
        model_of(tiny, encoder).train(**OPTIONS, checkpoint_dir=tmp_path)


def test_files_of_the_user_beside_a_checkpoint_stay(tiny, encoder, tmp_path):
    """However old they are; only scratch of a killed writer of the checkpoint goes."""
    kept = [tmp_path / name for name in ("a.part", ".a-00000000.part", f".{FILE}-mine.part", f".{FILE}-11111111.part")]
    for path in kept:
        path.write_text("ten years")
        os.utime(path, (0, 0))
    (tmp_path / f".{FILE}-00000000.part" / "new").mkdir(parents=True)
    find_checkpoint(tmp_path, None)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_encoded(tiny, encoder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    own = encoder()
    monkeypatch.setattr("sigmma_sc._files.tempfile.TemporaryFile", full)
    monkeypatch.setattr(own, "encode", lambda images: pytest.fail("encoded"))
    model = SIGMMA(tiny, own, n_latent=8)
    with pytest.raises(WriteError, match="last.safetensors cannot be written .*No space left"):
        model.train(**OPTIONS, checkpoint_dir=tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="file/last.safetensors cannot be written"):
        model.train(**OPTIONS, checkpoint_dir=tmp_path / "file")


def test_nested_values_come_back_as_they_were(tmp_path):
    state = {
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}}, "lr": 0.1}],
        "best": -math.inf,
        "epoch": 3,
        "flags": [True, None, "words"],
        "half": torch.arange(3).half(),
        "array": np.arange(4.0).reshape(2, 2).T,
    }
    SafetensorsIO().save_checkpoint(state, tmp_path / FILE)
    again = SafetensorsIO().load_checkpoint(tmp_path / FILE)
    assert torch.equal(again["half"], state["half"])
    assert again["half"].dtype == torch.float16
    np.testing.assert_array_equal(again["array"], state["array"])  # a tensor, of any memory order
    moments = again["optimizer_states"][0]["state"][0]
    assert moments.keys() == {"step", "exp_avg"}
    assert torch.equal(moments["exp_avg"], state["optimizer_states"][0]["state"][0]["exp_avg"])
    assert (again["best"], again["epoch"], again["flags"]) == (-math.inf, 3, [True, None, "words"])
    with pytest.raises(SetupError, match="cannot hold"):
        SafetensorsIO().save_checkpoint({"callbacks": {"mine": object()}}, tmp_path / FILE)
    assert torch.equal(read_checkpoint(tmp_path / FILE)["half"], state["half"])
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
