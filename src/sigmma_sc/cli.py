"""``sigmma-sc``: the main job from a terminal."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sigmma_sc._checks import ExistsError, SetupError, SigmmaError

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
console = Console()

Store = Annotated[Path, typer.Argument(help="SpatialData store (.zarr) with an H&E image and a table of cells.")]
Out = Annotated[Path, typer.Option(help="Folder to make for the results.")]
Image = Annotated[
    list[str], typer.Option("--image", help="Name of the H&E image, or REGION=NAME for each of several regions.")
]
System = Annotated[
    list[str],
    typer.Option("--coordinate-system", help="System that image and cells share, or REGION=NAME for each region."),
]
TableName = Annotated[str, typer.Option("--table", help="Name of the table of cells.")]
Microns = Annotated[
    float | None, typer.Option(help="µm per H&E pixel at full resolution, if the transforms cannot say.")
]
TileSize = Annotated[float, typer.Option(help="Side of a tile in µm; spots 200 µm apart need about 800.")]
Features = Annotated[str | None, typer.Option(help="Key of obsm with cell embeddings; PCA of the counts without it.")]
Sample = Annotated[str | None, typer.Option(help="Column of obs that names donor or section.")]
Encoder = Annotated[str, typer.Option(help="Image encoder: a name of 'sigmma-sc encoders', or of a timm model.")]
Weights = Annotated[Path | None, typer.Option(help="Local checkpoint of the encoder (.safetensors, .pt, .pth, .bin).")]
EncoderArg = Annotated[
    list[str], typer.Option("--encoder-arg", help="NAME=VALUE for timm.create_model, or mean=…/std=… as three numbers.")
]
Epochs = Annotated[int, typer.Option(help="Most epochs; training ends earlier when the validation loss stops falling.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results of an earlier run.")]


@app.command()
def demo(
    out: Out = Path("sigmma-demo"),
    n_cells: Annotated[int, typer.Option(help="Cells to simulate.")] = 12_000,
    epochs: Epochs = 40,
    seed: Annotated[int, typer.Option(help="Of tissue and training.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a slide, train, embed and cluster it, and compare with the truth. Needs no download."""
    from sigmma_sc import SIGMMA
    from sigmma_sc.datasets import simulate_tissue

    _require_free(out, overwrite)
    sdata = simulate_tissue(n_cells=n_cells, seed=seed)
    SIGMMA.setup_spatialdata(sdata)
    model = SIGMMA(sdata, seed=seed)
    model.train(max_epochs=epochs)
    _finish(model, sdata, out, overwrite, truth=["compartment", "niche"], whole=True)


@app.command()
def check(
    store: Store,
    image: Image = ["he_image"],  # noqa: B006 - typer copies it
    table: TableName = "table",
    coordinate_system: System = ["global"],  # noqa: B006
    microns_per_pixel: Microns = None,
) -> None:
    """Tell whether image and cells are registered. Exit code 1 if they are not."""
    from sigmma_sc import SIGMMA, pp

    sdata = _read(store)
    with warnings.catch_warnings():
        # The verdict is printed below.
        warnings.simplefilter("ignore")
        SIGMMA.setup_spatialdata(
            sdata, _by_region(image), table, _by_region(coordinate_system), microns_per_pixel=microns_per_pixel
        )
    report = pp.check_registration(sdata)
    for slide, row in report.iterrows():
        console.print(
            f"[bold]{slide}[/bold]: {row.verdict} ({row.on_image:.1%} of the cells under the image)\n  {row.advice}"
        )
    if report.verdict.isin(["shifted", "misregistered"]).any():
        raise typer.Exit(1)


