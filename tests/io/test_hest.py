import json
import warnings
import zipfile

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely

import sigmma_sc as sg
from sigmma_sc.errors import (
    CoverageWarning,
    MissingKeyError,
    MissingPackageError,
    PixelSizeError,
    RegistrationWarning,
    SetupError,
)
from sigmma_sc.io.hest import count_transcripts
from sigmma_sc.tissue.frame import image_levels
from sigmma_sc.tissue.setup import Setup, resolve_slides

DEFAULTS = Setup("he_image", "table", "global", None, None, None, None, 128.0, (4, 2, 1))
GENES = ["CXCL2", "CXCL6", "EPCAM", "INS"]
COLUMNS = [1, 2, 0, 3]  # of the truth, in the order of GENES


def check(sdata, truth):
    """Every value of the sample comes back, whatever the order of the polygons; returns which cells there are."""
    table = sdata["table"]
    place = {str(name): k for k, name in enumerate(truth.names)}
    cells = np.array([place[name] for name in table.obs["cell_id"]])
    assert list(table.obs_names) == list(table.obs["cell_id"])
    assert list(table.var_names) == GENES
    np.testing.assert_array_equal(table.X.toarray(), truth.counts[cells][:, COLUMNS])
    slide = resolve_slides(sdata, DEFAULTS)[0]
    np.testing.assert_allclose(slide.xy, truth.he_xy[cells], atol=1e-6)
    assert slide.microns_per_pixel == pytest.approx(truth.microns, rel=1e-12)
    np.testing.assert_allclose(table.obsm["spatial"], truth.he_xy[cells] * truth.microns, atol=1e-6)
    x, y = np.floor(slide.xy).astype(int).T
    under = image_levels(sdata, "he_image")[0].data.compute()[:, y, x].T
    np.testing.assert_array_equal(under, np.stack([cells, 100 - cells, np.full(len(cells), 7)], 1))
    return cells


@pytest.mark.parametrize("numbered", [False, True])
def test_sample_comes_back_as_single_cells(write_hest, truth, numbered):
    sdata = sg.io.hest(write_hest(numbered=numbered), "TENX95")
    assert sorted(check(sdata, truth)) == list(range(30))  # the cell without transcripts too
    assert sdata["table"].obs["patient"].unique().tolist() == ["Patient 1"]
    assert sdata["table"].obs["sample"].unique().tolist() == ["TENX95"]
    assert sdata.attrs["hest"]["organ"] == "Pancreas"
    assert sdata.attrs["hest"]["treatment_comment"] is None
    np.testing.assert_allclose(sdata["cell_boundaries"].area, (6 * truth.microns) ** 2)


def test_names_are_plain_objects(write_hest):
    """Else a store written with pandas 3 can be read, but not written again, by anndata 0.12."""
    sdata = sg.io.hest(write_hest(), "TENX95")
    table = sdata["table"]
    categories = [column.cat.categories for _, column in table.obs.items() if column.dtype == "category"]
    assert len(categories) == 3
    for names in (table.obs_names, table.var_names, sdata["cell_boundaries"].index, table.obs["cell_id"], *categories):
        assert names.dtype == object


def test_polygons_without_names(write_hest, truth):
    """The GeoJSON does not say whose a polygon is; the transcripts in it do."""
    sdata = sg.io.hest(write_hest(geojson=True), "TENX95")
    assert sorted(check(sdata, truth)) == [k for k in range(30) if truth.counts[k].sum()]


def test_pyramid_of_the_slide_is_kept(write_hest, truth):
    sdata = sg.io.hest(write_hest(), "TENX95")
    for k, level in enumerate(image_levels(sdata, "he_image")):
        np.testing.assert_array_equal(level.values, np.moveaxis(truth.image[:: 2**k, :: 2**k], 2, 0))
    assert k == 2


def test_counts_against_pandas(tmp_path, rng):
    """Many rows, several row groups, names as bytes, ``is_gene`` as newer versions write it."""
    n = 20_000
    frame = pd.DataFrame(
        {
            "cell_id": rng.choice([b"aaaa-1", b"aaab-1", b"UNASSIGNED"], n),
            "feature_name": rng.choice([b"A", b"B", b"Intergenic_Region_7", b"UnassignedCodeword_0001", b"Odd"], n),
            "qv": rng.uniform(0, 40, n).astype("f4"),
        }
    )
    frame["is_gene"] = frame.feature_name.isin([b"A", b"B"])
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=999)
    got = count_transcripts(tmp_path / "t.parquet").set_index(["cell_id", "feature_name"]).n.sort_index()
    text = frame.assign(cell_id=frame.cell_id.str.decode("utf-8"), feature_name=frame.feature_name.str.decode("utf-8"))
    kept = text[(text.qv >= 20) & text.feature_name.isin(["A", "B"]) & (text.cell_id != "UNASSIGNED")]
    expected = kept.groupby(["cell_id", "feature_name"]).size()
    assert got.to_dict() == expected.to_dict()
    assert len(got) == 4


