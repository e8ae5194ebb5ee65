import errno
import hashlib
import json
import shutil
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from geopandas import GeoDataFrame
from shapely import box
from spatialdata.models import ShapesModel
from spatialdata.transformations import Affine, get_transformation, set_transformation

import sigmma_sc
from sigmma_sc import cli
from sigmma_sc._files import fresh_folder
from sigmma_sc.cli.results import model_kept, require_free
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import ExistsError, WriteError

RESULTS = {
    "model", "cells.zarr", "niches.png", "niches.parquet", "niches.csv", "markers.csv", "registration.png", "training.png",
    "retrieval.csv", "history.csv", "run.json",
}  # fmt: skip


@pytest.fixture(autouse=True)
def plain_words(monkeypatch):
    """CI services ask for colours, whose codes would stand between the letters of what is printed."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "slide.zarr"
    simulate_tissue(n_cells=1800, seed=1, microns_per_pixel=1.0).write(path)
    return path


@pytest.fixture(scope="module")
def results(store):
    out = store.parent / "results"
    kept = ("--cache", store.parent / "cache", "--checkpoints", store.parent / "checkpoints")
    assert run("train", store, "--out", out, "--epochs", 2, "--split", "none", *kept) == 0
    return out


def run(*arguments):
    """Run the command as the shell would; its exit code."""
    argv, sys.argv = sys.argv, ["sigmma-sc", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = argv
    return 0


def said(capsys):
    """Printed words, however the terminal broke the lines, those of errors last."""
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


@pytest.mark.slow
def test_demo_writes_everything_and_prints_its_figures(tmp_path, capsys):
    out = tmp_path / "demo"
    # A process of its own, as notices of other packages come at their import, and pytest has its own loggers.
    main = "from sigmma_sc.cli import main; main()"
    arguments = ["demo", "--out", str(out), "--n-cells", "2000", "--epochs", "2"]
    done = subprocess.run([sys.executable, "-c", main, *arguments], capture_output=True, text=True, check=True)
    assert {p.name for p in out.iterdir()} == RESULTS
    steps = [line.rsplit(":", 2)[0] for line in done.stderr.splitlines() if line[1:3] == "/4"]
    assert steps == ["1/4 Training", "2/4 Embedding", "3/4 Niches", "4/4 Scores and files"]
    assert "retrieval among" in done.stdout
    assert "Niches against the truth" in done.stdout
    lines = (done.stderr + done.stdout).splitlines()
    assert len(lines) <= 25
    assert not [line for line in lines if "arning" in line]
    assert "he_image" in sd.read_zarr(out / "cells.zarr").images


def test_train_leaves_the_store_alone(store, results):
    assert {p.name for p in results.iterdir()} == RESULTS
    assert not sd.read_zarr(store)["table"].obsm.keys() & {"X_sigmma_micro"}
    written = sd.read_zarr(results / "cells.zarr")
    assert np.isfinite(written["table"].obsm["X_sigmma_macro"]).all()
    assert "sigmma_tiles" in written.tables
    assert not written.images
    assert len(pd.read_csv(results / "history.csv")) == 2
    table = pd.read_parquet(results / "niches.parquet")
    assert table.columns[:4].tolist() == ["cell_id", "region", "niche_micro", "confidence_micro"]
    cells = written["table"]
    assert table.niche_meso.tolist() == cells.obs.sigmma_niche_meso.tolist()
    np.testing.assert_array_equal(table.confidence_meso, cells.obs.sigmma_niche_meso_confidence)
    assert table.cell_id.tolist() == cells.obs.cell_id.astype(str).tolist()
    kept = {"cell_id": str, "niche_micro": str, "niche_meso": str, "niche_macro": str}
    pd.testing.assert_frame_equal(pd.read_csv(results / "niches.csv", dtype=kept), table, check_dtype=False)


def test_the_manifest_names_what_the_folder_holds(results):
    manifest = json.loads((results / "run.json").read_text())
    assert set(manifest["files"]) == RESULTS - {"run.json"}
    for name, told in manifest["files"].items():
        if (results / name).is_file():
            assert told["bytes"] == (results / name).stat().st_size
            assert told["sha256"] == hashlib.sha256((results / name).read_bytes()).hexdigest()
    assert manifest["settings"]["seed"] == "0"
    assert manifest["settings"]["split"] == '"none"'
    assert manifest["settings"]["sigmma-sc"] == sigmma_sc.__version__


def test_embed_gives_what_training_wrote(store, results, tmp_path):
    assert run("embed", store, "--model", results / "model", "--out", tmp_path / "again") == 0
    a, b = (sd.read_zarr(folder / "cells.zarr")["table"] for folder in (results, tmp_path / "again"))
    for scale in ("micro", "meso", "macro"):
        np.testing.assert_array_equal(a.obsm[f"X_sigmma_{scale}"], b.obsm[f"X_sigmma_{scale}"])
        assert (a.obs[f"sigmma_niche_{scale}"] == b.obs[f"sigmma_niche_{scale}"]).all()


def test_a_new_slide_is_embedded_by_a_model_with_test_tiles(tmp_path, capsys):
    first, other = (simulate_tissue(n_cells=400, seed=seed, microns_per_pixel=1.0) for seed in (1, 2))
    sigmma_sc.SIGMMA.setup_spatialdata(first)
    model = sigmma_sc.SIGMMA(first)
    model.train(max_epochs=1, split="random")
    assert any("test" in roles for roles in model.data.roles.by_slide.values())
    model.save(tmp_path / "model")
    other.write(tmp_path / "other.zarr")
    out = tmp_path / "out"
    assert (
        run("embed", tmp_path / "other.zarr", "--model", tmp_path / "model", "--out", out, "--resolution", "0.5") == 0
    )
    tiles = sd.read_zarr(out / "cells.zarr")["sigmma_tiles"].obs
    pools = pd.read_csv(out / "retrieval.csv")["pool"]
    assert set(tiles["split"]) == {"unseen"}
    assert f"retrieval among {pools[0]} tiles, all of the slide" in said(capsys)


@pytest.mark.filterwarnings("ignore::sigmma_sc.errors.ExpressionWarning")  # trained on every tile
def test_embed_an_image_alone(store, results, tmp_path, capsys):
    sdata = sd.read_zarr(store)
    sd.SpatialData(images={"he_image": sdata["he_image"]}).write(tmp_path / "image.zarr")
    arguments = ("embed", tmp_path / "image.zarr", "--model", results / "model", "--out", tmp_path / "out", "--he-only")
    assert run(*arguments) == 2
    assert "--microns-per-pixel=" in said(capsys)
    assert run(*arguments, "--microns-per-pixel", 1.0) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"model", "tiles.zarr", "expression.h5ad", "run.json"}
    tiles = sd.read_zarr(tmp_path / "out" / "tiles.zarr")["sigmma_tiles"]
    trained = sd.read_zarr(results / "cells.zarr")["sigmma_tiles"]
    for scale in ("micro", "meso", "macro"):
        np.testing.assert_allclose(tiles.obsm[f"image_{scale}"], trained.obsm[f"image_{scale}"], atol=1e-3)
    expression = ad.read_h5ad(tmp_path / "out" / "expression.h5ad")
    assert expression.shape == (tiles.n_obs, 120)
    withheld = (expression.obs["sigmma_alike"] <= 0.01).to_numpy()
    assert np.isfinite(expression.X[~withheld]).all()
    assert np.isnan(expression.X[withheld]).all()
    assert "withheld" in said(capsys)
    assert run(*arguments, "--microns-per-pixel", 1.0, "--overwrite", "--interval", 0.9) == 2  # trained on every tile
    assert "--interval=0.9 needs 9 spatial blocks of validation tiles, the model has 0" in said(capsys)
    assert run(*arguments[:-1], "--overwrite", "--interval", 0.9) == 2
    assert "--interval goes with --he-only" in said(capsys)


def test_report_is_written_once_from_a_run_without_images(results, tmp_path, capsys):
    assert run("report", results, "--out", tmp_path / "page.html", "--groupby", "cell_type") == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<title>results</title>" in page
    assert "sigmma-sc train" in page
    capsys.readouterr()
    assert run("report", results, "--out", tmp_path / "page.html") == 2
    assert "pass --overwrite" in said(capsys)
    assert run("report", results / "model") == 2
    assert "sigmma-sc train" in said(capsys)


@pytest.mark.slow
def test_cache_and_checkpoints_spare_work(store, results, tmp_path, monkeypatch):
    from sigmma_sc import ImageEncoder

    encode = ImageEncoder.encode

    def refuse(self, crops):
        if len(crops) == 1:  # the crop that it is known by
            return encode(self, crops)
        raise AssertionError("encoded again")

    monkeypatch.setattr(ImageEncoder, "encode", refuse)
    cache = ("--cache", store.parent / "cache")
    again = ("--out", tmp_path / "a", "--epochs", 2, "--split", "none", "--checkpoints", store.parent / "checkpoints")
    assert run("train", store, *again, *cache) == 0
    assert run("embed", store, "--model", results / "model", "--out", tmp_path / "b", *cache) == 0
    first, *others = (
        sd.read_zarr(folder / "cells.zarr")["table"] for folder in (results, tmp_path / "a", tmp_path / "b")
    )
    for other in others:
        np.testing.assert_array_equal(first.obsm["X_sigmma_meso"], other.obsm["X_sigmma_meso"])


class Kept:
    """A model that can be saved."""

    def save(self, path):
        path.mkdir()
        (path / "model.json").write_text("{}")


def fail_at_the_end(out):
    with model_kept(Kept()), fresh_folder(out):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_at_the_end_does_not_cost_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(WriteError, match="No space left.*The trained model is kept in") as told:
        fail_at_the_end(tmp_path / "out")
    (folder,) = tmp_path.iterdir()
    assert f"kept in {folder / 'model'}." in str(told.value)
    assert (folder / "model" / "model.json").exists()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(WriteError, match="out cannot be written .*No space left"):
        fail_at_the_end(tmp_path / "out")


def test_a_place_that_cannot_be_written_is_told_before_the_store_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_read", lambda path: pytest.fail("read the store"))
    (tmp_path / "file").write_text("x")
    assert run("train", tmp_path / "a.zarr", "--out", tmp_path / "file" / "out") == 2
    assert "out cannot be written" in said(capsys)


def test_results_of_a_run_that_was_killed_at_its_end_are_restored(tmp_path):
    for name in ("old", "new"):
        (tmp_path / ".out-00000000.part" / name / "model").mkdir(parents=True)
        (tmp_path / ".out-00000000.part" / name / "model" / "model.json").write_text(name)
    with pytest.raises(ExistsError, match="out exists"):
        require_free(tmp_path / "out", overwrite=False)
    assert (tmp_path / "out" / "model" / "model.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_results_are_replaced_only_when_asked(store, results, capsys):
    before = (results / "model" / "model.json").read_bytes()
    arguments = ("train", store, "--out", results, "--epochs", 1, "--split", "none", "--seed", 1)
    assert run(*arguments) == 2
    assert "--overwrite" in said(capsys)
    assert (results / "model" / "model.json").read_bytes() == before


def test_a_folder_of_something_else_is_never_replaced(store, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("ten years")
    assert run("train", store, "--out", tmp_path, "--overwrite") == 2
    assert "holds no results of sigmma-sc" in said(capsys)
    assert (tmp_path / "thesis.tex").read_text() == "ten years"


def test_nor_is_a_folder_of_results_that_holds_more(store, results, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(results, out)
    require_free(out, overwrite=True)
    (out / "cache").mkdir()
    assert run("train", store, "--out", out, "--overwrite") == 2
    assert "holds more than results (cache), which would be lost" in said(capsys)


@pytest.mark.slow
def test_overwrite_replaces(store, tmp_path):
    out = tmp_path / "out"
    for seed in (0, 1):
        assert run("train", store, "--out", out, "--epochs", 1, "--split", "none", "--seed", seed, "--overwrite") == 0
    assert '"seed": 1' in (out / "model" / "model.json").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # nothing is left beside it


def test_check_tells_by_words_and_exit_code(store, tmp_path, capsys):
    assert run("check", store) == 0
    assert "registered" in said(capsys)
    sdata = sd.read_zarr(store)
    shifted = sdata["cell_circles"].copy()
    shifted.geometry = shifted.translate(xoff=20.0)
    moved = sd.SpatialData(images=dict(sdata.images), shapes={"cell_circles": shifted}, tables=dict(sdata.tables))
    moved.write(tmp_path / "moved.zarr")
    assert run("check", tmp_path / "moved.zarr") == 1
    assert "shifted" in said(capsys)


def test_register_writes_a_certified_pose_to_the_store(tmp_path, capsys):
    sdata = simulate_tissue(n_cells=2000, seed=1)
    image = sdata["he_image"]
    right = get_transformation(image).to_affine_matrix(("x", "y"), ("x", "y"))
    moved = Affine(right @ [[-1, 0, 1500], [0, 1, 40], [0, 0, 1]], ("x", "y"), ("x", "y"))
    set_transformation(image, moved)
    sdata["other"] = sdata["he_image"]
    sdata.write(tmp_path / "cells.zarr")
    others = {file: file.stat().st_mtime_ns for file in (tmp_path / "cells.zarr" / "images" / "other").rglob("*")}
    assert run("register", tmp_path / "cells.zarr") == 0
    assert "registered (moved by" in said(capsys)
    assert others == {file: file.stat().st_mtime_ns for file in others}
    again = sd.read_zarr(tmp_path / "cells.zarr")
    found = get_transformation(again["he_image"], get_all=True)
    np.testing.assert_allclose(found["global"].to_affine_matrix(("x", "y"), ("x", "y"))[:, :2], right[:, :2], atol=0.02)
    np.testing.assert_allclose(found["global_unregistered"].to_affine_matrix(("x", "y"), ("x", "y")), moved.matrix)
    assert again.attrs["sigmma_registration"]["cell_circles"]["written"]
    assert run("register", tmp_path / "cells.zarr") == 2
    assert "registered before" in said(capsys)


def test_landmarks_in_a_file_take_the_place_of_the_search(tmp_path, capsys):
    sdata = simulate_tissue(n_cells=300, seed=1)
    image = get_transformation(sdata["he_image"]).to_affine_matrix(("x", "y"), ("x", "y"))
    cells = get_transformation(sdata["cell_circles"]).to_affine_matrix(("x", "y"), ("x", "y"))
    places = np.array([[100.0, 120], [600, 150], [200, 550]])
    among = np.column_stack([places, np.ones(3)]) @ (np.linalg.inv(cells) @ image).T
    marks = pd.DataFrame(np.hstack([places, among[:, :2]]), columns=["image_x", "image_y", "cell_x", "cell_y"])
    marks.to_csv(tmp_path / "marks.csv", index=False)
    moved = Affine(image @ [[-1, 0, 900], [0, 1, 40], [0, 0, 1]], ("x", "y"), ("x", "y"))
    set_transformation(sdata["he_image"], moved)
    # As a model wrote them.
    squares = ShapesModel.parse(GeoDataFrame(geometry=[box(0, 0, 9, 9)]), transformations={"global": moved})
    sdata["sigmma_tiles_cell_circles"] = squares
    path = tmp_path / "cells.zarr"
    sdata.write(path)
    assert run("register", path, "--landmarks", tmp_path / "none.csv") == 2
    assert "none.csv cannot be read" in said(capsys)
    assert run("register", path, "--landmarks", tmp_path / "marks.csv") == 0
    assert "3 landmarks fit" in said(capsys)
    again = sd.read_zarr(path)
    for name in ("he_image", "sigmma_tiles_cell_circles"):
        found = get_transformation(again[name], get_all=True)
        matrix = found["global"].to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_allclose(matrix[:, :2], image[:, :2], atol=0.05)
        np.testing.assert_allclose(found["global_unregistered"].to_affine_matrix(("x", "y"), ("x", "y")), moved.matrix)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "nope"], "nope"),
        (["--image", "a", "--image", "b"], "REGION=NAME"),
        (["--encoder", "uni", "--encoder-arg", "img_size=224"], "arguments go with a timm model"),
        (["--encoder", "resnet18", "--encoder-arg", "pad_type"], "NAME=VALUE"),
        (["--set", "egdes=none"], "Did you mean 'edges'"),
        (["--encoder", "resnet18", "--weights", "nowhere.pt"], "nowhere.pt"),
        (["--set", "symmetric_edges=maybe"], "symmetric_edges=maybe must be one of true, false, yes, no, on, off"),
    ],
)
def test_mistakes_are_told_before_any_work(store, tmp_path, capsys, arguments, words):
    assert run("train", store, "--out", tmp_path / "out", *arguments) == 2
    assert words in said(capsys)
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_cannot_be_had_fails_before_the_store_is_read(store, results, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_read", lambda path: pytest.fail("read the store"))
    absent = ("--encoder", "resnet18", "--weights", "nowhere.pt")
    assert run("train", store, "--out", tmp_path / "out", *absent) == 2
    assert "nowhere.pt" in said(capsys)
    assert run("embed", store, "--model", results / "model", "--out", tmp_path / "out", *absent) == 2
    assert "nowhere.pt" in said(capsys)
    assert run("embed", store, "--model", results / "model", "--out", tmp_path / "out", *absent[2:]) == 2
    assert "--weights goes with --encoder" in said(capsys)


@pytest.mark.slow
def test_embed_with_weights_that_have_moved(store, tmp_path, capsys):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_efficientnet", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    named = ("--encoder", "test_efficientnet", "--encoder-arg", "input_size=32", "--weights")
    short = ("--epochs", 1, "--split", "none", "--set", "crop_sizes=32,32,32")
    assert run("train", store, "--out", tmp_path / "out", *named, tmp_path / "w.safetensors", *short) == 0
    (tmp_path / "w.safetensors").rename(tmp_path / "moved.safetensors")
    embed = ("embed", store, "--model", tmp_path / "out" / "model", "--out", tmp_path / "again")
    assert run(*embed) == 2
    told = "".join(capsys.readouterr().err.split())  # lines break within a path
    assert "/w.safetensors" in told
    assert "get_encoder('test_efficientnet',weights=…)" in told
    assert run(*embed, *named, tmp_path / "moved.safetensors") == 0
    a, b = (sd.read_zarr(tmp_path / folder / "cells.zarr")["table"].obsm for folder in ("out", "again"))
    np.testing.assert_array_equal(a["X_sigmma_macro"], b["X_sigmma_macro"])


def test_the_version_and_nothing_else(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"sigmma-sc {sigmma_sc.__version__}\n"


@pytest.mark.parametrize("arguments", [("--quiet", "check"), ("check", "--quiet")])
def test_quiet_tells_by_the_exit_code_alone(store, capsys, arguments):
    assert run(*arguments, store) == 0
    assert said(capsys) == ""
    assert run("check", store) == 0
    assert "registered" in said(capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--resolution", "fine"), "--resolution='fine' must be a positive number or 'auto'"),
        (("--resolution", "-1"), "--resolution=-1 must be a positive number"),
        (("--devices", "gpu"), "--devices='gpu' must be a number"),
        (("--he-image", "he.tif"), "--he-image=… goes with the output folder of a Xenium run"),
    ],
)
def test_wrong_values_are_told_before_training(store, tmp_path, capsys, arguments, words):
    assert run("train", store, "--out", tmp_path / "out", *arguments) == 2
    assert words in said(capsys)


def test_devices_and_resolution_are_read():
    assert [cli._devices(text) for text in ("auto", "2", "0,1")] == ["auto", 2, [0, 1]]
    assert [cli._resolution(text) for text in ("auto", "2", "0.5")] == ["auto", 2.0, 0.5]


def test_missing_store_and_missing_model(store, tmp_path, capsys):
    assert run("check", tmp_path / "none.zarr") == 2
    assert "does not exist" in said(capsys)
    assert run("embed", store, "--model", tmp_path, "--out", tmp_path / "out") == 2
    assert "holds no saved model" in said(capsys)


def test_tiles_are_indexed_and_searched(store, results, tmp_path, capsys):
    index = tmp_path / "index"
    build = ("index", store, "--model", results / "model", "--out", index, "--cache", store.parent / "cache")
    assert run(*build, "--label", "niche") == 0
    assert "with cells; micro, meso, macro; labels: niche" in said(capsys)
    assert run(*build) == 2
    assert "Pass --overwrite" in said(capsys)
    assert run("search", index, "--gene", "EPCAM", "--gene", "KRT19", "--out", tmp_path / "found.csv") == 0
    words = said(capsys)
    found = pd.read_csv(tmp_path / "found.csv")
    (slide,) = found["slide"].unique()
    n = int(found["alike"].sum())
    assert slide == "slide/cell_circles"
    none = (f"nothing alike among {len(found)} tiles", "too few unrelated tiles of the model")
    assert any(f"{slide}: {told}" in words for told in ((f"{n} of {len(found)} tiles alike",) if n else none))
    assert "The 10 most similar tiles" in words
    label = sorted(sd.read_zarr(store)["table"].obs["niche"].astype(str).unique())[0]
    assert run("search", index, "--label", f"niche={label}", "--scale", "meso", "--transcriptome") == 0
    assert run("search", index, "--tile", found["tile"][0], "--gene", "EPCAM") == 2
    assert "pass --tile, --gene or --label" in said(capsys)
    assert run("search", index, "--gene", "EPCAM", "--out", tmp_path / "found.csv") == 2
    assert "pass --overwrite to replace it" in said(capsys)
    assert run("search", index, "--gene", "EPCAM", "--fdr", "2") == 2
    assert "--fdr=2.0 must be a number between 0 and 1" in said(capsys)
    assert run("search", index, "--gene", "NOPE") == 2
    assert "MissingKeyError: gene='NOPE' does not exist" in said(capsys)
    assert run("index", store, store, "--model", results / "model", "--out", tmp_path / "two") == 2
    assert "Two stores are named 'slide'" in said(capsys)


def test_encoders_are_listed(capsys):
    assert run("encoders") == 0
    assert "stain-stats" in said(capsys)


def test_options_that_are_on_or_off():
    given = ["symmetric_edges=no", "learn_temperature=On", "cell_covariates=FALSE", "edges=none", "n_latent=8"]
    assert cli._options(given) == {
        "symmetric_edges": False,
        "learn_temperature": True,
        "cell_covariates": False,
        "edges": "none",
        "n_latent": 8,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("same", "same"), ("224", 224), ("1e-5", 1e-5), ("0.5,0.5,0.5", (0.5, 0.5, 0.5)), ("true", True)],
)
def test_encoder_arguments_are_read(text, value):
    assert cli._value(text) == value
    assert type(cli._value(text)) is type(value)


OWN = """
import numpy as np
import sigmma_sc as sg


