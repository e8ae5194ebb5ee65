"""Objects as users bring them: several at once, subsets, settings of their own, tables that say less than they should."""

import json

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import sigmma_sc as sg
from sigmma_sc import SIGMMA
from sigmma_sc.errors import MissingKeyError, SetupError
from sigmma_sc.tissue.setup import Setup, slides_of, totals_of

REGIONS = ("slide1_cell_circles", "slide2_cell_circles")
IMAGES = dict(zip(REGIONS, ("slide1_he_image", "slide2_he_image"), strict=True))
SYSTEMS = dict(zip(REGIONS, ("slide1", "slide2"), strict=True))


@pytest.fixture(scope="module")
def made():
    """Two slides in one object; tests take a copy."""
    return sg.datasets.simulate_tissue(n_cells=150, n_slides=2, seed=0, microns_per_pixel=1.0)


@pytest.fixture(autouse=True)
def unregistered(monkeypatch):
    """Setups are tested here, not the look at the nuclei that each of them takes."""
    monkeypatch.setattr("sigmma_sc.model.warn_unregistered", lambda slide: None)


@pytest.fixture
def sdata(made):
    return SpatialData(
        images=dict(made.images), shapes=dict(made.shapes), tables={"table": made["table"].copy()}, attrs={}
    )


def part(sdata, region):
    """One slide of two, as an object of its own."""
    alone = sdata.subset([region, IMAGES[region]])
    return SpatialData(
        images=dict(alone.images), shapes=dict(alone.shapes), tables={"table": alone["table"].copy()}, attrs={}
    )


def set_up(sdata, **changed):
    SIGMMA.setup_spatialdata(sdata, **{"image_key": IMAGES, "coordinate_system": SYSTEMS, "tile_size": 64, **changed})


def names(tissue):
    return [slide.name for slide in slides_of(tissue)]


# Several objects


def test_images_by_region_go_to_the_object_that_has_the_region(sdata):
    objects = {"a": part(sdata, REGIONS[0]), "b": part(sdata, REGIONS[1])}
    sizes = dict(zip(REGIONS, (1.0, 1.1), strict=True))
    set_up(objects, microns_per_pixel=sizes)
    for one, region in zip(objects.values(), REGIONS, strict=True):
        assert one.attrs["sigmma"]["image_key"] == {region: IMAGES[region]}
        assert one.attrs["sigmma"]["microns_per_pixel"] == {region: sizes[region]}
    assert names(objects) == [f"a/{REGIONS[0]}", f"b/{REGIONS[1]}"]
    with pytest.raises(MissingKeyError, match="region of image_key='elsewhere' does not exist"):
        set_up(objects, image_key={**IMAGES, "elsewhere": "he"})


@pytest.mark.parametrize("before", [None, {"tile_size": 32}])
@pytest.mark.parametrize("wrong", ["image", "layer", "rows"])
def test_a_setup_that_fails_at_the_second_object_leaves_both_as_they_were(sdata, before, wrong):
    objects = {"a": part(sdata, REGIONS[0]), "b": part(sdata, REGIONS[1])}
    if before is not None:
        set_up(objects, **before)
    stored = [json.dumps(one.attrs) for one in objects.values()]
    changed = {}
    if wrong == "image":
        del objects["b"].images[IMAGES[REGIONS[1]]]
    elif wrong == "layer":
        objects["a"]["table"].layers["counts"] = objects["a"]["table"].X.copy()
        changed["layer"] = "counts"
    else:
        objects["b"]["table"].obs.loc[objects["b"]["table"].obs_names[3], "region"] = np.nan
    with pytest.raises((SetupError, MissingKeyError)):
        set_up(objects, **changed)
    assert [json.dumps(one.attrs) for one in objects.values()] == stored


def test_one_object_under_two_names_is_refused(sdata):
    one = part(sdata, REGIONS[0])
    with pytest.raises(SetupError, match=r"sdata\['a'\] and sdata\['b'\] are the same object"):
        set_up({"a": one, "b": one})


