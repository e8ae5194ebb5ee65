"""Bad inputs of every public function: one typed error that names argument or value, and the object as it was.

A row is an argument of a function with a value that is not valid. The error comes before any compute, so that the whole
table takes seconds. ``pytest tests/test_bad_inputs.py --collect-only -q`` counts the rows.
"""

import hashlib
import pickle
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sigmma_sc as sg
from sigmma_sc import SIGMMA
from sigmma_sc.errors import SigmmaError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NAN = float("nan")
NOT_WHOLE = (0, -1, 1.5, "3", None, NAN, True, [2])
NOT_WHOLE_FROM_0 = (-1, 1.5, "3", None, NAN, True, [2])
NOT_POSITIVE = (0, -1.0, "1", NAN, float("inf"), True, [1.0])
NO_NAMES = ("", 3, [], b"he_image", ("he_image",))
NO_TABLES = (None, "table", {}, 3, pd.DataFrame())
NO_LISTS = ("meso", None, (), [3], [""], ["meso", "meso"])
NO_LEVELS = (0, 1, -0.5, "0.9", NAN, True, [0.9], 0.999)
NO_KEYS = ("T/NK", "", 3, None, "..")


def an_adata():
    return ad.AnnData(np.ones((3, 2), np.float32))


NO_TISSUES = {
    "an AnnData": an_adata,
    "a path": lambda: "slide.zarr",
    "a Path": lambda: Path("slide.zarr"),
    "a list": lambda: [],
    "an empty dict": dict,
    "a dict of None": lambda: {"a": None},
    "a dict of AnnData": lambda: {"a": an_adata()},
    "a number": lambda: 3,
}
"""What is no object, by name; ``None`` means the model's own object for some functions."""


@pytest.fixture(scope="module")
def tissue(encoder, tmp_path_factory):
    """A slide of a few hundred cells, a model trained on it, and what the tools need, none of which a row may change."""
    sdata = sg.datasets.simulate_tissue(n_cells=300, seed=0, microns_per_pixel=1.0)
    table = sdata["table"]
    table.layers["counts"] = table.X.copy()
    table.obs["donor"] = pd.Categorical([f"d{k % 4}" for k in range(table.n_obs)])
    table.obs["condition"] = pd.Categorical([f"t{k % 2}" for k in range(table.n_obs)])
    table.obsm["X_mine"] = np.random.default_rng(0).normal(size=(table.n_obs, 4)).astype(np.float32)
    SIGMMA.setup_spatialdata(sdata, tile_size=64)
    fresh = SIGMMA(sdata, encoder(), n_latent=8)
    model = SIGMMA(sdata, encoder(), n_latent=8)
    model.train(max_epochs=1, split="none", enable_progress_bar=False)
    model.write_embeddings(n_offsets=1)
    for scale in ("micro", "meso", "macro"):
        table.obs[f"own_{scale}"] = pd.Categorical((np.arange(table.n_obs) % 3).astype(str))
    x = {"meso": table.obsm["X_sigmma_meso"]}
    prototypes = sg.NichePrototypes.fit(x, {"meso": table.obs["own_meso"]})
    predicted = model.predict_expression()
    index = model.build_index(tmp_path_factory.mktemp("bad") / "index", labels=["own_meso"])
    made = {
        "index": index,
        "found": sg.tl.search({"tiles": [index.obs.index[0]]}, index, fdr=0.5),
        "expression": predicted,
        "sdata": sdata,
        "model": model,
        "fresh": fresh,
        "adata": table,
        "prototypes": prototypes,
    }
    return {**made, "state": state(sdata)}


def state(sdata):
    """Fingerprint of an object: attributes, names of elements, tables, shapes, and which images with which transformations."""
    from spatialdata.transformations import get_transformation

    parts = [repr(sdata.attrs), sorted((kind, name) for kind, name, _ in sdata.gen_elements())]
    for table in sdata.tables.values():
        parts += [table.obs, table.var, dict(table.obsm), dict(table.uns), dict(table.layers), table.X]
    for shapes in sdata.shapes.values():
        parts.append(shapes.to_wkb())
    for image in sdata.images.values():
        parts += [id(image), repr(get_transformation(image, get_all=True))]
    return hashlib.sha256(pickle.dumps(parts)).hexdigest()


