import numpy as np
import pytest

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError


@pytest.mark.slow
def test_several_slides_hold_out_donors_and_batches_stay_within_a_slide(encoder):
    sdata = simulate_tissue(n_cells=900, n_slides=3, seed=0)
    regions = list(sdata["table"].uns["spatialdata_attrs"]["region"])
    slides = [r.removesuffix("_cell_circles") for r in regions]
    SIGMMA.setup_spatialdata(
        sdata,
        image_key={r: f"{s}_he_image" for r, s in zip(regions, slides, strict=True)},
        coordinate_system=dict(zip(regions, slides, strict=True)),
        sample_key="donor",
    )
    model = SIGMMA(sdata, encoder(), n_latent=16)
    model.train(max_epochs=2, enable_progress_bar=False)
    roles = {name: set(role) - {"unused"} for name, role in model.data.roles.by_slide.items()}
    assert sorted(map(tuple, roles.values())) == [("test",), ("train",), ("val",)]
    model.write_embeddings()
    assert {f"sigmma_tiles_{r}" for r in regions} <= set(sdata.shapes)
    assert np.isfinite(sdata["table"].obsm["X_sigmma_macro"]).all()
    assert set(model.evaluate_retrieval().slide) == {n for n, r in roles.items() if r == {"test"}}
    model.train(max_epochs=1, split="sample", enable_progress_bar=False)  # the same split: no leak
    with pytest.raises(SetupError, match="leak"):
        model.train(max_epochs=1, split="blocks", enable_progress_bar=False)
