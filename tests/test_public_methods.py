"""Every public method of SIGMMA before training, after loading and on H&E alone; what it asks of an object, and what it leaves.

A new method fails here until it has a row in :data:`ROWS`.
"""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import xarray as xr

from sigmma_sc import SIGMMA, ImageEncoder
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import NotTrainedError, SetupError
from sigmma_sc.store import hub
from sigmma_sc.tissue import frame
from sigmma_sc.tissue import setup as resolving
from sigmma_sc.tissue.frame import image_levels

QUIET = {"max_epochs": 1, "batch_size": 32, "stride": 64.0, "accelerator": "cpu", "enable_progress_bar": False}


@dataclass(frozen=True)
class Row:
    """A method called on a model and, where it takes one, on another object.

    ``untrained`` and ``alone`` are the errors before training and on H&E alone, None for a value. ``own`` tells whether the
    model's object is needed beside another one.
    """

    call: Callable
    untrained: type[Exception] | None = NotTrainedError
    alone: type[Exception] | None = None
    own: bool = False


def setup_again(model, sdata, folder):
    sdata = copied(sdata or model.sdata)
    SIGMMA.setup_spatialdata(sdata, **model.sdata.attrs["sigmma"])
    return sdata.attrs["sigmma"]


def written(model, sdata, folder):
    sdata = copied(model.sdata) if sdata is None else sdata
    model.write_embeddings(sdata, overwrite=True)
    return dict(sdata.tables.items())


def saved(model, sdata, folder):
    model.save(folder / "model", overwrite=True)
    return sorted(path.name for path in (folder / "model").iterdir())


def loaded(model, sdata, folder):
    if not (folder / "model").exists():
        model.save(folder / "model")
    return repr(SIGMMA.load(folder / "model", sdata or model.sdata, model.image_encoder))


def pushed(model, sdata, folder):
    """What would be uploaded."""
    with mock.patch.object(hub, "require_pushable"), mock.patch.object(hub, "push_model") as push:
        model.push_to_hub("lab/pancreas")
    _, saved, card = push.call_args.args
    return saved.towers, card


def trained_on(model, sdata, folder):
    model.train(**QUIET)
    return model.history


def embedded(model, sdata, folder):
    (slide,) = model.embedder.slides(model.resolve())
    return {"covered": slide.covered, "cells": slide.cells, "image": slide.image}


def split_embedded(model, sdata, folder):
    return [(slide.transcriptome, tiles) for slide, tiles in model.embed_split(sdata)]


def moved(model, sdata, folder):
    model.to_device("cpu")
    return model.device.type


def attention(model, sdata, folder):
    slide = "cell_circles" if (sdata or model.sdata).tables else "he_image"
    return model.get_attention([f"{slide}_40", f"{slide}_41"], sdata)


def indexed(model, sdata, folder):
    index = model.build_index(folder / "index", sdata, overwrite=True)
    return {"obs": index.obs.astype({"slide": str, "split": str}), "embeddings": index.embeddings}


ROWS = {
    "setup_spatialdata": Row(setup_again, None),
    "data": Row(
        lambda model, sdata, folder: model.data.state() if model.is_trained else model.data.roles.state(), None
    ),
    "module": Row(lambda model, sdata, folder: model.module and model.module.trained_state(), None),
    "trainer": Row(lambda model, sdata, folder: isinstance(model.trainer, object), None),
    "is_trained": Row(lambda model, sdata, folder: model.is_trained, None),
    "epochs_trained": Row(lambda model, sdata, folder: model.epochs_trained, None),
    "embedder": Row(embedded),
    "niches": Row(lambda model, sdata, folder: {} if model.niches is None else model.niches.to_dict(), None),
    "history": Row(lambda model, sdata, folder: model.history, None),
    "device": Row(lambda model, sdata, folder: model.device.type),
    "to_device": Row(moved),
    "resolve": Row(lambda model, sdata, folder: [slide.xy for slide in model.resolve(sdata)], None),
    "get_latent_representation": Row(
        lambda model, sdata, folder: model.get_latent_representation(sdata, "all"), alone=SetupError
    ),
    "get_cell_image_representation": Row(
        lambda model, sdata, folder: model.get_cell_image_representation(sdata, "macro"), alone=SetupError
    ),
    "get_tile_representation": Row(lambda model, sdata, folder: model.get_tile_representation(sdata)),
    "build_index": Row(indexed, own=True),
    "get_attention": Row(attention),
    "embed_split": Row(split_embedded, alone=SetupError),
    "evaluate_retrieval": Row(lambda model, sdata, folder: model.evaluate_retrieval(sdata), alone=SetupError),
    "evaluate_expression": Row(
        lambda model, sdata, folder: model.evaluate_expression(sdata), alone=SetupError, own=True
    ),
    "get_gene_reliability": Row(lambda model, sdata, folder: model.get_gene_reliability(), own=True),
    "predict_expression": Row(lambda model, sdata, folder: model.predict_expression(sdata), own=True),
    "write_embeddings": Row(written),
    "save": Row(saved),
    "push_to_hub": Row(pushed),
    "load": Row(loaded),
    "train": Row(trained_on, None, SetupError),
}
CHANGES = {"setup_spatialdata", "write_embeddings", "load"}
"""Methods that write into the object that they get."""