def setup(t, **changed):
    SIGMMA.setup_spatialdata(changed.pop("sdata", t["sdata"]), **{"tile_size": 64, **changed})


def model_of(t, **changed):
    SIGMMA(changed.pop("sdata", t["sdata"]), changed.pop("image_encoder", t["fresh"].image_encoder), **changed)


def train(t, **changed):
    t["fresh"].train(**{"max_epochs": 1, "enable_progress_bar": False, **changed})


def method(name, **usual):
    """A method of the trained model, with the arguments that a row changes."""

    def call(t, **changed):
        getattr(t["model"], name)(**{**usual, **changed})

    call.__name__ = f"SIGMMA.{name}"
    return call


def tool(function, *first, **usual):
    """A function of the package, called with what the tissue has under the names ``first``."""

    def call(t, **changed):
        given = {name: t[name] for name in first}
        function(**{**given, **usual, **changed})

    call.__name__ = f"{function.__module__.split('.')[1]}.{function.__name__}"
    return call


def niches(t, **changed):
    sg.tl.niches(**{"adata": t["adata"], "scales": ["meso"], "resolution": 0.5, **changed})


def prototypes_fit(t, **changed):
    x = {"meso": t["adata"].obsm["X_sigmma_meso"]}
    usual = {"embeddings": x, "labels": {"meso": t["adata"].obs["own_meso"]}}
    sg.NichePrototypes.fit(**{**usual, **changed})


def prototypes_assign(t, **changed):
    t["prototypes"].assign(**{"scale": "meso", "x": t["adata"].obsm["X_sigmma_meso"], **changed})


def config(t, **changed):
    sg.Config(**changed)


def image_encoder(t, **changed):
    sg.ImageEncoder(**{"module": lambda x: x.mean((2, 3)), "name": "mean", "input_size": 16, **changed})


transfer = tool(sg.tl.transfer_labels, "adata", labels="own_meso")


def transfer_labels(t, **changed):
    transfer(t, **{"reference": t["adata"], **changed})


check = tool(sg.pp.check_registration, "sdata")
split_cores = tool(sg.pp.split_cores, "sdata")
register = tool(sg.pp.register, "sdata")
assign = tool(sg.tl.assign_niches, "adata", "prototypes", key_added="assigned")
rank = tool(sg.tl.rank_niche_genes, "adata", key="own")
name = tool(sg.tl.name_niches, "adata", markers={"tumour": ["EPCAM"]}, key="own")
compare = tool(sg.tl.compare_niches, "adata", condition="condition", donor="donor", key="own")
to_image = tool(sg.tl.map_to_image, "model", "sdata", labels="own_meso")
search = tool(sg.tl.search, "index", query={"genes": ["EPCAM"]})
found_maps = tool(sg.pl.search, "found", show=False)
map_niches = tool(sg.pl.niches, "adata", key="own", show=False)
composition = tool(sg.pl.composition, "adata", groupby="cell_type", key="own", show=False)
maps = tool(sg.pl.prediction, "expression", genes=["EPCAM"], show=False)
signature = tool(sg.pl.signature, "adata", genes=["EPCAM"], key="own", show=False)
abundance = tool(sg.pl.niche_abundance)
curves = tool(sg.pl.training)
windows = tool(sg.pl.registration, "sdata", show=False)
galleries = tool(sg.pl.retrieval, "model", split="all", show=False)
graph = tool(sg.pl.edges, "model", tile="cell_circles_0", show=False)
simulate = tool(sg.datasets.simulate_tissue, n_cells=100)
xenium = tool(sg.io.xenium)
hest = tool(sg.io.hest, folder="nowhere", sample_id="TENX95")
ranks = tool(sg.metrics.partner_ranks, query=np.eye(3), candidates=np.eye(3))
recall = tool(sg.metrics.recall_at_percent, ranks=[1, 2], n=4)
agreement = tool(sg.metrics.niche_agreement, labels=["0", "1"], reference=["a", "b"])
latent = method("get_latent_representation")
cell_table = method("get_cell_image_representation")
tile_table = method("get_tile_representation")
write = method("write_embeddings", overwrite=True)
retrieval = method("evaluate_retrieval")
expression = method("evaluate_expression")
predict = method("predict_expression")
build_index = method("build_index", path="never")
read_index = tool(sg.TileIndex.read, path="never")
explorer = tool(sg.io.to_xenium_explorer, "adata", path="never.csv", key="own_meso")
geojson = tool(sg.io.to_geojson, "sdata", path="never.geojson", key="own_meso")
regions = tool(sg.io.read_regions, "sdata", path="never.geojson")
results = tool(sg.io.write_results, "sdata")
gene_reliability = method("get_gene_reliability")
report = tool(sg.report, "model", "sdata", path="never.html", key="own")
attention = method("get_attention", tiles=["cell_circles_0"])
embed_split = method("embed_split")