def test_goes_straight_into_setup_and_through_a_store(write_hest, truth, tmp_path):
    import spatialdata

    sdata = sg.io.hest(write_hest(), "TENX95")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegistrationWarning)
        sg.SIGMMA.setup_spatialdata(sdata)
    sdata.write(tmp_path / "slide.zarr")
    again = spatialdata.read_zarr(tmp_path / "slide.zarr")
    check(again, truth)
    assert again.attrs["hest"] == sdata.attrs["hest"]


@pytest.mark.parametrize("microns", [0.2125, 0.1372, 1.09])
def test_pixel_size_of_each_sample(write_hest, microns):
    """Also that of the morphology image, where HEST had no alignment to apply, and above one."""
    folder = write_hest(pixel_size_um_estimated=microns, pixel_size_um_embedded=9.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegistrationWarning)
        sdata = sg.io.hest(folder, "TENX95")
        assert resolve_slides(sdata, DEFAULTS)[0].microns_per_pixel == pytest.approx(microns, rel=1e-12)


def test_pixel_size_where_only_the_scanner_states_one(write_hest):
    folder = write_hest(pixel_size_um_estimated=float("nan"), pixel_size_um_embedded=0.3)
    assert resolve_slides(sg.io.hest(folder, "TENX95"), DEFAULTS)[0].microns_per_pixel == pytest.approx(0.3)
    with pytest.raises(PixelSizeError, match="pixel_size_um_estimated"):
        sg.io.hest(write_hest(pixel_size_um_estimated=None), "TENX95")


def test_missing_files_are_named(write_hest, tmp_path):
    with pytest.raises(MissingKeyError, match="metadata/TENX1.json.*MahmoodLab/hest"):
        sg.io.hest(tmp_path, "TENX1")
    folder = write_hest()
    (folder / "xenium_seg/TENX95_xenium_cell_seg.parquet").unlink()
    with pytest.raises(MissingKeyError, match=r"cell_seg\.parquet or .*cell_seg\.geojson\.zip"):
        sg.io.hest(folder, "TENX95")
    folder = write_hest(st_technology="Visium")
    (folder / "transcripts/TENX95_transcripts.parquet").unlink()
    with pytest.raises(MissingKeyError, match="is Visium: only Xenium"):
        sg.io.hest(folder, "TENX95")


def test_polygons_of_another_sample(write_hest):
    import geopandas

    folder = write_hest()
    file = folder / "xenium_seg/TENX95_xenium_cell_seg.parquet"
    frame = geopandas.read_parquet(file)
    frame.iloc[:-2].to_parquet(file)
    with pytest.warns(CoverageWarning, match=r"2 of 29 cells"):
        assert sg.io.hest(folder, "TENX95")["table"].n_obs == 28
    frame.iloc[[0, 1, 1]].to_parquet(file)
    with pytest.raises(SetupError, match="several polygons"):
        sg.io.hest(folder, "TENX95")
    frame.set_axis([f"x{k}" for k in range(len(frame))]).to_parquet(file)
    with pytest.raises(SetupError, match="different samples"):
        sg.io.hest(folder, "TENX95")


