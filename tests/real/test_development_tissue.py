"""The main job on the development tissue. Figures for whole sections are in benchmarks/, not here."""

import numpy as np
import pytest
import scanpy as sc

import sigmma_sc as sg
from sigmma_sc import SIGMMA

pytestmark = pytest.mark.real


def test_five_sections_of_one_patient_train_together(real, mobilenet):
    sdata = real("breast_st")
    sections = ["C2", "C3", "C4", "C5", "C6"]
    SIGMMA.setup_spatialdata(
        sdata,
        image_key={f"{s}_spots": f"{s}_he" for s in sections},
        coordinate_system={f"{s}_spots": s for s in sections},
        sample_key="section",
        microns_per_pixel=0.687,
        tile_size=800,
    )
    model = SIGMMA(sdata, mobilenet, min_cells=3, n_latent=64)
    model.train(max_epochs=60, batch_size=32, split={"test": ["C6"], "val": ["C5"]}, enable_progress_bar=False)
    history = {k: v.iloc[:, 0] for k, v in model.history.items()}
    assert history["train_loss_macro"].iloc[-1] < 0.7 * history["train_ln_batch"].iloc[-1]
    # One grid of tiles: the tutorial on these sections embeds them over all 16.
    model.write_embeddings(n_offsets=1)
    table = sdata["table"]
    assert table.obs.sigmma_covered.all()
    assert all(np.isfinite(table.obsm[f"X_sigmma_{s}"]).all() for s in ("micro", "meso", "macro"))
    tiles = sdata["sigmma_tiles"].obs
    assert set(tiles.slide) == {f"{s}_spots" for s in sections}
    assert set(tiles.split[tiles.slide == "C6_spots"]) <= {"test", "unused"}
    assert set(tiles.split[tiles.slide == "C2_spots"]) <= {"train", "unused"}


def test_tumour_and_exocrine_tissue_part_into_niches(real, mobilenet):
    """A window of the pancreas that holds both."""
    sdata = real("pancreas_xenium")
    window = sdata.query.bounding_box(
        axes=("x", "y"),
        min_coordinate=[13_000, 4_000],
        max_coordinate=[22_000, 10_500],
        target_coordinate_system="global",
    )
    SIGMMA.setup_spatialdata(window)
    model = SIGMMA(window, mobilenet, n_latent=64)
    model.train(max_epochs=40, split="blocks", enable_progress_bar=False)
    together = model.evaluate_retrieval().query("scale == 'all'")
    assert (together["recall@15%"] > 2 * together["chance@15%"]).all()
    model.write_embeddings()
    adata = window["table"]
    assert adata.obs.sigmma_covered.all()
    sg.tl.niches(adata, ["meso"], resolution=1)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    # Each of these tissues has a niche where its marker stands far above the rest of the window.
    # Stroma is much of it and may part into several niches, so it is held against the quarter of them that have least.
    niche = "sigmma_niche_meso"
    rest = {"AMY2A": 0.5, "EPCAM": 0.5, "INS": 0.5, "PECAM1": 0.5, "COL5A2": 0.25, "IL7R": 0.5}
    for gene, share in rest.items():
        mean = sc.get.obs_df(adata, [gene, niche]).groupby(niche, observed=True)[gene].mean()
        assert mean.max() > 2 * mean.quantile(share), (gene, mean.to_dict())
