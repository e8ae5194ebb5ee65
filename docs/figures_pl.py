"""Pictures of the page *Gallery* and of the pages of ``pl``. Run by hand: ``python docs/figures_pl.py``.

Writes one file for each function of ``sigmma_sc.pl`` into ``docs/_static/pl/``. Tissue, model and figures are made
anew, in a few minutes and without a download.
"""

import io
import tempfile
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from anndata import AnnData
from PIL import Image
from spatialdata import SpatialData

import sigmma_sc as sg

OUT = Path(__file__).parent / "_static" / "pl"
WIDEST = 1300
"""Width of a picture in px, at most."""


class Run(NamedTuple):
    """Tissue, a model trained on it, and its table with niches."""

    sdata: SpatialData
    model: sg.SIGMMA
    cells: AnnData


def train() -> Run:
    """The whole job, as in the quick start."""
    sdata = sg.datasets.simulate_tissue(n_cells=6000, seed=0)
    sg.SIGMMA.setup_spatialdata(sdata)
    model = sg.SIGMMA(sdata)
    model.train(enable_progress_bar=False)
    model.write_embeddings()
    cells = sdata["table"]
    sg.tl.niches(cells)
    return Run(sdata, model, cells)


def attention(run: Run) -> None:
    """Heads of a vision transformer; this one has random weights, so it shows the form alone."""
    encoder = sg.ImageEncoder.from_timm("vit_tiny_patch16_224", img_size=64, depth=1)
    model = sg.SIGMMA(run.sdata, encoder)
    model.train(max_epochs=1, enable_progress_bar=False)
    tile = model.get_tile_representation().obs["n_cells"].idxmax()
    sg.pl.attention(model.get_attention([tile]), n_heads=3, show=False)


def benchmark(run: Run) -> None:
    """Methods with intervals, as ``sg.benchmark.run`` writes them to ``intervals.csv``; two rows of docs/benchmark.md."""
    rows = [
        ("sigmma", "recall", 0.877, 0.846, 0.907),
        ("genes", "recall", 0.677, 0.637, 0.717),
        ("bleep", "recall", 0.542, 0.475, 0.608),
        ("random", "recall", 0.103, 0.086, 0.120),
    ]
    intervals = pd.DataFrame(rows, columns=["method", "metric", "value", "low", "high"])
    sg.pl.benchmark(intervals, {"recall": "mean recall, image → transcriptome"}, show=False)


def composition(run: Run) -> None:
    """Cell types of each niche."""
    sg.pl.composition(run.cells, groupby="cell_type", show=False)


def edges(run: Run) -> None:
    """The three graphs of one tile."""
    tile = run.model.get_tile_representation().obs["n_cells"].idxmax()
    sg.pl.edges(run.model, tile, groupby="cell_type", show=False)


def niche_abundance(run: Run) -> None:
    """Shares of niches by donor; donors and conditions are dealt at random here."""
    cells = run.cells.copy()
    cells.obs["donor"] = [f"donor{k % 6}" for k in range(cells.n_obs)]
    cells.obs["condition"] = ["treated" if k % 6 < 3 else "control" for k in range(cells.n_obs)]
    sg.pl.niche_abundance(sg.tl.compare_niches(cells, "condition", "donor", expression=False), show=False)


def niches(run: Run) -> None:
    """Niches of each scale beside a column of the table."""
    sg.pl.niches(run.cells, reference="niche", show=False)


def prediction(run: Run) -> None:
    """Expression predicted from the image, and what a tile resembles."""
    sg.pl.prediction(run.model.predict_expression(), ["EPCAM", "KRT19"], show=False)


def register(run: Run) -> None:
    """The pose of cells on the image that was found, with its evidence."""
    sg.pp.register(run.sdata)
    sg.pl.register(run.sdata, show=False)


def registration(run: Run) -> None:
    """Cells on the image, and the curve of the check."""
    sg.pl.registration(run.sdata, show=False)


def retrieval(run: Run) -> None:
    """Held-out tiles, and what the model finds for them."""
    sg.pl.retrieval(run.model, tiles=2, groupby="cell_type", show=False)


def search(run: Run) -> None:
    """Tiles alike to those that express two genes most; tiles of 64 µm, as there are too few larger ones to tell."""
    sdata = sg.datasets.simulate_tissue(n_cells=6000, seed=0)
    sg.SIGMMA.setup_spatialdata(sdata, tile_size=64)
    model = sg.SIGMMA(sdata)
    model.train(enable_progress_bar=False)
    with tempfile.TemporaryDirectory() as folder:
        index = model.build_index(f"{folder}/index")
    sg.pl.search(sg.tl.search({"genes": ["EPCAM", "KRT19"]}, index), show=False)


def signature(run: Run) -> None:
    """Mean expression of genes in each niche, and on the tissue."""
    sg.pl.signature(run.cells, ["EPCAM", "KRT19"], scale="meso", show=False)


def training(run: Run) -> None:
    """Loss of each scale, with that of a model that learned nothing."""
    sg.pl.training(run.model.history, show=False)


FIGURES = (
    attention, benchmark, composition, edges, niche_abundance, niches, prediction, register, registration, retrieval,
    search, signature, training,
)  # fmt: skip


def store(name: str) -> None:
    """Write the open figure in full colour."""
    file = io.BytesIO()
    plt.gcf().savefig(file, dpi=120, bbox_inches="tight")
    plt.close("all")
    picture = Image.open(file).convert("RGB")
    picture.thumbnail((WIDEST, 10 * WIDEST), Image.Resampling.LANCZOS)
    path = OUT / f"{name}.webp"
    picture.save(path, quality=82, method=6)
    print(f"{path.name}: {picture.width} × {picture.height} px, {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Draw all of them."""
    plt.switch_backend("agg")
    OUT.mkdir(exist_ok=True)
    run = train()
    for draw in FIGURES:
        draw(run)
        store(draw.__name__)


if __name__ == "__main__":
    main()