WITH_TISSUES = (setup, model_of, check, split_cores, register, to_image, windows, latent, cell_table, tile_table, write, retrieval,
                expression, predict, embed_split, report, build_index, geojson, regions, results)  # fmt: skip
WITH_TABLES = (explorer, niches, assign, transfer_labels, rank, name, compare, map_niches, composition, signature)

VALUES = {
    setup: {
        "image_key": ("he", *NO_NAMES, {}, {"cell_circles": 3}, {"cells": "he_image"}, {3: "he_image"}, None, NAN),
        "table_key": ("cells", *NO_NAMES),
        "coordinate_system": ("µm", *NO_NAMES, {}, {"cells": "global"}, None),
        "layer": ("raw", *NO_NAMES),
        "features_key": ("X_scVI", *NO_NAMES),
        "sample_key": ("patient", *NO_NAMES),
        "microns_per_pixel": (*NOT_POSITIVE, {}, {"cells": 0.5}, {"cell_circles": "0.5"}, 50.0),
        "tile_size": (*NOT_POSITIVE, None, 1e9, 1e-3),
        "grids": (4, 1.0, None, (), [], "421", (4, 3), (1, 2), (0,), (True,), (1.5,), (1000,), ("4",), {4: 1}, (4, 4, 1)),
    },
    model_of: {
        "image_encoder": (None, 3, "uni-99", lambda x: x),
        "n_latent": (*NOT_WHOLE, 1, 10**8),
        "preset": ("sigmma", 3),
        "temperature": (*NOT_POSITIVE, 1e-12),
        "edges": ("all", None, 3),
        "node_features": ("scgpt", None, 3, "obsm", "pseudobulk"),
        "loss_weights": ((1, 1), "abc", (0, 0, 0), (-1, 1, 1), 3),
        "crop_sizes": ((16,), (0, 16, 16), "16"),
        "regim": ("full",),
    },
    config: {
        "n_neighs": (*NOT_WHOLE, 10**7),
        "min_cells": NOT_WHOLE,
        "mc_samples": NOT_WHOLE_FROM_0,
        "seed": (*NOT_WHOLE_FROM_0, 2**32),
        "dropout": (-0.1, 1, "0", None, NAN),
        "radius": NOT_POSITIVE,
        "edge_temperature": (*NOT_POSITIVE[:-1], (1.0, 0.5, 0.1), (1.0, 0.0)),
        "negatives": ("all", None),
        "standardise": ("image", True),
        "cells": ("bins", None),
        "regime": ("half", None),
        "cell_covariates": (1, "yes", None),
        "learn_temperature": (1, None),
    },
    train: {
        "max_epochs": NOT_WHOLE,
        "batch_size": (*NOT_WHOLE, 1),
        "lr": (*NOT_POSITIVE, None),
        "weight_decay": (-1, "0", None, NAN),
        "split": ("half", {}, [], None, 3, {"test": "donor1"}, {"test": []}, {"test": [None]}, {"tests": ["a"]}, {"test": ["d9"]}),
        "stride": (*NOT_POSITIVE, 30.0, 64e-7),
        "precision": ("64", "bf16-true", None),
        "accelerator": ("tpus", 3),
        "devices": ("two", -3, 1.5),
        "early_stopping": ("yes", 1, None),
        "early_stopping_patience": NOT_WHOLE,
        "early_stopping_monitor": ("elbo", None, 3),
        "early_stopping_mode": ("least", None),
        "early_stopping_min_delta": (-1, "0", NAN),
        "limit_train_batches": (0, -1, "all"),
        "gradient_clip_val": ("a", -1, 0),
        "max_epoch": (3,),
        "encoder_lr": (1e-4, 0, "a"),
        "augment": (True, "yes"),
        "chunk_size": (8, 0, "a"),
        "ckpt_path": ("nowhere.safetensors",),
    },
    latent: {"scale": ("mesa", None, 3, ["meso"]), "n_offsets": (*NOT_WHOLE, 10**7)},
    cell_table: {"scale": ("mesa", None, "all"), "step": (*NOT_POSITIVE, 1.5)},
    tile_table: {"scale": ("mesa", None, 3), "modality": ("images", None, 3)},
    write: {"n_offsets": (*NOT_WHOLE, 10**7)},
    retrieval: {"split": ("tests", None, 3)},
    expression: {"split": ("tests", None, 3), "protocol": ("hest1k", None)},
    predict: {
        "method": ("knn", None),
        "scale": ("mesa", None),
        "n_neighbors": NOT_WHOLE,
        "interval": NO_LEVELS,
        "withhold": (-0.1, 1, "0.01", NAN, True, [0.01]),
    },
    gene_reliability: {"method": ("auto", None), "scale": ("mesa", None), "n_neighbors": NOT_WHOLE},
    geojson: {
        "path": ("", 3, None, []),
        "key": ("kind", "", 3, None),
        "shapes": ("cells", None, 3),
        "slide": ("another", 3),
        "max_distance": NOT_POSITIVE,
    },
    regions: {"path": ("", 3, None, [], "nowhere.geojson"), "key_added": NO_KEYS, "slide": ("another", 3)},
    explorer: {"path": ("", 3, None, []), "key": ("kind", "", 3, None), "cell_id": ("name", 3, [])},
    report: {
        "model": (None, "model", 3),
        "path": ("", 3, None, [], "."),
        "key": ("mine", "", 3, None),
        "groupby": ("kind", "", 3, []),
        "title": ("", 3, None, []),
        "command": ("", 3, []),
    },
    attention: {"tiles": ([], None, ["nowhere_0"], [3]), "when": ("now", None)},
    embed_split: {"split": ("tests", None)},
    check: {"seed": NOT_WHOLE_FROM_0},
    name: {
        "markers": (None, {}, ["EPCAM"], {"tumour": "EPCAM"}, {"tumour": []}, {"tumour": ["nowhere"]}, {"unclear": ["EPCAM"]}),
        "scale": ("mesa", None, 3),
        "groupby": ("type", 3),
        "layer": ("raw", 3),
        "min_log2fc": (-1, "0", None, NAN),
        "min_margin": (-1, "0", None, NAN),
        "key_added": ("T/NK", "", 3, ".."),
    },
    register: {
        "image_key": ("he", 3, []),
        "table_key": ("cells", 3),
        "coordinate_system": ("µm", 3),
        "layer": ("raw", 3),
        "microns_per_pixel": (0, -1, "1", NAN),
        "seed": NOT_WHOLE_FROM_0,
    },
    split_cores: {"gap": NOT_POSITIVE, "min_cells": (*NOT_WHOLE, 10**6), "key_added": (*NO_KEYS, "donor")},
    niches: {
        "scales": (*NO_LISTS, ["mesa"]),
        "resolution": ("high", *NOT_POSITIVE[:2], None, NAN),
        "n_neighbors": (*NOT_WHOLE, 1),
        "n_runs": (*NOT_WHOLE, 1),
        "min_size": (*NOT_WHOLE, 10**6),
        "seed": NOT_WHOLE_FROM_0,
        "key_added": (*NO_KEYS, "own"),
        "use_rep": ("X_mine", {"micro": "X_mine"}, {"meso": []}, {"meso": "X_his"}, ["X_mine"]),
        "sample_key": ("patient", 3),
    },
    assign: {
        "prototypes": (None, {}, "niches"),
        "scales": (*NO_LISTS[:1], *NO_LISTS[2:], ["micro"]),
        "key_added": (*NO_KEYS, "own"),
        "sample_key": ("donor",),
    },
    transfer_labels: {
        "reference": NO_TABLES,
        "labels": ("annotation", "", 3, None),
        "scale": ("mesa", None),
        "n_neighbors": NOT_WHOLE,
        "key_added": ("T/NK", "", 3, "donor"),
        "use_rep": ("X_his", "", 3),
    },
    rank: {
        "scale": ("mesa", None),
        "key": ("theirs", None),
        "layer": ("raw", 3),
        "method": ("anova", None),
        "key_added": ("a/b", "", 3, "spatialdata_attrs"),
    },
    compare: {
        "condition": ("treatment", None, "donor"),
        "donor": ("patient", None, "condition"),
        "scale": ("mesa", None),
        "key": ("theirs", None),
        "reference": ("t9",),
        "layer": ("raw",),
        "min_cells": NOT_WHOLE,
    },
    to_image: {
        "model": (None, "model", {}),
        "labels": ("annotation", 3, None),
        "scale": ("mesa", None),
        "n_neighbors": NOT_WHOLE,
        "key_added": ("T/NK", "", 3, "split"),
        "interval": NO_LEVELS,
        "withhold": (-0.1, 1, "0.01", NAN, True, [0.01]),
    },
    build_index: {"path": ("", 3, None), "labels": ("own_meso", 3, None, ["annotation"])},
    read_index: {"path": ("", 3, None, "nowhere")},
    search: {
        "query": (None, 3, "tiles", {}, {"tiles": []}, {"tiles": ["nowhere_0"]}, {"tiles": "cell_circles_0"}, {"genes": ["NOPE"]},
                  {"genes": []}, {"own_meso": "9"}, {"donor": "d0"}, {"tiles": ["a"], "genes": ["b"]}),
        "index": (None, 3, "nowhere", {}),
        "modality": ("images", None, 3),
        "scale": ("mesa", None, 3),
        "query_modality": ("images", None),
        "n_tiles": NOT_WHOLE,
        "fdr": (0, 1, -0.1, "0.1", None, NAN, True, 1e-4),
        "withhold": (-0.1, 1, "0.01", NAN, True, [0.01]),
        "key_added": ("alike", "a/b", "", 3),
    },
    found_maps: {"found": (None, "found", 3, {}), "slides": (["nowhere"], "cell_circles", [], 3)},
    map_niches: {
        "scales": (*NO_LISTS, ["mesa"]),
        "reference": ("annotation", ["annotation"]),
        "basis": ("umap", None),
        "windows": ([(1e9, 1e9, 10)], [(0, 0, 0)]),
        "key": ("theirs", None),
        "palette": ("tab10", ["red"], {"0": "red"}, ["reddish"] * 9, 3),
        "library_key": ("patient", 3),
        "microns_per_unit": NOT_POSITIVE,
    },
    composition: {"groupby": ("annotation", None), "scales": (*NO_LISTS, ["mesa"]), "key": ("theirs",)},
    signature: {"genes": (["NOPE"], [], None, [3]), "scale": ("mesa",), "layer": ("raw",), "basis": ("umap",)},
    maps: {"expression": NO_TABLES, "genes": (["NOPE"], [], None, [3])},
    abundance: {"comparison": (None, {}, "x")},
    curves: {"history": (None, {}, "x", [])},
    windows: {"n_windows": NOT_WHOLE, "window": NOT_POSITIVE, "slide": ("elsewhere", 3), "seed": NOT_WHOLE_FROM_0},
    galleries: {
        "model": (None, "model"),
        "tiles": (0, -1, 1.5, ["nowhere_0"], [], None),
        "direction": ("both", None),
        "scale": ("mesa", None),
        "n_hits": NOT_WHOLE,
        "groupby": ("annotation",),
    },
    graph: {
        "model": (None, "model"),
        "tile": ("nowhere_0", None),
        "threshold": (-1, 2, "half", NAN, None),
        "groupby": ("annotation",),
    },
    simulate: {
        "n_cells": (*NOT_WHOLE, 99),
        "n_slides": NOT_WHOLE,
        "seed": NOT_WHOLE_FROM_0,
        "microns_per_pixel": (*NOT_POSITIVE, 3.0),
        "angle": ("a", NAN, None),
        "pixel_size": NOT_POSITIVE,
    },
    xenium: {"path": ("nowhere", None, 3)},
    hest: {"folder": ("nowhere", None, 3), "sample_id": ("", None, 3)},
    prototypes_fit: {
        "embeddings": (None, {}, {"meso": np.ones(3)}, {"macro": np.ones((3, 2))}),
        "labels": (None, {}, {"meso": ["0"]}),
        "quantile": (0, 2, "1", NAN),
        "seed": NOT_WHOLE_FROM_0,
    },
    prototypes_assign: {"scale": ("micro", None), "x": (np.ones((3, 2)), np.ones(8), None), "samples": (["d0"],)},
    ranks: {"query": (np.ones(3), np.full((3, 3), NAN), np.ones((2, 3)))},
    recall: {
        "ranks": ([], [0], [5], [NAN], [1.5], ["1"]),
        "n": NOT_WHOLE,
        "percents": ((0,), (101,), (NAN,), ("5",)),
    },
    agreement: {"labels": (["0"], [])},
    image_encoder: {"module": (None, 3, "resnet50"), "input_size": NOT_WHOLE, "mean": ((0.5,), "abc", None), "dim": (0, -1, 1.5, "8")},
}  # fmt: skip

