import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import spatialdata as sd
from spatialdata.transformations import Affine, Identity, Sequence, get_transformation, set_transformation

import sigmma_sc as sg
from sigmma_sc import SIGMMA
from sigmma_sc.errors import ExistsError, ImageWarning, MissingKeyError, RegistrationWarning, SetupError
from sigmma_sc.metrics import niche_agreement
from sigmma_sc.pp import alignment
from sigmma_sc.pp.alignment import DEFAULTS
from sigmma_sc.registration.certificate import refusal
from sigmma_sc.registration.register import Registered
from sigmma_sc.tissue.frame import affine_to, apply_affine
from sigmma_sc.tissue.setup import resolve_slides

SYSTEM, BEFORE = "global", "global_unregistered"


def spoilt(sdata, degrees=10.0, shift=(150.0, -80.0), mirrored=True):
    """Turn, mirror and move the image under its cells; returns the affine of the image that was right."""
    image = sdata["he_image"]
    right = affine_to(image, SYSTEM, "image")
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), shift[0]], [np.sin(angle), np.cos(angle), shift[1]], [0, 0, 1]])
    if mirrored:
        turn = turn @ np.diag([-1.0, 1.0, 1.0])
    moved = Affine(turn, input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(image, Sequence([moved, get_transformation(image, SYSTEM)]), SYSTEM)
    return right


def _by_region(sdata):
    """Images and systems of the regions, of which the simulation makes one each, in the same order."""
    regions = sdata["table"].uns["spatialdata_attrs"]["region"]
    systems = [region.split("_")[0] for region in regions]
    return {
        "image_key": dict(zip(regions, sdata.images, strict=True)),
        "coordinate_system": dict(zip(regions, systems, strict=True)),
    }


def off_by(sdata, right):
    """Largest distance in µm between where cells are on the image and where they belong."""
    (slide,) = resolve_slides(sdata, DEFAULTS, aligned=False)
    now = affine_to(sdata["he_image"], SYSTEM, "image")
    truth = apply_affine(np.linalg.inv(right) @ now, slide.xy)
    return np.hypot(*(truth - slide.xy).T).max() * 0.5


@pytest.fixture(scope="module")
def registered():
    """A section whose image was mirrored, turned and moved, after registration, and the right affine."""
    sdata = sg.datasets.simulate_tissue(n_cells=3000, seed=1)
    set_transformation(sdata["he_image"], Identity(), "another")
    right = spoilt(sdata)
    before = affine_to(sdata["he_image"], SYSTEM, "image")
    assert off_by(sdata, right) > 500
    return sdata, right, before, sg.pp.register(sdata)


def test_an_image_is_put_on_its_cells(registered):
    sdata, right, _, found = registered
    (row,) = found.itertuples()
    assert (row.Index, row.verdict, row.written, row.by) == ("cell_circles", "registered", True, "nuclei")
    assert off_by(sdata, right) < 1 <= 2 * row.error + 1
    assert row.moved > 500
    SIGMMA.setup_spatialdata(sdata)
    assert sg.pp.check_registration(sdata).verdict.tolist() == ["registered"]


def test_what_was_there_is_kept(registered):
    sdata, _, before, _ = registered
    transforms = get_transformation(sdata["he_image"], get_all=True)
    np.testing.assert_allclose(affine_to(sdata["he_image"], BEFORE, "image"), before)
    assert set(transforms) == {SYSTEM, BEFORE, "another"}
    assert isinstance(transforms["another"], Identity)


def test_it_is_written_and_read(registered, tmp_path):
    sdata, right, before, found = registered
    sdata.write(tmp_path / "cells.zarr")
    again = sd.read_zarr(tmp_path / "cells.zarr")
    assert off_by(again, right) == pytest.approx(off_by(sdata, right), abs=1e-6)
    np.testing.assert_allclose(affine_to(again["he_image"], BEFORE, "image"), before)
    told = again.attrs["sigmma_registration"]["cell_circles"]
    assert told["written"]
    assert told["error"] == pytest.approx(found.error.iloc[0])


def test_again_only_if_asked(registered):
    sdata, right, before, _ = registered
    told = sdata.attrs
    with pytest.raises(ExistsError, match="kept as 'global_unregistered'. Pass overwrite=True"):
        sg.pp.register(sdata)
    # Objects by name have their name before that of the slide.
    again = sg.pp.register({"a": sdata}, overwrite=True)
    assert list(again.index) == ["a/cell_circles"]
    # The object may be read alone later, and keeps its own names.
    assert set(sdata.attrs["sigmma_registration"]) == {"cell_circles"}
    assert not sdata.attrs["sigmma_registration"]["cell_circles"]["written"]
    for tissue, title in (({"a": sdata}, "a/cell_circles: before"), (sdata, "cell_circles: before")):
        assert sg.pl.register(tissue, show=False)[0].get_title() == title
    plt.close("all")
    # It is where it belongs: nothing is written, and the first transformation is still the one that is kept.
    assert not again.written.any()
    assert off_by(sdata, right) < 1
    np.testing.assert_allclose(affine_to(sdata["he_image"], BEFORE, "image"), before)
    # Other tests, in any order, look at what the first registration kept.
    sdata.attrs = told


def test_shuffled_cells_are_refused_and_nothing_is_written():
    sdata = sg.datasets.simulate_tissue(n_cells=2000, seed=2)
    table = sdata["table"]
    table.X = table.X[np.random.default_rng(0).permutation(table.n_obs)]
    before = get_transformation(sdata["he_image"], get_all=True)
    with pytest.warns(RegistrationWarning, match="cannot tell|does not explain|no better than|elsewhere"):
        found = sg.pp.register(sdata)
    assert found.verdict.tolist() == ["cannot tell"]
    assert not found.written.any()
    assert get_transformation(sdata["he_image"], get_all=True) == before


def test_landmarks_take_the_place_of_the_search(rng, monkeypatch):
    """Marked with a standard deviation of 5 µm on an image that was mirrored, turned, moved and of another pixel size."""
    monkeypatch.setattr("sigmma_sc.pp.alignment.find_at_likely_sizes", lambda *a, **k: pytest.fail("searched"))
    sdata = sg.datasets.simulate_tissue(n_cells=900, seed=1)
    right = spoilt(sdata, shift=(900.0, 300.0))
    larger = Affine(np.diag([1.3, 1.3, 1]), input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(sdata["he_image"], Sequence([get_transformation(sdata["he_image"], SYSTEM), larger]), SYSTEM)
    places = np.array([[200.0, 240], [1000, 300], [420, 900], [900, 1050]])
    cells = affine_to(sdata["cell_circles"], SYSTEM, "cells")
    marked = apply_affine(np.linalg.inv(cells) @ right, places) + rng.normal(0, 5, places.shape)
    found = sg.pp.register(sdata, landmarks={"cell_circles": (places, marked)})
    (row,) = found.itertuples()
    assert (row.verdict, row.by, row.written) == ("registered", "landmarks", True)
    assert row.nuclei > 7
    assert 1 < row.residual < 20
    assert off_by(sdata, right) < 1
    assert resolve_slides(sdata, DEFAULTS)[0].microns_per_pixel == pytest.approx(0.5, rel=0.002)
    assert sdata.attrs["sigmma_registration"]["cell_circles"]["by"] == "landmarks"


def test_an_object_that_was_never_set_up_is_warned_of_its_image(monkeypatch):
    sdata = sg.datasets.simulate_tissue(n_cells=300, seed=0, microns_per_pixel=1.0)
    image = sd.get_pyramid_levels(sdata["he_image"], n=0)
    pixels = image.to_numpy() // 5
    sdata["he_image"] = sd.models.Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=get_transformation(image, get_all=True)
    )

    class Searched(Exception):
        pass

    def search(*_):
        raise Searched

    monkeypatch.setattr(alignment, "find_at_likely_sizes", search)
    with pytest.warns(ImageWarning, match="Image 'he_image': It is dark"), pytest.raises(Searched):
        sg.pp.register(sdata)


def test_embeddings_from_before_are_told(monkeypatch):
    told = replace(refusal("as told"), verdict="registered", error=1.0)
    shifted = Registered(np.array([[1.0, 0, 30], [0, 1, 0], [0, 0, 1]]), told, "nuclei", False, None, [])
    monkeypatch.setattr("sigmma_sc.pp.alignment.find_at_likely_sizes", lambda slide, seed: (slide, shifted))
    sdata = sg.datasets.simulate_tissue(n_cells=300)
    sdata["table"].obsm["X_sigmma_micro"] = np.zeros((300, 2))
    with pytest.warns(RegistrationWarning, match=r"obsm\['X_sigmma_micro'\] are of the alignment before. Train again"):
        sg.pp.register(sdata)


def test_what_is_kept_is_json(monkeypatch):
    lost = Registered(None, replace(refusal("x"), error=np.inf), "expression", False, None, [])
    monkeypatch.setattr("sigmma_sc.pp.alignment.find_at_likely_sizes", lambda slide, seed: (slide, lost))
    sdata = sg.datasets.simulate_tissue(n_cells=300)
    with pytest.warns(RegistrationWarning):
        found = sg.pp.register(sdata)
    assert np.isinf(found.error.item())
    kept = json.loads(json.dumps(sdata.attrs, allow_nan=False))["sigmma_registration"]["cell_circles"]
    assert "error" not in kept
    assert kept["verdict"] == "cannot tell"


def test_mistakes_are_named_before_any_search(monkeypatch):
    monkeypatch.setattr("sigmma_sc.pp.alignment.find_at_likely_sizes", lambda *a, **k: pytest.fail("searched"))
    sdata = sg.datasets.simulate_tissue(n_cells=500)
    with pytest.raises(MissingKeyError, match="nothing"):
        sg.pp.register(sdata, image_key="nothing")
    with pytest.raises(MissingKeyError, match="slide of landmarks='other'"):
        sg.pp.register(sdata, landmarks={"other": np.zeros((3, 2, 2))})
    with pytest.raises(SetupError, match="2 pairs"):
        sg.pp.register(sdata, landmarks=np.zeros((2, 2, 2)))
    several = sg.datasets.simulate_tissue(n_cells=300, n_slides=2)
    with pytest.raises(SetupError, match="Pass a dict by slide"):
        sg.pp.register(several, landmarks=np.zeros((3, 2, 2)), **_by_region(several))
    regions = several["table"].uns["spatialdata_attrs"]["region"]
    for name in list(several.images)[1:]:
        set_transformation(several[list(several.images)[0]], Identity(), name.split("_")[0])
    with pytest.raises(SetupError, match="belongs to several regions"):
        sg.pp.register(
            several,
            image_key=dict.fromkeys(regions, list(several.images)[0]),
            coordinate_system={region: region.split("_")[0] for region in regions},
            microns_per_pixel=0.5,
        )


@pytest.mark.slow
def test_niches_of_a_turned_slide_are_those_of_the_slide():
    right, turned = (sg.datasets.simulate_tissue(n_cells=3000, seed=3) for _ in range(2))
    SIGMMA.setup_spatialdata(right)
    model = SIGMMA(right)
    model.train(max_epochs=10, split="none", enable_progress_bar=False)
    model.write_embeddings()
    prototypes = sg.tl.niches(right["table"], scales=["meso"], resolution=0.5)
    spoilt(turned, 10.0, (60.0, 40.0), mirrored=False)
    assert sg.pp.register(turned).written.all()
    SIGMMA.setup_spatialdata(turned)
    # The same model, because training amplifies the last bits of positions, as it does those of a seed.
    model.write_embeddings(turned)
    sg.tl.assign_niches(turned["table"], prototypes)
    known, found = (sdata["table"].obs["sigmma_niche_meso"].astype(str) for sdata in (right, turned))
    # A cell in a hundred is unlike any by definition.
    alike = found != "unlike any"
    assert alike.mean() > 0.97
    assert niche_agreement(known[alike], found[alike])["ari"] >= 0.9
