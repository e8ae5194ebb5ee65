import pytest
import spatialdata as sd

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue


def slide_of(both, k):
    """One slide of two, as an object of its own, with the names that every object has."""
    region = f"slide{k}_cell_circles"
    table = both["table"][(both["table"].obs["region"] == region).to_numpy()].copy()
    del table.uns["spatialdata_attrs"]
    table.obs["region"] = "cell_circles"
    table = sd.models.TableModel.parse(table, region="cell_circles", region_key="region", instance_key="cell_id")
    return sd.SpatialData(
        images={"he_image": both[f"slide{k}_he_image"]}, shapes={"cell_circles": both[region]}, tables={"table": table}
    )


@pytest.fixture(scope="session")
def slides():
    """Three donors, each with its stain and batch; tests must not change them."""
    three = simulate_tissue(n_cells=2000, n_slides=3, seed=0)
    parts = [slide_of(three, k) for k in (1, 2, 3)]
    for k, sdata in enumerate(parts, start=1):
        SIGMMA.setup_spatialdata(sdata, coordinate_system=f"slide{k}", tile_size=64)
    return parts


@pytest.fixture(scope="session")
def fitted(slides, encoder):
    """Trained on the first, validated on the second."""
    model = SIGMMA({"a": slides[0], "b": slides[1]}, encoder(input_size=32), n_latent=32)
    model.train(8, 64, {"val": ["b/cell_circles"]}, lr=3e-3, enable_progress_bar=False)
    return model


@pytest.fixture(scope="session")
def unseen(slides):
    return slides[2]


@pytest.fixture(scope="session")
def alone(unseen):
    """The image of the third."""
    sdata = sd.SpatialData(images={"he_image": unseen["he_image"]})
    SIGMMA.setup_spatialdata(sdata, table_key=None, coordinate_system="slide3", microns_per_pixel=0.5, tile_size=64)
    return sdata


@pytest.fixture(scope="session")
def saved(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("predict") / "model"
    fitted.save(path)
    return path


@pytest.fixture(scope="session")
def loaded(saved, alone, encoder):
    return SIGMMA.load(saved, alone, encoder(input_size=32))
