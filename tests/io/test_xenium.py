import pickle
import warnings

import dask
import numpy as np
import pandas as pd
import pytest
import spatialdata
from spatialdata.transformations import get_transformation

import sigmma_sc as sg
from sigmma_sc import cli
from sigmma_sc.errors import CoverageWarning, MissingPackageError, RegistrationWarning, SetupError
from sigmma_sc.tissue.frame import image_levels
from sigmma_sc.tissue.setup import Setup, resolve_slides

spatialdata_io = pytest.importorskip("spatialdata_io", reason='needs pip install "sigmma-sc[io]"')

DEFAULTS = Setup("he_image", "table", "global", None, None, None, None, 128.0, (4, 2, 1))
GENES = ["EPCAM", "CXCL2", "CXCL6", "INS"]
VERSIONS = ["1.0.1", "1.6.0", "2.0.0", "3.1.0"]


def slide_of(sdata):
    return resolve_slides(sdata, DEFAULTS)[0]


def pixels_under(sdata, xy):
    x, y = np.floor(xy).astype(int).T
    return image_levels(sdata, "he_image")[0].data.compute()[:, y, x].T


def check(sdata, truth):
    """Every value of the bundle comes back: names, genes, counts, positions, µm per pixel, the cells' pixels."""
    table = sdata["table"]
    assert list(table.obs["cell_id"]) == truth.names
    assert list(table.var_names) == GENES
    np.testing.assert_array_equal(table.X.toarray(), truth.counts)
    slide = slide_of(sdata)
    np.testing.assert_allclose(slide.xy, truth.he_xy, atol=1e-3)  # polygons are stored in single precision
    assert slide.under_image.all()
    assert slide.microns_per_pixel == pytest.approx(1.7 * 0.2125, rel=1e-9)
    n = np.arange(len(truth.xy))
    np.testing.assert_array_equal(pixels_under(sdata, slide.xy), np.stack([n, 100 - n, np.full(len(n), 7)], 1))


@pytest.mark.parametrize("version", VERSIONS)
def test_bundle_of_each_version_comes_back(write_xenium, truth, version):
    sdata = sg.io.xenium(write_xenium(version))
    check(sdata, truth)
    assert set(sdata.shapes) == {"cell_circles", "cell_boundaries"}
    assert not sdata.labels
    assert not sdata.points
    assert set(sdata.images) == {"he_image"}


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_table_that_annotates_the_raster_of_cells(write_xenium, truth, version):
    """The newer default of spatialdata-io: integer keys, for which the polygons of the same cells stand in."""
    sdata = sg.io.xenium(write_xenium(version), cells_as_circles=False, cells_labels=True)
    attrs = sdata["table"].uns["spatialdata_attrs"]
    assert (attrs["region"], attrs["instance_key"]) == ("cell_labels", "cell_labels")
    assert sdata["table"].obs["cell_labels"].tolist() == list(range(1, 31))
    check(sdata, truth)


@pytest.mark.parametrize("planar", [False, True])
def test_agrees_with_spatialdata_io(write_xenium, planar):
    """Its own reader of aligned images decodes the whole plane at once; ours must place and show the same."""
    out = write_xenium("3.1.0", planar=planar)
    ours = sg.io.xenium(out)
    theirs = spatialdata_io.xenium_aligned_image(
        out / "Section_he_image.ome.tif", out / "Section_he_imagealignment.csv"
    )
    np.testing.assert_array_equal(image_levels(ours, "he_image")[0].values, theirs.values)
    a, b = (
        get_transformation(image, "global").to_affine_matrix(("x", "y"), ("x", "y"))
        for image in (ours["he_image"], theirs)
    )
    np.testing.assert_allclose(a, b, rtol=1e-12)
    np.testing.assert_array_equal(ours["he_image"]["scale0"]["image"].x, theirs.x)


@pytest.mark.parametrize("planar", [False, True])
def test_pyramid_of_the_file_is_kept_and_lazy(write_xenium, truth, planar):
    sdata = sg.io.xenium(write_xenium("2.0.0", planar=planar))
    levels = image_levels(sdata, "he_image")
    assert [level.shape for level in levels] == [(3, 600, 800), (3, 300, 400), (3, 150, 200)]
    assert list(levels[0].c.values) == ["r", "g", "b"]
    for k, level in enumerate(levels):
        assert dask.is_dask_collection(level.data)
        np.testing.assert_array_equal(level.values, np.moveaxis(truth.image[:: 2**k, :: 2**k], 2, 0))
        # Coordinates are centres in px of level 0, and the level's own transform leads to the same place.
        assert level.x.values[:2].tolist() == [2**k / 2, 3 * 2**k / 2]
        to_global = get_transformation(level, "global").to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_allclose(to_global, truth.matrix @ np.diag([2**k, 2**k, 1]), rtol=1e-12)


def test_pixels_travel_to_other_processes(write_xenium, truth):
    data = image_levels(sg.io.xenium(write_xenium("2.0.0")), "he_image")[1].data
    sent = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(sent.compute(scheduler="processes", num_workers=1), data.compute())