METHODS = {name: member for name, member in vars(SIGMMA).items() if not name.startswith("_")}
GIVEN = [name for name, member in METHODS.items() if not isinstance(member, property)]
GIVEN = [name for name in GIVEN if "sdata" in signature(getattr(SIGMMA, name)).parameters]
GETTERS = [name for name in GIVEN if name not in CHANGES]


def copied(sdata):
    """The same elements, with a table and attributes of its own."""
    tables = {name: table.copy() for name, table in sdata.tables.items()}
    return sd.SpatialData(
        images=dict(sdata.images.items()),
        shapes=dict(sdata.shapes.items()),
        tables=tables,
        attrs=deepcopy(dict(sdata.attrs)),
    )


def plain(value):
    """Dicts, lists and arrays that numpy compares."""
    if isinstance(value, ad.AnnData):
        parts = {"X": value.X, "obs": value.obs, "var": value.var, "obsm": dict(value.obsm)}
        return {name: plain(part) for name, part in parts.items()}
    if isinstance(value, pd.DataFrame):
        columns = {str(name): np.asarray(value[name]) for name in value if name != "geometry"}
        return {**columns, "index": np.asarray(value.index)}
    if isinstance(value, xr.Dataset):
        return {str(name): value[name].to_numpy() for name in value.variables}
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if hasattr(value, "toarray"):
        return value.toarray()
    return value.numpy() if hasattr(value, "numpy") else value