class Diagonals(sg.Split):
    name = "diagonals"

    def groups(self, tiles, usable):
        return np.floor(tiles.origins.sum(axis=1) / tiles.side).astype(int)


sg.register_split(Diagonals())
"""


def test_a_split_of_ones_own_by_its_name(store, results, tmp_path, monkeypatch, capsys):
    from sigmma_sc.tissue.split import SPLITS

    (tmp_path / "own_split.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = ("--out", tmp_path / "out", "--epochs", 1, "--set", "cells=genes", "--cache", store.parent / "cache")
    assert run("train", store, *options, "--split", "diagonals") == 2
    assert "split='diagonals' is not one of 'auto', 'sample'" in said(capsys)
    assert run("--import", "no_module", "train", store, *options) == 2
    assert "--import no_module: No module named 'no_module'" in said(capsys)
    try:
        assert run("--import", "own_split", "train", store, *options, "--split", "diagonals") == 0
    finally:
        SPLITS.pop("diagonals", None)
        sys.modules.pop("own_split", None)
    assert json.loads((tmp_path / "out" / "model" / "model.json").read_text())["data"]["split"] == "diagonals"
    assert pd.read_csv(tmp_path / "out" / "retrieval.csv").pool.min() > 1


@pytest.mark.parametrize("what", ["file", "folder", "text inside", "other zarr", "hollow"])
@pytest.mark.parametrize("command", ["check", "register"])
def test_what_is_no_store_is_told_in_a_sentence_on_stderr(tmp_path, capsys, what, command):
    path = tmp_path / "slide.zarr"
    if what == "file":
        path.write_text("x")
    elif what == "other zarr":
        ad.AnnData(np.ones((2, 2))).write_zarr(path)
    elif what == "hollow":
        sd.SpatialData().write(path)
    else:
        path.mkdir()
    if what == "text inside":
        (path / ".zattrs").write_text("{")
    assert run(command, path) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "slide.zarr is" in printed.err
    assert "Write one with" in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Pass microns_per_pixel=0.5.", "Pass --microns-per-pixel=0.5."),
        ("layer='counts' does not exist", "--layer='counts' does not exist"),
        (
            "Pass layer=… for the raw counts, or features_key=….",
            "Pass --layer=… for the raw counts, or --features-key=….",
        ),
        ("region of image_key='a' does not exist", "region of --image='a' does not exist"),
        ("temperature=3 must be less", "--set temperature=3 must be less"),
        ("Pass overwrite=True to replace it.", "Pass --overwrite to replace it."),
        ("use a smaller tile_size, or raise min_cells=5", "use a smaller tile_size, or raise --set min_cells=5"),
        ("obs['layer']=3 and my_layer=2", "obs['layer']=3 and my_layer=2"),
    ],
)
def test_errors_name_options_of_the_command(message, words):
    assert cli.with_options(message) == words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layer", "raw"), "--layer='raw' does not exist"),
        (("--image", "he"), "--image='he' does not exist"),
        (("--sample-key", "patient"), "--sample-key='patient' does not exist"),
        (("--tile-size", "-1"), "--tile-size=-1.0 must be a positive number"),
        (("--set", "temperature=0"), "--set temperature=0 must be a positive number"),
    ],
)
def test_mistakes_are_told_by_their_option_on_stderr(store, tmp_path, capsys, arguments, words):
    assert run("train", store, "--out", tmp_path / "out", *arguments) == 2
    printed = capsys.readouterr()
    assert words in " ".join(printed.err.split())
    assert printed.out == ""
