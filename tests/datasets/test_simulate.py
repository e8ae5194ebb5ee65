"""The simulated section: what is promised about its truth, its counts, its picture and where they lie."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial import cKDTree
from skimage.color import rgb2hed
from spatialdata import SpatialData, read_zarr
from spatialdata.transformations import get_transformation

from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.datasets.simulate import GENES, NICHE_NAMES, TYPE_NAMES
from sigmma_sc.errors import SetupError


@pytest.fixture(scope="module")
def section() -> SpatialData:
    return simulate_tissue(5000, seed=1)


@pytest.fixture(scope="module")
def cohort() -> SpatialData:
    return simulate_tissue(400, n_slides=3, seed=1)


def picture(sdata: SpatialData, key: str = "he_image") -> np.ndarray:
    """RGB of level 0, ``(height, width, 3)``."""
    return sdata[key]["scale0"].image.to_numpy().transpose(1, 2, 0)


def to_pixels(sdata: SpatialData, um: np.ndarray, prefix: str = "", space: str = "global") -> np.ndarray:
    """Points in µm as H&E px, through the transformations of the object alone."""
    axes = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
    circles = get_transformation(sdata[f"{prefix}cell_circles"], space).to_affine_matrix(**axes)
    image = get_transformation(sdata[f"{prefix}he_image"], space).to_affine_matrix(**axes)
    return (np.c_[um, np.ones(len(um))] @ (np.linalg.inv(image) @ circles).T)[:, :2]


def haematoxylin(sdata: SpatialData, um: np.ndarray) -> np.ndarray:
    """Deconvolved haematoxylin at points in µm; only the pixels asked for are deconvolved."""
    col, row = np.floor(to_pixels(sdata, um)).astype(int).T
    return rgb2hed(picture(sdata)[row, col][None])[0, :, 0]


def hue(image: np.ndarray) -> np.ndarray:
    """Shares of red, green and blue in the optical density of the darkest pixels of an image."""
    density = -np.log((image.reshape(-1, 3) + 1.0) / 246)
    dark = density[density.sum(1) > np.quantile(density.sum(1), 0.97)].mean(0)
    return dark / dark.sum()


def genes(table, *groups: str) -> np.ndarray:
    """Counts ``(n, genes)`` of the genes of some groups of the panel."""
    return table[:, " ".join(GENES[g] for g in groups).split()].X.toarray()


def test_same_seed_same_bits_and_another_seed_another_section():
    first, again, other = (simulate_tissue(300, seed=s) for s in (5, 5, 6))
    np.testing.assert_array_equal(picture(first), picture(again))
    np.testing.assert_array_equal(first["table"].X.toarray(), again["table"].X.toarray())
    assert first["table"].obs.equals(again["table"].obs)
    assert not np.array_equal(picture(first)[:200, :200], picture(other)[:200, :200])
    assert not np.array_equal(first["table"].X.toarray(), other["table"].X.toarray())


def test_elements_are_those_of_a_xenium_run(section):
    assert set(section.images) == {"he_image"}
    assert set(section.shapes) == {"cell_circles"}
    table = section["table"]
    assert table.uns["spatialdata_attrs"] == {
        "region": "cell_circles",
        "region_key": "region",
        "instance_key": "cell_id",
    }
    assert list(section["cell_circles"].index) == list(table.obs["cell_id"]) == list(table.obs_names)
    centroids = section["cell_circles"].geometry.get_coordinates().to_numpy()
    np.testing.assert_allclose(centroids, table.obsm["spatial"])
    np.testing.assert_allclose(np.pi * section["cell_circles"].radius ** 2, table.obs["cell_area"])
    assert (table.obs["nucleus_area"] < table.obs["cell_area"]).all()
    assert section["he_image"]["scale0"].image.dtype == np.uint8
    assert list(section["he_image"]["scale0"].image.coords["c"].to_numpy()) == ["r", "g", "b"]
    assert len(section["he_image"].children) == 4
    assert set(table.obs["donor"]) == {"donor1"}


@pytest.mark.parametrize(("mpp", "angle", "pixel_size"), [(0.5, 17.0, 0.2125), (0.3, -130.0, 0.5)])
def test_image_is_rotated_and_scaled_as_asked(mpp, angle, pixel_size):
    sdata = simulate_tissue(150, microns_per_pixel=mpp, angle=angle, pixel_size=pixel_size)
    affine = get_transformation(sdata["he_image"], "global").to_affine_matrix(("x", "y"), ("x", "y"))
    assert np.sqrt(np.linalg.det(affine[:2, :2])) * pixel_size == pytest.approx(mpp)
    assert np.degrees(np.arctan2(affine[1, 0], affine[0, 0])) == pytest.approx(angle)


def test_nuclei_lie_under_their_cells(section):
    rng = np.random.default_rng(0)
    um = section["table"].obsm["spatial"][rng.choice(5000, 1500, replace=False)]
    here = haematoxylin(section, um).mean()
    directions = np.radians(np.arange(0, 360, 45))
    away = [haematoxylin(section, um + 8 * np.array([np.cos(d), np.sin(d)])).mean() for d in directions]
    assert here > 1.5 * max(away)
    # And the peak is sharp: even 2 µm away there is less.
    near = [haematoxylin(section, um + 2 * np.array([np.cos(d), np.sin(d)])).mean() for d in directions]
    assert here > max(near)


def test_section_lies_inside_the_image_on_white_glass(section):
    image, pixels = picture(section), to_pixels(section, section["table"].obsm["spatial"])
    assert (pixels > 20).all()
    assert (pixels < np.array(image.shape[1::-1]) - 20).all()
    corners = np.stack([image[:40, :40], image[-40:, :40], image[:40, -40:], image[-40:, -40:]])
    assert corners.min() > 225
    assert image[1000:1700, 1000:1700].mean() < 215


def test_density_is_that_of_a_tumour(section):
    xy = section["table"].obsm["spatial"]
    edges = np.arange(xy.min() + 30, xy.max() - 30, 128.0)
    per_tile = np.histogram2d(*xy.T, bins=[edges, edges])[0]
    assert 50 < np.median(per_tile) < 130
    assert cKDTree(xy).query(xy, k=2)[0][:, 1].min() > 4


def test_counts_are_overdispersed_and_shallow(section):
    counts = section["table"].X
    assert counts.format == "csr"
    assert counts.shape == (5000, 120)
    assert (counts.data == np.round(counts.data)).all()
    assert 50 < np.median(np.asarray(counts.sum(1))) < 100
    for cell_type in TYPE_NAMES:
        own = genes(section["table"], cell_type)[section["table"].obs["cell_type"] == cell_type]
        assert (own.var(0) > own.mean(0)).all()


def test_markers_and_programs_are_on_where_they_should_be(section):
    obs = section["table"].obs
    for column, names, prefix in (
        ("cell_type", TYPE_NAMES, ""),
        ("niche", NICHE_NAMES, ""),
        ("compartment", ("tumor", "stroma", "exocrine"), "compartment_"),
    ):
        for name in names:
            counts, inside = genes(section["table"], prefix + name), obs[column] == name
            assert (counts[inside].mean(0) > 2 * counts[~inside].mean(0)).all(), name


def test_contact_raises_ligand_and_response_in_contact_only(section):
    table = section["table"]
    for cell_type, own, others in (("macrophage", "ligand", "response"), ("T cell", "response", "ligand")):
        state = {
            p: ((table.obs["cell_type"] == cell_type) & (table.obs["pair"] == p)).to_numpy()
            for p in ("contact", "single")
        }
        raised, silent = genes(table, own), genes(table, others)
        assert (raised[state["contact"]].mean(0) > 5 * raised[state["single"]].mean(0)).all()
        assert silent[state["contact"]].mean() < 0.3
    assert genes(table, "ligand", "response")[table.obs["pair"] == "none"].mean() < 0.3


def test_contact_pairs_touch_and_single_ones_keep_apart(section):
    table, xy = section["table"], section["table"].obsm["spatial"]
    kind, pair = table.obs["cell_type"].to_numpy(), table.obs["pair"].to_numpy()
    distance = cKDTree(xy[kind == "T cell"]).query(xy[kind == "macrophage"])[0]
    state = pair[kind == "macrophage"]
    assert distance[state == "contact"].max() < 16
    assert distance[state == "single"].min() > 20
    assert min((state == "contact").sum(), (state == "single").sum()) > 30
    contacts = pair == "contact"
    assert (kind[contacts] == "T cell").sum() == (kind[contacts] == "macrophage").sum()
    assert set(kind[contacts]) == {"T cell", "macrophage"}


def test_each_scale_has_a_pattern_of_its_own(section):
    obs, xy = section["table"].obs, section["table"].obsm["spatial"]
    tree = cKDTree(xy)

    def agreement(column: str, low: float, high: float) -> float:
        """Share of pairs of cells ``low`` to ``high`` µm apart that agree, on a scale from chance (0) to always (1)."""
        codes = obs[column].cat.codes.to_numpy()
        i, j = tree.query_pairs(high, output_type="ndarray").T
        far = np.hypot(*(xy[i] - xy[j]).T) > low
        chance = (np.bincount(codes) ** 2).sum() / len(codes) ** 2
        return ((codes[i] == codes[j])[far].mean() - chance) / (1 - chance)

    assert agreement("compartment", 60, 68) > 0.55
    # Within the stroma, what is lymphoid 12 µm away says little 64 µm away.
    stroma = (obs["compartment"] == "stroma").to_numpy()
    lymphoid = (obs["neighborhood"] == "lymphoid").to_numpy()[stroma].astype(float)
    i, j = cKDTree(xy[stroma]).query_pairs(68, output_type="ndarray").T
    distance = np.hypot(*(xy[stroma][i] - xy[stroma][j]).T)
    near, far = (np.corrcoef(lymphoid[i[m]], lymphoid[j[m]])[0, 1] for m in (distance < 14, distance > 60))
    assert near > 0.35
    assert abs(far) < near / 2
    # Neither label gives the other away: each neighbourhood occurs in two compartments and the reverse.
    present = obs.groupby(["compartment", "neighborhood"], observed=True).size()
    assert len(present) == 6
    assert (present > 100).all()
    assert (present.groupby("compartment").size() == 2).all()
    assert (present.groupby("neighborhood").size() == 2).all()


def test_types_and_niches_both_shape_the_nucleus(section):
    obs = section["table"].obs
    area = obs["nucleus_area"].groupby(obs["cell_type"], observed=True).mean()
    assert area["tumor"] > 1.5 * area["T cell"]
    tumor = obs[obs["cell_type"] == "tumor"]
    by_niche = tumor["nucleus_area"].groupby(tumor["niche"], observed=True).mean()
    assert by_niche["tumor_nest"] > 1.2 * by_niche["tumor_gland"]
    # The picture shows it, too: nuclei of one type are darker in glands than in nests, T cells darkest of all.
    xy = section["table"].obsm["spatial"]
    stain = {
        n: haematoxylin(section, xy[(obs["cell_type"] == "tumor") & (obs["niche"] == n)]).mean()
        for n in by_niche.index[by_niche.notna()]
    }
    assert stain["tumor_gland"] > 1.1 * stain["tumor_nest"]
    assert haematoxylin(section, xy[obs["cell_type"] == "T cell"]).mean() > stain["tumor_gland"]
    # But the look does not settle the niche: the distributions overlap.
    nest, gland = (tumor["nucleus_area"][tumor["niche"] == n] for n in ("tumor_nest", "tumor_gland"))
    assert nest.quantile(0.1) < gland.quantile(0.9)


def test_slides_are_donors_with_stains_and_batches_of_their_own(cohort):
    table = cohort["table"]
    regions = [f"slide{k}_cell_circles" for k in (1, 2, 3)]
    assert table.uns["spatialdata_attrs"]["region"] == regions
    assert table.obs["region"].value_counts().to_dict() == dict.fromkeys(regions, 400)
    assert table.obs_names.is_unique
    assert table.obs.groupby("slide", observed=True)["donor"].nunique().to_list() == [1, 1, 1]
    assert table.obs["donor"].nunique() == 3
    assert set(cohort.coordinate_systems) == {"slide1", "slide2", "slide3"}
    for k in (1, 2, 3):
        here = table[table.obs["slide"] == f"slide{k}"].obsm["spatial"]
        assert (to_pixels(cohort, here, f"slide{k}_", f"slide{k}") > 0).all()
    # The hue of the darkest nuclei tells the stain and not the tissue: it is the same in both halves of a slide.
    images = [picture(cohort, f"slide{k}_he_image") for k in (1, 2, 3)]
    within = max(np.abs(hue(im[: len(im) // 2]) - hue(im[len(im) // 2 :])).max() for im in images)
    between = np.mean([np.abs(hue(images[a]) - hue(images[b])).max() for a, b in ((0, 1), (0, 2), (1, 2))])
    assert between > 0.01
    assert between > 2 * within
    house = genes(table, "housekeeping")
    share = np.stack([house[(table.obs["slide"] == f"slide{k}").to_numpy()].sum(0) for k in (1, 2, 3)])
    share = share / share.sum(1, keepdims=True)
    assert (np.abs(np.log(share[0] / share[1])) > 0.15).sum() >= 3


def test_a_slide_does_not_depend_on_those_that_follow(cohort):
    alone = simulate_tissue(400, seed=1)
    np.testing.assert_array_equal(picture(alone), picture(cohort, "slide1_he_image"))
    np.testing.assert_array_equal(alone["table"].X.toarray(), cohort["table"].X[:400].toarray())


def test_survives_writing_reading_and_writing_again(cohort, tmp_path):
    cohort.write(tmp_path / "first.zarr")
    once = read_zarr(tmp_path / "first.zarr")
    once.write(tmp_path / "second.zarr")
    back = read_zarr(tmp_path / "second.zarr")
    assert list(back["table"].obs_names) == list(cohort["table"].obs_names)
    for column in ("cell_id", "region", "donor", "cell_type", "compartment", "neighborhood", "niche", "pair"):
        assert list(back["table"].obs[column].astype(object)) == list(cohort["table"].obs[column].astype(object))
    np.testing.assert_array_equal(back["table"].X.toarray(), cohort["table"].X.toarray())
    np.testing.assert_array_equal(picture(back, "slide2_he_image"), picture(cohort, "slide2_he_image"))
    um = cohort["table"].obsm["spatial"][:400]
    np.testing.assert_allclose(to_pixels(back, um, "slide1_", "slide1"), to_pixels(cohort, um, "slide1_", "slide1"))


def test_strings_are_plain_objects_in_both_stacks(cohort):
    obs = cohort["table"].obs
    assert obs.index.dtype == object
    assert obs["cell_id"].dtype == object
    assert all(obs[c].cat.categories.dtype == object for c in obs.columns if obs[c].dtype.name == "category")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_cells", 99),
        ("n_cells", 500.0),
        ("n_cells", True),
        ("n_slides", 0),
        ("seed", -1),
        ("seed", "7"),
        ("microns_per_pixel", 0),
        ("microns_per_pixel", 5.0),
        ("pixel_size", -0.2),
        ("angle", float("nan")),
        ("angle", "17"),
    ],
)
def test_impossible_arguments_are_named(argument, value):
    with pytest.raises(SetupError, match=argument):
        simulate_tissue(**{argument: value})


@pytest.mark.parametrize("seed", range(3))
def test_smallest_section_holds_exactly_its_cells(seed):
    sdata = simulate_tissue(np.int64(100), seed=seed, microns_per_pixel=2.0)
    assert sdata["table"].n_obs == 100
    assert np.isfinite(sdata["table"].obsm["spatial"]).all()


def test_import_is_cheap():
    code = "import sys, sigmma_sc.datasets; print([m for m in ('torch', 'spatialdata', 'anndata') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