@app.command()
def train(
    store: Store,
    out: Out,
    image: Image = ["he_image"],  # noqa: B006
    table: TableName = "table",
    coordinate_system: System = ["global"],  # noqa: B006
    microns_per_pixel: Microns = None,
    tile_size: TileSize = 128.0,
    features_key: Features = None,
    sample_key: Sample = None,
    encoder: Encoder = "stain-stats",
    weights: Weights = None,
    encoder_arg: EncoderArg = [],  # noqa: B006
    epochs: Epochs = 60,
    split: Annotated[str, typer.Option(help="auto, sample, blocks, end, random or none.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train on a store; write model, embeddings, niches and figures to a folder. The store itself is not changed.

    OUT holds model/ (for 'embed'), cells.zarr (your table with obsm X_sigmma_micro, _meso, _macro and niche labels, the
    cells' shapes, and the table of tiles), niches.png, retrieval.csv and history.csv.
    """
    from sigmma_sc import SIGMMA

    _require_free(out, overwrite)
    sdata = _read(store)
    SIGMMA.setup_spatialdata(
        sdata,
        _by_region(image),
        table,
        _by_region(coordinate_system),
        features_key=features_key,
        sample_key=sample_key,
        microns_per_pixel=microns_per_pixel,
        tile_size=tile_size,
    )
    model = SIGMMA(sdata, _encoder(encoder, weights, encoder_arg), seed=seed)
    model.train(max_epochs=epochs, split=split)
    _finish(model, sdata, out, overwrite)


@app.command()
def embed(
    store: Store,
    model: Annotated[Path, typer.Option(help="Folder of a trained model (model/ of 'train').")],
    out: Out,
    image: Image = [],  # noqa: B006
    table: TableName = "table",
    coordinate_system: System = ["global"],  # noqa: B006
    microns_per_pixel: Microns = None,
    overwrite: Overwrite = False,
) -> None:
    """Embed a store with a trained model; write as 'train' does. The store itself is not changed."""
    import json

    from sigmma_sc import SIGMMA
    from sigmma_sc.tissue.setup import Setup

    _require_free(out, overwrite)
    sdata = _read(store)
    if not (model / "model.json").exists():
        raise SetupError(f"{model} holds no saved model. Give the folder model/ that 'sigmma-sc train' wrote.")
    trained = Setup.from_json(json.loads((model / "model.json").read_text())["setup"])
    SIGMMA.setup_spatialdata(
        sdata,
        _by_region(image) if image else trained.image_key,
        table,
        _by_region(coordinate_system),
        trained.layer,
        trained.features_key,
        trained.sample_key,
        microns_per_pixel,
        trained.tile_size,
        trained.grids,
    )
    _finish(SIGMMA.load(model, sdata), sdata, out, overwrite, split="all")


@app.command()
def encoders() -> None:
    """List the image encoders known by name."""
    from sigmma_sc import list_encoders

    _print_table(
        "Image encoders", list_encoders().reset_index()[["name", "architecture", "dim", "licence", "gated", "page"]]
    )


def main() -> None:
    """Entry point: errors of ours are a sentence, not a traceback."""
    try:
        app()
    except SigmmaError as error:
        console.print(f"[bold red]{type(error).__name__}[/bold red]: {error}", highlight=False)
        sys.exit(2)


def _finish(
    model: Any,
    sdata: SpatialData,
    out: Path,
    overwrite: bool,
    truth: list[str] | None = None,
    whole: bool = False,
    split: str = "test",
) -> None:
    """Embed, cluster, draw, score and write, in a folder beside OUT that is moved into place at the end."""
    import shutil
    import tempfile

    from sigmma_sc import pl, tl
    from sigmma_sc.tissue.setup import get_table, stored_setup

    setup = stored_setup(sdata)
    model.write_embeddings(sdata, overwrite=True)
    adata = get_table(sdata, setup)
    tl.niches(adata, setup.scales)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        fresh = Path(scratch) / out.name
        fresh.mkdir()
        model.save(fresh / "model")
        for region, part in adata.obs.groupby(adata.uns["spatialdata_attrs"]["region_key"], observed=True):
            name = "niches.png" if adata.n_obs == len(part) else f"niches_{region}.png"
            if "spatial" in adata.obsm:
                pl.niches(adata[part.index], setup.scales, reference=truth or [], save=fresh / name)
        recall = model.evaluate_retrieval(None if sdata is model.sdata else sdata, split)
        recall.to_csv(fresh / "retrieval.csv", index=False)
        import pandas as pd

        pd.concat({k: v.iloc[:, 0] for k, v in model.history.items()}, axis=1).to_csv(fresh / "history.csv")
        (sdata if whole else sdata.subset([n for _, n, _ in sdata.gen_elements() if n not in sdata.images])).write(
            fresh / "cells.zarr"
        )
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    _report(recall, adata, setup.scales, truth, split)
    console.print(f"Written to [bold]{out}[/bold]: {', '.join(sorted(p.name for p in out.iterdir()))}")


def _report(recall: pd.DataFrame, adata: Any, scales: tuple[str, ...], truth: list[str] | None, split: str) -> None:
    _print_table(f"Retrieval among {split} tiles of the same slide", recall.round(3))
    if truth:
        import pandas as pd

        from sigmma_sc.metrics.niches import niche_agreement

        rows = [
            {"scale": s, "truth": t, **niche_agreement(adata.obs[f"sigmma_niche_{s}"], adata.obs[t])}
            for s in scales
            for t in truth
        ]
        _print_table("Leiden niches against the truth", pd.DataFrame(rows)[["scale", "truth", "ari", "nmi"]].round(3))


def _print_table(title: str, frame: pd.DataFrame) -> None:
    shown = Table(title=title, title_justify="left")
    for column in frame.columns:
        shown.add_column(str(column))
    for row in frame.itertuples(index=False):
        shown.add_row(*map(str, row))
    console.print(shown)


def _require_free(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise ExistsError(f"{out} exists. Choose another --out, or pass --overwrite to replace it.")
    if any(out.iterdir()) and not (out / "model" / "model.json").exists():
        raise ExistsError(f"{out} exists and holds no results of sigmma-sc; it is not replaced. Choose another --out.")


def _read(store: Path) -> SpatialData:
    import spatialdata

    if not store.exists():
        raise SetupError(f"{store} does not exist.")
    return spatialdata.read_zarr(store)


def _by_region(values: list[str]) -> str | dict[str, str]:
    """One name, or REGION=NAME pairs."""
    if len(values) == 1 and "=" not in values[0]:
        return values[0]
    if not all("=" in value for value in values):
        raise SetupError(f"{values!r}: give one name, or REGION=NAME for each region.")
    return dict(value.split("=", 1) for value in values)


def _encoder(name: str, weights: Path | None, arguments: list[str]) -> Any:
    from sigmma_sc.nn.encoders import REGISTRY, ImageEncoder, get_encoder

    if name in REGISTRY and not arguments:
        return get_encoder(name, weights)
    options = dict(argument.split("=", 1) for argument in arguments)
    return ImageEncoder.from_timm(
        name, weights, pretrained=weights is None, **{k: _value(v) for k, v in options.items()}
    )


def _value(text: str) -> Any:
    """A number, numbers separated by commas, true or false, or the text itself."""
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