# Settings of each object


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {},
            "'b/slide2_cell_circles' was set up with features_key=None, and 'a/slide1_cell_circles' with features_key='X_a'",
        ),
        ({"X_b": 4}, "features_key='X_b'.*features_key='X_a'"),
        (
            {"X_a": 5},
            r"obsm\['X_a'\] of slide 'b/slide2_cell_circles' has shape \('n', 5\), and of 'a/slide1_cell_circles' \('n', 4\)",
        ),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_features_that_cannot_be_joined_are_named_with_object_and_key(sdata, encoder, second, message, turned):
    objects = {"a": part(sdata, REGIONS[0]), "b": part(sdata, REGIONS[1])}
    for one, widths in zip(objects.values(), ({"X_a": 4}, second), strict=True):
        for key, width in widths.items():
            one["table"].obsm[key] = np.ones((one["table"].n_obs, width), np.float32)
        set_up(
            one,
            image_key=next(iter(one.images)),
            coordinate_system=one.coordinate_systems[0],
            features_key=next(iter(widths), None),
        )
    if turned:
        with pytest.raises(SetupError, match="a/slide1_cell_circles|X_a"):
            SIGMMA(dict(reversed(objects.items())), encoder())
        return
    with pytest.raises(SetupError, match=message):
        SIGMMA(objects, encoder())


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (lambda n: np.ones((n, 3)), "is the same for every cell"),
        (lambda n: np.ones((n, 3), complex), "type complex128"),
        (lambda n: np.full((n, 3), "a"), "type <U1"),
        (lambda n: pd.DataFrame({"a": ["x"] * n, "b": 1.0}), "type object"),
    ],
)
def test_embeddings_that_say_nothing_are_refused(sdata, encoder, matrix, message):
    one = part(sdata, REGIONS[0])
    values = matrix(one["table"].n_obs)
    one["table"].obsm["X_odd"] = values.set_axis(one["table"].obs_names) if hasattr(values, "set_axis") else values
    set_up(one, image_key=IMAGES[REGIONS[0]], coordinate_system="slide1", features_key="X_odd")
    with pytest.raises(SetupError, match=rf"obsm\['X_odd'\].*{message}"):
        SIGMMA(one, encoder(), n_latent=4).train(max_epochs=1, split="none", enable_progress_bar=False)


# Subsets


@pytest.mark.parametrize("how", ["subset", "filter", "box"])
def test_a_subset_has_the_setup_of_the_regions_it_holds(sdata, encoder, how):
    set_up(sdata)
    if how == "subset":
        some = sdata.subset([REGIONS[1], IMAGES[REGIONS[1]]])
    elif how == "filter":
        some = sdata.filter_by_coordinate_system("slide2")
    else:
        some = sdata.query.bounding_box(("x", "y"), [-1e5, -1e5], [1e5, 1e5], target_coordinate_system="slide2")
    assert names(some) == [REGIONS[1]]
    assert [slide.name for slide in SIGMMA(some, encoder())._slides] == [REGIONS[1]]


def test_settings_of_a_subset_are_its_own(sdata):
    set_up(sdata)
    some = sdata.subset([REGIONS[1], IMAGES[REGIONS[1]]])
    set_up(some, image_key=IMAGES[REGIONS[1]], coordinate_system="slide2", tile_size=32)
    assert (sdata.attrs["sigmma"]["tile_size"], some.attrs["sigmma"]["tile_size"]) == (64, 32)
    assert names(sdata) == list(REGIONS)


def test_an_object_that_lost_its_image_says_to_set_it_up_again(sdata):
    set_up(sdata)
    some = sdata.subset(["table", *REGIONS, IMAGES[REGIONS[0]]])
    with pytest.raises(
        MissingKeyError, match=r"'slide2_he_image' does not exist.*SIGMMA.setup_spatialdata\(sdata\) to set it up again"
    ):
        names(some)


def test_an_object_set_up_anew_no_longer_fits_its_model(sdata, encoder):
    set_up(sdata)
    model = SIGMMA(sdata, encoder())
    for changed, what in (
        ({"tile_size": 32}, "tile_size is 32, and 64 in the model"),
        ({"grids": (2, 1)}, r"grids is \(2, 1\)"),
        ({"microns_per_pixel": 0.5}, "now has 0.5 µm per pixel"),
    ):
        set_up(sdata, **changed)
        with pytest.raises(SetupError, match=what):
            model.train(max_epochs=1)
        with pytest.raises(SetupError, match=what):
            model.resolve()


# Stored setups


@pytest.mark.parametrize(
    ("numbers", "plain"),
    [
        ({"tile_size": np.int64(64)}, {"tile_size": 64}),
        ({"tile_size": np.float32(64)}, {"tile_size": 64.0}),
        ({"tile_size": np.array(64.0)}, {"tile_size": 64.0}),
        ({"grids": np.array([4, 2, 1])}, {"grids": [4, 2, 1]}),
        ({"grids": [np.int8(2), 1]}, {"grids": [2, 1]}),
        (
            {"microns_per_pixel": {region: np.float32(0.5) for region in REGIONS}},
            {"microns_per_pixel": dict.fromkeys(REGIONS, 0.5)},
        ),
    ],
)
def test_numbers_of_numpy_are_stored_as_plain_ones(sdata, numbers, plain):
    set_up(sdata, **numbers)
    stored = json.loads(json.dumps(sdata.attrs["sigmma"]))
    assert {name: stored[name] for name in plain} == plain