ROWS = [
    (call, argument, value)
    for call, arguments in VALUES.items()
    for argument in arguments
    for value in arguments[argument]
]
ROWS += [(call, "sdata", make) for call in WITH_TISSUES for make in NO_TISSUES.values()]
ROWS += [(call, "adata", value) for call in WITH_TABLES for value in NO_TABLES]


def shown(value):
    return " ".join(repr(value).split())[:40]


@pytest.mark.parametrize(
    ("call", "argument", "value"), ROWS, ids=lambda part: getattr(part, "__name__", None) or shown(part)
)
def test_one_error_that_names_it_and_the_object_as_it_was(call, argument, value, tissue):
    given = value() if argument == "sdata" else value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SigmmaError) as caught:
            call(tissue, **{argument: given})
    message = str(caught.value)
    assert names(message, argument, given), message
    assert len(message) < 600
    before, tissue["state"] = tissue["state"], state(tissue["sdata"])
    assert tissue["state"] == before
    assert not tissue["fresh"].is_trained


def names(message, argument, value):
    """Whether a message names what is wrong: the argument, the value, what is missing of it, or what it is an instance of."""
    entries = list(value) if isinstance(value, (list, tuple, dict)) else []
    if isinstance(value, dict):
        entries += list(value.values())
        entries += [one for entry in value.values() if isinstance(entry, list) for one in entry]
    words = [argument, argument.rstrip("s"), repr(value), str(value), type(value).__name__, *map(str, entries)]
    if isinstance(value, np.ndarray):
        words.append(str(value.shape))
    return any(word and word.lower() in message.lower() for word in words)


def test_the_table_is_long_enough():
    assert len(ROWS) >= 600
