import copy
import re
import shutil
import subprocess

import numpy as np
import pytest

import sigmma_sc as sg
from sigmma_sc.errors import ExistsError, MissingKeyError, NotTrainedError, SetupError

SCALES = ("micro", "meso", "macro")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    sdata, model = run
    return sg.report(model, sdata, tmp_path_factory.mktemp("report") / "new" / "report.html", groupby="kind")


@pytest.fixture(scope="module")
def page(file, page_of):
    return page_of(file.read_text(encoding="utf-8"))


def test_arrays_are_those_of_the_table(run, page, decode):
    sdata, model = run
    (slide,) = model.resolve()
    table = sdata["table"]
    (shown,) = page.json["slides"]
    cells = shown["cells"]
    rows = decode(cells["row"])
    np.testing.assert_array_equal(rows, slide.rows[slide.under_image])
    at = decode(cells["at"]).reshape(-1, 2) / 65_535 * (slide.width, slide.height)
    np.testing.assert_allclose(at, slide.xy[slide.under_image], atol=slide.width / 65_535)
    for scale in SCALES:
        labels = table.obs[f"sigmma_niche_{scale}"]
        (names,) = ([n["name"] for n in s["niches"]] for s in page.json["scales"] if s["name"] == scale)
        assert names == list(labels.cat.categories)
        codes = labels.cat.codes.to_numpy(int)[rows]
        np.testing.assert_array_equal(decode(cells["niche"][scale]), np.where(codes < 0, 255, codes))
        percent = decode(cells["confidence"][scale])
        share = table.obs[f"sigmma_niche_{scale}_confidence"].to_numpy()[rows]
        np.testing.assert_array_equal(percent == 255, np.isnan(share))
        assert np.nanmax(np.abs(percent / 100 - share)[percent < 255]) <= 0.005 + 1e-6
    gene = decode(cells["gene"]).reshape(len(rows), -1)[:, 0]
    counts = decode(cells["counts"]).reshape(len(rows), -1)[:, 0]
    expressed = gene < table.n_vars
    matrix = table.X.toarray()[rows]
    np.testing.assert_array_equal(matrix[expressed, gene[expressed]], counts[expressed])
    assert page.json["genes"] == list(table.var_names)
    roles = decode(shown["tiles"]["role"])
    assert len(roles) == sdata["sigmma_tiles"].n_obs


def test_nothing_is_asked_of_any_host(page):
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "action", "poster", "srcset"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)


def test_sections_are_whole(page):
    ids = {attributes.get("id") for _, attributes in page.elements}
    sections = {"map", "niches", "nesting", "tissue", "registration", "training", "retrieval", "genes", "settings"}
    assert sections <= ids
    words = " ".join(page.texts)
    assert "micro in meso" in words
    assert "700 cells on 1 slide; niches: 5 micro, 4 meso, 3 macro" in words


def test_files_are_replaced_only_when_asked(run, file):
    sdata, model = run
    with pytest.raises(ExistsError, match="overwrite=True"):
        sg.report(model, sdata, file)
    with pytest.raises(ExistsError, match="is a folder"):
        sg.report(model, sdata, file.parent, overwrite=True)
    before = file.read_bytes()
    with pytest.raises(MissingKeyError, match="groupby='nope'"):
        sg.report(model, sdata, file, groupby="nope", overwrite=True)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("remove", "error", "words"),
    [
        (lambda own: own["table"].obs.drop(columns="sigmma_niche_meso", inplace=True), MissingKeyError, "sg.tl.niches"),
        (lambda own: own.tables.pop("sigmma_tiles"), MissingKeyError, "write_embeddings"),
        (lambda own: own["sigmma_tiles"].obsm.pop("image_meso"), MissingKeyError, "write_embeddings"),
        (lambda own: own["sigmma_tiles"].obsm.update(image_meso=np.ones((own["sigmma_tiles"].n_obs, 3))), SetupError, "width 3"),
    ],
)  # fmt: skip
def test_what_is_missing_names_the_call(run, tmp_path, remove, error, words):
    import spatialdata as sd

    sdata, model = run
    tables = {name: table.copy() for name, table in sdata.tables.items()}
    own = sd.SpatialData(dict(sdata.images), shapes=dict(sdata.shapes), tables=tables, attrs=copy.deepcopy(sdata.attrs))
    remove(own)
    with pytest.raises(error, match=words):
        sg.report(model, own, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_the_record_of_a_registration_is_shown(run, tmp_path, page_of):
    import spatialdata as sd

    sdata, model = run
    own = sd.SpatialData(
        dict(sdata.images), shapes=dict(sdata.shapes), tables=dict(sdata.tables), attrs=copy.deepcopy(sdata.attrs)
    )
    record = {"setup": model.setup.to_json(), "matrix": None, "poses": [], "residuals": [], "written": False}
    own.attrs["sigmma_registration"] = {"cell_circles": {**record, "verdict": "<i>uncertain</i>", "error": 3.25}}
    page = page_of(sg.report(model, own, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "<i>uncertain</i>" in page.texts
    assert "3.25" in page.texts
    pictures = [attributes["src"] for tag, attributes in page.elements if "registration" in attributes.get("alt", "")]
    assert [picture[:21] for picture in pictures] == ["data:image/png;base64"]


def test_a_model_must_be_trained_and_the_object_be_one(run, tmp_path, encoder):
    sdata, model = run
    with pytest.raises(NotTrainedError):
        sg.report(sg.SIGMMA(sdata, encoder(), n_latent=8), sdata, tmp_path / "r.html")
    with pytest.raises(SetupError, match="Pass one of them"):
        sg.report(model, {"a": sdata}, tmp_path / "r.html")


@pytest.mark.slow
def test_the_map_is_drawn_in_a_browser(file, tmp_path):
    """The script runs under the page's policy: it fills the legend, which the HTML leaves empty."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
    )
    command = [
        CHROMIUM,
        *flags,
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=5000",
        "--dump-dom",
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    legend = re.search(r'<ul id="legend".*?</ul>', done.stdout, re.S)[0]
    assert legend.count("<button") == 5
    assert "&lt;b&gt;n&lt;/b&gt;" in legend
    width = re.search(r'<canvas id="canvas"[^>]* width="(\d+)"', done.stdout)
    assert int(width[1]) > 300