@pytest.mark.parametrize(
    "broken",
    [
        lambda s: "1.0",
        lambda s: [],
        lambda s: {"made by": "another tool"},
        lambda s: {k: v for k, v in s.items() if k != "layer"},
        lambda s: {**s, "resolution": 1},
        lambda s: {**s, "tile_size": -64},
        lambda s: {**s, "grids": [1, 2, 4]},
        lambda s: {**s, "grids": 4},
        lambda s: {**s, "image_key": None},
        lambda s: {**s, "microns_per_pixel": "half"},
        lambda s: {**s, "table_key": 3},
    ],
)
def test_a_stored_setup_of_another_version_or_tool_is_refused_and_can_be_renewed(sdata, broken):
    set_up(sdata)
    sdata.attrs["sigmma"] = broken(sdata.attrs["sigmma"])
    with pytest.raises(
        SetupError, match=r"attrs\['sigmma'\].*Call SIGMMA.setup_spatialdata\(sdata\) to set the object up again"
    ):
        slides_of(sdata)
    set_up(sdata)
    assert len(slides_of(sdata)) == 2


def test_a_setup_survives_json():
    setup = Setup.of(
        image_key="he", table_key=None, coordinate_system="global", layer=None, features_key=None, sample_key=None,
        microns_per_pixel=0.5, tile_size=np.float64(128), grids=np.array([2, 1]),
    )  # fmt: skip
    assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup


# Tables


@pytest.mark.parametrize("keys", ["text", "categories", "numbers"])
def test_two_rows_of_one_cell_are_refused(sdata, keys):
    table = sdata["table"]
    column = table.obs["cell_id"].astype(object)
    column.iloc[7] = column.iloc[3]
    table.obs["cell_id"] = column.astype("category") if keys == "categories" else column
    if keys == "numbers":
        table.obs["cell_id"] = [5, 5, *range(10, 10 + table.n_obs - 2)]
    with pytest.raises(SetupError, match=r"obs\['cell_id'\] repeats: 2 rows are cell"):
        set_up(sdata)


@pytest.mark.parametrize("region", [np.nan, "elsewhere"])
def test_rows_of_no_region_are_named(sdata, region):
    table = sdata["table"]
    table.obs["region"] = table.obs["region"].astype(object)
    table.obs.loc[table.obs_names[3], "region"] = region
    with pytest.raises(SetupError, match=f"1 rows of table 'table' are of no region, e.g. '{table.obs_names[3]}'"):
        set_up(sdata)


@pytest.mark.parametrize("dtype", [object, "category", "string"])
@pytest.mark.parametrize("missing", ["nan", "None", "<NA>", " NaN ", ""])
def test_donors_that_are_missing_values_as_text_are_refused(sdata, missing, dtype):
    donors = pd.Series(["d1"] * sdata["table"].n_obs, index=sdata["table"].obs_names, dtype=object)
    donors.iloc[:9] = missing
    sdata["table"].obs["donor"] = donors.astype(dtype)
    with pytest.raises(
        SetupError, match=r"obs\['donor'\] names 9 cells of 'slide1_cell_circles' by .* a missing value"
    ):
        set_up(sdata, sample_key="donor")


@pytest.mark.parametrize("dtype", [object, "category", "string", "str"])
def test_missing_donors_stay_missing_in_every_type_of_column(sdata, dtype):
    table = sdata["table"]
    donors = pd.Series([f"d{k % 2}" for k in range(table.n_obs)], index=table.obs_names, dtype=object)
    donors.iloc[:9] = None
    # In pandas 2, "str" makes text of missing values, which is refused above.
    if dtype == "str" and int(pd.__version__.split(".")[0]) < 3:
        pytest.skip("pandas 2 has no text columns with missing values by this name")
    table.obs["donor"] = donors.astype(dtype)
    set_up(sdata, sample_key="donor")
    first, second = slides_of(sdata)
    assert first.samples == second.samples == ["d0", "d1"]
    assert (first.cell_samples == "").sum() == 9
    table.obs["donor"] = pd.Series([None] * table.n_obs, index=table.obs_names, dtype=object).astype(dtype)
    with pytest.raises(SetupError, match=r"obs\['donor'\] names no sample of the cells of 'slide1_cell_circles'"):
        set_up(sdata, sample_key="donor")


@pytest.mark.parametrize("spoil", ["pop", "text", "keys", "column"])
def test_a_table_without_its_annotation_says_how_to_parse_it(sdata, spoil):
    table = sdata["table"]
    if spoil == "pop":
        del table.uns["spatialdata_attrs"]
    elif spoil == "text":
        table.uns["spatialdata_attrs"] = "slide1_cell_circles"
    elif spoil == "keys":
        del table.uns["spatialdata_attrs"]["region_key"]
    else:
        del table.obs["cell_id"]
    with pytest.raises((SetupError, MissingKeyError), match="TableModel.parse"):
        set_up(sdata)


def test_a_table_of_features_alone_has_no_totals(sdata):
    table = sdata["table"]
    table.obsm["X_mine"] = np.random.default_rng(0).normal(size=(table.n_obs, 3))
    set_up(sdata, features_key="X_mine")
    slide = slides_of(sdata)[0]
    assert totals_of(slide)(np.arange(3)).tolist() == table.X[slide.rows[:3]].sum(axis=1).ravel().tolist()[0]
    table.X = None
    assert totals_of(slides_of(sdata)[0]) is None