def test_survives_a_store(write_xenium, truth, tmp_path):
    import spatialdata

    sg.io.xenium(write_xenium("3.1.0")).write(tmp_path / "slide.zarr")
    check(spatialdata.read_zarr(tmp_path / "slide.zarr"), truth)


def test_goes_straight_into_setup(write_xenium):
    sdata = sg.io.xenium(write_xenium("3.1.0"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegistrationWarning)
        sg.SIGMMA.setup_spatialdata(sdata)


def test_commands_take_the_folder_where_a_store_is(write_xenium, truth, tmp_path, monkeypatch, capsys):
    outs = write_xenium("3.1.0")
    (he,) = outs.glob("*he_image.ome.tif")
    (alignment,) = outs.glob("*he_imagealignment.csv")
    he.rename(tmp_path / "slide.tif")
    alignment.rename(tmp_path / "matrix.csv")
    source = cli.Source(outs, tmp_path / "slide.tif", tmp_path / "matrix.csv")
    check(cli._read(source), truth)

    def told(*arguments):
        monkeypatch.setattr("sys.argv", ["sigmma-sc", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, " ".join(capsys.readouterr().err.split())

    assert told("check", outs) == (2, f"SetupError: {outs} holds no *he_image.ome.tif. Pass the H&E of the section as "
        "--he-image=…; a Xenium run only makes fluorescence images.")  # fmt: skip
    code, words = told("register", outs, "--image", "he_image")
    assert code == 2
    assert "poses are written to a SpatialData store" in words


def test_image_and_alignment_from_elsewhere(write_xenium, truth, tmp_path):
    out = write_xenium("3.1.0")
    other = tmp_path / "scanner"
    other.mkdir()
    image = (out / "Section_he_image.ome.tif").rename(other / "slide 7.tif")
    alignment = (out / "Section_he_imagealignment.csv").rename(other / "slide 7alignment.csv")
    check(sg.io.xenium(out, he_image=str(image)), truth)  # its alignment lies beside it
    matrix = alignment.rename(tmp_path / "matrix.csv")
    check(sg.io.xenium(str(out), image, matrix), truth)


def test_missing_alignment_is_said(write_xenium):
    out = write_xenium("3.1.0", alignment=False)
    with pytest.warns(RegistrationWarning, match=r"Section_he_imagealignment\.csv.*pp\.register.*he_alignment="):
        sdata = sg.io.xenium(out)
    matrix = get_transformation(sdata["he_image"], "global").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_array_equal(matrix, np.eye(3))


@pytest.mark.filterwarnings("ignore::sigmma_sc.errors.RegistrationWarning")
@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_an_image_without_alignment_can_be_registered_straight_after(write_xenium, truth, version, tmp_path):
    """Thirty cells are too few for the search, which says so and changes nothing; landmarks put the image in its place."""
    sdata = sg.io.xenium(write_xenium(version, alignment=False))
    (row,) = sg.pp.register(sdata).itertuples()
    assert (row.verdict, row.written) == ("cannot tell", False)
    assert "landmarks=" in row.advice
    some = [0, 5, 17, 24, 29]
    (row,) = sg.pp.register(sdata, landmarks=(truth.he_xy[some], truth.xy[some])).itertuples()
    assert (row.verdict, row.by, row.written) == ("registered", "landmarks", True)
    check(sdata, truth)
    sdata.write(tmp_path / "cells.zarr")
    check(spatialdata.read_zarr(tmp_path / "cells.zarr"), truth)


def test_pixel_size_is_the_run_s_own(write_xenium, truth):
    truth.xy, truth.pixel = truth.xy * 2, 0.425
    assert slide_of(sg.io.xenium(write_xenium("2.0.0"))).microns_per_pixel == pytest.approx(1.7 * 0.425)


def test_none_or_several_images(write_xenium):
    out = write_xenium("2.0.0")
    (out / "Other_he_image.ome.tif").write_bytes(b"")
    with pytest.raises(SetupError, match=r"2 files: Other_he_image.*Section_he_image.*he_image="):
        sg.io.xenium(out)
    for file in out.glob("*he_image.ome.tif"):
        file.unlink()
    with pytest.raises(SetupError, match="no .*he_image.ome.tif"):
        sg.io.xenium(out)


def test_several_alignments(write_xenium):
    out = write_xenium("2.0.0")
    for name in ("A", "B"):
        (out / f"{name}_he_imagealignment.csv").write_text((out / "Section_he_imagealignment.csv").read_text())
    sg.io.xenium(out)  # the one named after the image is meant
    (out / "Section_he_imagealignment.csv").unlink()
    with pytest.raises(SetupError, match="A_he_imagealignment.csv, B_he_imagealignment.csv.*he_alignment="):
        sg.io.xenium(out)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fixedX,fixedY,alignmentX,alignmentY\n1,2,3,4\n", "not the keypoints"),
        ("1,0\n0,1\n", "3 × 3"),
        ("1,0,0\n0,1,0\n1,0,1\n", "0,0,1"),
        ("1,2,0\n2,4,0\n0,0,1\n", "inverted"),
    ],
)
def test_alignment_that_is_none(write_xenium, text, said):
    out = write_xenium("2.0.0")
    (out / "Section_he_imagealignment.csv").write_text(text)
    with pytest.raises(SetupError, match=said):
        sg.io.xenium(out)


def test_other_bad_input(write_xenium, tmp_path, monkeypatch):
    with pytest.raises(SetupError, match="experiment.xenium"):
        sg.io.xenium(tmp_path)
    out = write_xenium("2.0.0")
    with pytest.raises(SetupError, match="he_alignment='nowhere.csv'"):
        sg.io.xenium(out, he_alignment="nowhere.csv")
    with pytest.raises(SetupError, match="aligned_images"):
        sg.io.xenium(out, aligned_images=True)
    import tifffile

    tifffile.imwrite(tmp_path / "dapi.tif", np.zeros((64, 64), np.uint16))
    with pytest.raises(SetupError, match="fluorescence"):
        sg.io.xenium(out, tmp_path / "dapi.tif", out / "Section_he_imagealignment.csv")
    monkeypatch.setattr("sigmma_sc._checks.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r'pip install "sigmma-sc\[io\]"'):
        sg.io.xenium(out)


@pytest.mark.parametrize("cells", [(7,), (0, 29), (3, 4, 5)])
@pytest.mark.parametrize("version", ["1.6.0", "2.0.0", "3.1.0"])
def test_polygons_of_too_few_vertices_are_left_out_and_named(write_xenium, truth, version, cells):
    out = write_xenium(version)
    rows = pd.read_parquet(out / "cell_boundaries.parquet")
    per_cell = len(rows) // 30
    lost = [cell * per_cell + vertex for cell in cells for vertex in range(2, per_cell)]
    rows.drop(index=lost).reset_index(drop=True).to_parquet(out / "cell_boundaries.parquet")
    with pytest.warns(
        CoverageWarning, match=rf"cell_boundaries\.parquet: {len(cells)} cells .*{truth.names[cells[0]]}"
    ):
        sdata = sg.io.xenium(out)
    check(sdata, truth)
    kept = [name for k, name in enumerate(truth.names) if k not in cells]
    boundaries = sdata["cell_boundaries"]
    assert boundaries.index.tolist() == kept
    centres = np.column_stack([boundaries.centroid.x, boundaries.centroid.y])
    np.testing.assert_allclose(centres, np.delete(truth.xy, cells, axis=0), atol=1e-3)
    placed = [get_transformation(sdata[name]).to_affine_matrix(("x", "y"), ("x", "y")) for name in sdata.shapes]
    np.testing.assert_allclose(placed[0], placed[1])


@pytest.mark.parametrize("name", ["cell_boundaries.parquet", "nucleus_boundaries.parquet"])
def test_files_that_alignment_does_not_need_may_be_missing(write_xenium, truth, name):
    out = write_xenium("3.1.0")
    (out / name).unlink()
    sdata = sg.io.xenium(out)
    check(sdata, truth)
    assert ("cell_boundaries" in sdata.shapes) == (name != "cell_boundaries.parquet")


@pytest.mark.parametrize("name", ["cells.parquet", "cell_feature_matrix.h5", "cells.zarr.zip"])
def test_files_that_hold_the_cells_are_named_if_they_are_missing(write_xenium, name):
    out = write_xenium("3.1.0")
    (out / name).unlink()
    with pytest.raises(SetupError, match=f"no file {name}"):
        sg.io.xenium(out)


def test_a_file_that_was_asked_for_is_named_if_it_is_missing(write_xenium):
    with pytest.raises(SetupError, match="transcripts"):
        sg.io.xenium(write_xenium("3.1.0"), transcripts=True)


@pytest.mark.parametrize("text", ["", "[]", '{"pixel_size": "0.2"}', '{"pixel_size": -1}', "{}", '{"pixel_size": NaN}'])
def test_a_run_without_a_pixel_size_is_refused(write_xenium, text):
    out = write_xenium("3.1.0")
    (out / "experiment.xenium").write_text(text)
    with pytest.raises(SetupError, match=r"experiment\.xenium.*Copy it from the output of the run"):
        sg.io.xenium(out)


@pytest.mark.parametrize(
    "name",
    ["Section_he_image_matrix.csv", "Section_he_image_alignment_files/matrix.csv", "Other_he_image_matrix.csv"],
)
@pytest.mark.parametrize("beside", [False, True])
def test_alignment_as_xenium_explorer_names_it(write_xenium, truth, tmp_path, name, beside):
    out = write_xenium("3.1.0")
    place = out
    image = None
    if beside:
        place = tmp_path / "scanner"
        place.mkdir()
        image = (out / "Section_he_image.ome.tif").rename(place / "Section_he_image.ome.tif")
    (place / name).parent.mkdir(exist_ok=True)
    (out / "Section_he_imagealignment.csv").rename(place / name)
    check(sg.io.xenium(out, he_image=image), truth)