def test_other_bad_input(write_hest, monkeypatch):
    folder = write_hest()
    file = folder / "transcripts/TENX95_transcripts.parquet"
    pd.read_parquet(file).drop(columns="qv").to_parquet(file)
    with pytest.raises(MissingKeyError, match="no column qv"):
        sg.io.hest(folder, "TENX95")
    monkeypatch.setattr("sigmma_sc._checks.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r'pip install "sigmma-sc\[io\]"'):
        sg.io.hest(folder, "TENX95")


@pytest.mark.parametrize("missing", [None, float("nan"), "UNASSIGNED"])
def test_transcripts_without_a_cell_or_a_gene_are_not_counted(write_hest, truth, missing):
    folder = write_hest()
    file = folder / "transcripts/TENX95_transcripts.parquet"
    rows = pd.read_parquet(file)
    stray = rows.head(5).assign(cell_id=None if missing != missing else missing)
    nameless = rows.head(5).assign(feature_name=None)
    pd.concat([rows, stray, nameless]).to_parquet(file)
    assert sorted(check(sg.io.hest(folder, "TENX95"), truth)) == list(range(30))


@pytest.mark.parametrize("named", ["transcripts", "polygons", "both"])
def test_numbers_of_cells_that_became_floats_beside_missing_ones(write_hest, truth, named):
    folder = write_hest(numbered=True)
    if named != "polygons":
        file = folder / "transcripts/TENX95_transcripts.parquet"
        rows = pd.read_parquet(file)
        stray = rows.head(3).assign(cell_id=float("nan"))
        pd.concat([rows.assign(cell_id=rows.cell_id.astype(float)), stray]).to_parquet(file)
    if named != "transcripts":
        file = folder / "xenium_seg/TENX95_xenium_cell_seg.parquet"
        frame = geopandas.read_parquet(file)
        extra = frame.head(2).assign(cell_id=float("nan"))
        frame = frame.assign(cell_id=frame.index.astype(float))
        pd.concat([frame, extra]).reset_index(drop=True).to_parquet(file)
    assert sorted(check(sg.io.hest(folder, "TENX95"), truth)) == list(range(30))


@pytest.mark.parametrize("geojson", [False, True])
@pytest.mark.parametrize("kind", ["collection", "multipolygon", "nested"])
def test_geometries_of_more_than_a_polygon_keep_the_polygon(write_hest, truth, geojson, kind):
    line = shapely.LineString([(1, 1), (2, 2)])

    def wrapped(polygon):
        if kind == "multipolygon":
            return shapely.MultiPolygon([polygon])
        inner = shapely.GeometryCollection([polygon, line]) if kind == "nested" else polygon
        return shapely.GeometryCollection([line, inner, shapely.Point(0, 0)])

    folder = write_hest(geojson=geojson)
    place = folder / "xenium_seg/TENX95_xenium_cell_seg"
    if geojson:
        features = [
            {"type": "Feature", "geometry": shapely.geometry.mapping(wrapped(one))} for one in squares_of(truth)
        ]
        features += [{"type": "Feature", "geometry": None}]
        with zipfile.ZipFile(f"{place}.geojson.zip", "w") as archive:
            archive.writestr(f"{place.name}.geojson", json.dumps({"features": features}))
    else:
        frame = geopandas.read_parquet(f"{place}.parquet")
        frame.geometry = [wrapped(one) for one in frame.geometry]
        frame.to_parquet(f"{place}.parquet")
    found = sorted(check(sg.io.hest(folder, "TENX95"), truth))
    assert found == [k for k in range(30) if truth.counts[k].sum() or not geojson]


def squares_of(truth):
    return [shapely.box(x - 3, y - 3, x + 3, y + 3) for x, y in truth.he_xy]


def test_cells_whose_geometry_has_no_area_are_left_out(write_hest, truth):
    folder = write_hest()
    file = folder / "xenium_seg/TENX95_xenium_cell_seg.parquet"
    frame = geopandas.read_parquet(file)
    odd = [None, shapely.Polygon(), shapely.GeometryCollection([shapely.Point(0, 0)])]
    frame.geometry = [*odd, *frame.geometry[3:]]
    frame.to_parquet(file)
    with pytest.warns(CoverageWarning, match="have no polygon"):
        assert len(check(sg.io.hest(folder, "TENX95"), truth)) == 27


@pytest.mark.parametrize("text", ["0.2125", " 0.2125 ", "2.125e-1"])
def test_a_pixel_size_written_as_text(write_hest, text):
    sdata = sg.io.hest(write_hest(pixel_size_um_estimated=text), "TENX95")
    assert resolve_slides(sdata, DEFAULTS)[0].microns_per_pixel == pytest.approx(0.2125, rel=1e-12)


@pytest.mark.parametrize("value", ["half", "0.2125 µm", [0.2], True, -0.5, 0])
def test_a_pixel_size_that_is_none_is_named(write_hest, value):
    with pytest.raises(PixelSizeError, match="pixel_size_um_estimated is "):
        sg.io.hest(write_hest(pixel_size_um_estimated=value), "TENX95")


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_metadata_that_are_none_are_named(write_hest, text):
    folder = write_hest()
    (folder / "metadata/TENX95.json").write_text(text)
    with pytest.raises(SetupError, match=r"metadata/TENX95\.json"):
        sg.io.hest(folder, "TENX95")
