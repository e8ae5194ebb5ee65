import matplotlib as mpl
import numpy as np
import pytest
from scipy.spatial import cKDTree
from spatialdata.transformations import Affine, Sequence, get_transformation, set_transformation

import sigmma_sc as sg
from sigmma_sc.errors import MissingKeyError, SetupError

mpl.use("agg")
TURN = 7.0


@pytest.fixture(scope="module")
def turned():
    """A section after registration, the image of which was mirrored and turned, and where its cells were before."""
    sdata = sg.datasets.simulate_tissue(n_cells=2000, seed=4)
    image = sdata["he_image"]
    angle = np.deg2rad(TURN)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 90], [np.sin(angle), np.cos(angle), 40], [0, 0, 1]])
    moved = Affine(matrix @ np.diag([-1.0, 1, 1]), input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(image, Sequence([moved, get_transformation(image, "global")]), "global")
    before = cells_on(sdata)
    assert sg.pp.register(sdata).written.all()
    return sdata, before


def cells_on(sdata):
    """Cells on the image in µm."""
    image = get_transformation(sdata["he_image"], "global").to_affine_matrix(("x", "y"), ("x", "y"))
    cells = get_transformation(sdata["cell_circles"], "global").to_affine_matrix(("x", "y"), ("x", "y"))
    points = np.column_stack([sdata["cell_circles"].geometry.x, sdata["cell_circles"].geometry.y, np.ones(2000)])
    return ((np.linalg.inv(image) @ cells) @ points.T)[:2].T * 0.5


def dots(ax):
    return ax.collections[0].get_offsets()


def same_points(some, others):
    """Whether each point is at one of the others, as far as a change of the pixel size by 10⁻⁴ allows."""
    return len(some) == len(others) and cKDTree(others).query(some)[0].max() < 1e-4 * np.abs(others).max()


def test_cells_are_shown_where_they_were_and_where_they_are(turned, tmp_path):
    sdata, before = turned
    axes = sg.pl.register(sdata, save=tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 20_000
    assert axes[0].get_title() == "cell_circles: before"
    assert axes[1].get_title().startswith("after: registered to ± ")
    assert same_points(dots(axes[0]), before)
    assert same_points(dots(axes[1]), cells_on(sdata))
    assert not same_points(dots(axes[0]), cells_on(sdata))
    # One place of the image: what is drawn there afterwards are cells of it.
    near = np.asarray(dots(axes[4]))
    apart = near[1:] - near[0]
    place = cells_on(sdata)
    assert min(np.abs(place - cell - apart[0]).sum(axis=1).min() for cell in place) < 0.1


def test_poses_and_residuals_are_those_of_the_record(turned):
    sdata, _ = turned
    record = sdata.attrs["sigmma_registration"]["cell_circles"]
    axes = sg.pl.register(sdata, show=False)
    drawn = [line.get_xydata()[0] for line in axes[2].lines if line.get_marker() == "o"]
    np.testing.assert_allclose(drawn, [(one["distance"], one["score"]) for one in record["poses"]])
    assert record["poses"][0]["mirrored"]
    assert abs(record["poses"][0]["turn"]) == pytest.approx(TURN, abs=0.5)
    assert drawn[0][0] == 0
    assert drawn[0][1] == max(score for _, score in drawn)
    arrows = axes[5].collections[0]
    np.testing.assert_allclose(np.column_stack([arrows.X, arrows.Y, arrows.U, arrows.V]), record["residuals"])
    mpl.pyplot.close("all")


def test_a_refused_pose_is_called_so(turned):
    sdata, _ = turned
    record = sdata.attrs["sigmma_registration"]["cell_circles"]
    refused = {**record, "written": False, "verdict": "cannot tell", "residuals": []}
    sdata.attrs["sigmma_registration"] = {"cell_circles": refused}
    try:
        axes = sg.pl.register(sdata, show=False)
        titles = [ax.get_title() for ax in axes]
        sdata.attrs["sigmma_registration"] = {"cell_circles": {**refused, "matrix": None, "poses": []}}
        nothing = sg.pl.register(sdata, show=False)
    finally:
        sdata.attrs["sigmma_registration"] = {"cell_circles": record}
    assert titles[1] == "best pose found, not written"
    assert titles[5] == "no residuals"
    assert nothing[1].get_title() == "no pose was found"
    np.testing.assert_allclose(dots(nothing[0]), dots(nothing[1]))
    mpl.pyplot.close("all")


def test_mistakes_are_named(turned):
    sdata, _ = turned
    with pytest.raises(MissingKeyError, match=r"no registered slide 'x'.*Registered slides: \['cell_circles'\]"):
        sg.pl.register(sdata, slide="x")
    with pytest.raises(MissingKeyError, match="Run sg.pp.register first"):
        sg.pl.register(sg.datasets.simulate_tissue(n_cells=300))
    with pytest.raises(SetupError, match="window"):
        sg.pl.register(sdata, window=-1)
    with pytest.raises(SetupError, match="Pass six"):
        sg.pl.register(sdata, ax=[None] * 5)


def test_axes_of_the_user_are_drawn_in(turned):
    sdata, _ = turned
    figure, grid = mpl.pyplot.subplots(2, 3)
    axes = sg.pl.register(sdata, ax=list(grid.flat))
    assert all(one is other for one, other in zip(axes, grid.flat, strict=True))
    mpl.pyplot.close(figure)