@pytest.fixture(scope="module")
def vit():
    return ImageEncoder.from_timm("vit_tiny_patch16_224", img_size=32, depth=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of the saved model and of patch features, so that each image is encoded once."""
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def untrained(tiny, vit, folder):
    return SIGMMA(copied(tiny), vit, n_latent=8, cache_dir=folder / "features")


@pytest.fixture(scope="module")
def model(tiny, vit, folder):
    """Trained for an epoch and saved; tests must not change it."""
    model = SIGMMA(copied(tiny), vit, n_latent=8, cache_dir=folder / "features")
    model.train(split="blocks", **QUIET)
    model.save(folder / "model")
    return model


@pytest.fixture(scope="module")
def load(model, folder, vit):
    """Loads the model on an object."""
    return lambda sdata: SIGMMA.load(folder / "model", sdata, vit, cache_dir=folder / "features")


@pytest.fixture(scope="module")
def again(load, tiny):
    return load(copied(tiny))


@pytest.fixture(scope="module")
def alone(load, tiny):
    """The model on an image without cells."""
    sdata = sd.SpatialData(images={"he_image": tiny["he_image"]})
    SIGMMA.setup_spatialdata(sdata, table_key=None, microns_per_pixel=0.5, tile_size=64)
    return load(sdata)


@pytest.fixture(scope="module")
def other():
    """Tissue that was never set up; tests must not change it."""
    return simulate_tissue(n_cells=700, seed=1)


@pytest.fixture
def asked(monkeypatch):
    """How often objects are resolved, the cells of a slide located, and the tiles that cover it cut."""
    counts = {"resolve": Counter(), "locate": Counter(), "cover": Counter()}

    def count(kind, function, key):
        def counted(*arguments):
            counts[kind][key(*arguments)] += 1
            return function(*arguments)

        return counted

    resolve = count("resolve", resolving.resolve_slides, lambda sdata, *_: id(sdata))
    locate = count("locate", resolving.locate_cells, lambda sdata, table, region, *_: (id(sdata), region))
    cover = count("cover", frame.covering_tiles, lambda xy, *_: xy.tobytes())
    monkeypatch.setattr(resolving, "resolve_slides", resolve)
    monkeypatch.setattr(resolving, "locate_cells", locate)
    monkeypatch.setattr(frame, "covering_tiles", cover)
    return counts


def test_every_public_method_has_a_row():
    assert set(ROWS) == set(METHODS)


@pytest.mark.parametrize("name", [name for name in ROWS if name != "train"])
def test_before_training(untrained, tmp_path, name):
    row = ROWS[name]
    if row.untrained is None:
        row.call(untrained, None, tmp_path)
    else:
        with pytest.raises(row.untrained, match=r"Call model\.train\(\)"):
            row.call(untrained, None, tmp_path)
    assert not untrained.is_trained


@pytest.mark.parametrize("name", [name for name in ROWS if name != "train"])
def test_after_loading_as_before_saving_and_an_object_is_resolved_once(model, again, tmp_path, asked, name):
    if name == "load":
        model.save(tmp_path / "model")
    first = plain(ROWS[name].call(model, None, tmp_path))
    again._reference = None  # as after training, so that it is built
    for counts in asked.values():
        counts.clear()
    second = plain(ROWS[name].call(again, None, tmp_path))
    np.testing.assert_equal(second, first)
    no_object = isinstance(METHODS[name], property) and name != "embedder"
    expected = [] if no_object or name == "to_device" else [1]
    assert list(asked["resolve"].values()) == list(asked["locate"].values()) == expected
    assert list(asked["cover"].values()) in ([], expected)


def test_training_goes_on_after_loading(load, tiny, tmp_path, asked):
    models = [load(copied(tiny)) for _ in range(2)]
    for counts in asked.values():
        counts.clear()
    first, second = (plain(trained_on(one, None, tmp_path)) for one in models)
    assert len(first["train_loss_epoch"]["train_loss_epoch"]) == 2
    np.testing.assert_equal(second, first)
    assert asked["resolve"] == Counter(id(one.sdata) for one in models)
    assert list(asked["cover"].values()) == [2]  # of the same cells, once for each model


@pytest.mark.parametrize("name", ROWS)
def test_on_an_image_alone(alone, tmp_path, name):
    row = ROWS[name]
    if row.alone is None:
        assert row.call(alone, None, tmp_path) is not None
        return
    with pytest.raises(row.alone, match="cells"):
        row.call(alone, None, tmp_path)


def state_of(sdata):
    """All that an object holds, attributes of its elements among it."""
    images = {name: image_levels(sdata, name)[0].to_numpy() for name in sdata.images}
    shapes = {name: shapes.geometry.to_wkb().to_list() for name, shapes in sdata.shapes.items()}
    frames = {name: plain(shapes) for name, shapes in sdata.shapes.items()}
    elements = {name: repr(element.attrs) for _, name, element in sdata.gen_spatial_elements()}
    tables = {name: [plain(table), repr(table.uns), list(table.layers)] for name, table in sdata.tables.items()}
    return [deepcopy(dict(sdata.attrs)), images, shapes, frames, elements, tables]


@pytest.mark.parametrize("name", GETTERS)
def test_a_getter_resolves_another_object_once_and_changes_nothing(again, other, asked, tmp_path, name):
    again._reference = None
    given = copied(other)
    before = deepcopy(state_of(given))
    ROWS[name].call(again, given, tmp_path)
    np.testing.assert_equal(state_of(given), before)
    assert "sigmma" not in given.attrs
    objects = [given, again.sdata] if ROWS[name].own else [given]
    assert asked["resolve"] == Counter(id(one) for one in objects)
    assert asked["locate"] == Counter((id(one), "cell_circles") for one in objects)
    assert set(asked["cover"].values()) <= {1}


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.own])
def test_an_object_of_its_own_that_is_given_is_resolved_once(again, asked, tmp_path, name):
    again._reference = None
    ROWS[name].call(again, again.sdata, tmp_path)
    assert asked["resolve"] == Counter([id(again.sdata)])
    assert list(asked["cover"].values()) == [1]


def test_a_change_would_be_seen(other):
    given = copied(other)
    before = deepcopy(state_of(given))
    given.tables["table"].obsm["X_new"] = np.zeros((given["table"].n_obs, 1))
    with pytest.raises(AssertionError):
        np.testing.assert_equal(state_of(given), before)
