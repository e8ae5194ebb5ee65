"""``sigmma-sc``: training, embedding and benchmarks from a terminal."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.markup import escape

from sigmma_sc import __version__, _keys
from sigmma_sc._checks import is_number, require_interval, require_positive, require_withhold
from sigmma_sc._files import fresh_file, require_writable, writing
from sigmma_sc._settings import settings
from sigmma_sc.cli import options as option
from sigmma_sc.cli.cohort import Member, members_of, read_members, sample_key_of
from sigmma_sc.cli.cohort_results import finish_cohort
from sigmma_sc.cli.landmarks import read_landmarks
from sigmma_sc.cli.results import Steps, console, finish, finish_he_only, print_found, print_table, require_free
from sigmma_sc.cli.runs import Source, add_images, is_xenium, read_run, source_of
from sigmma_sc.cli.words import complain, spoken, with_options
from sigmma_sc.errors import ExistsError, SetupError, SigmmaError
from sigmma_sc.tissue.split import SPLITS, get_split

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.tissue.setup import Setup

BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...]"
"""Value of an option NAME=VALUE."""

SHARED = ("--quiet", "--version")
"""Options that stand before or after the command."""


class Commands(typer.core.TyperGroup):
    """Commands, of which each takes --quiet and --version too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own click, or click's
        """Move options that belong to no command to the front."""
        shared = [argument for argument in args if argument in SHARED]
        others = [argument for argument in args if argument not in SHARED]
        return super().parse_args(ctx, [*dict.fromkeys(shared), *others])


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"sigmma-sc {__version__}")
        raise typer.Exit


@app.callback()
def prepare(
    context: typer.Context,
    modules: Annotated[
        list[str],
        typer.Option("--import", help="Module to import first, which registers encoders, splits and so on."),
    ] = [],  # noqa: B006 - typer copies it
    quiet: Annotated[bool, typer.Option("--quiet", help="Print warnings and errors alone.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Set what is printed, and import the user's modules, from the working folder or installed."""
    from importlib import import_module

    console.quiet = quiet
    if quiet:
        settings.verbosity = "warning"
    context.obj = modules
    if modules:
        sys.path.insert(0, str(Path.cwd()))
    for module in modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise SetupError(
                f"--import {module}: {error}. Name a module installed or in the working folder."
            ) from error


@app.command()
def demo(
    out: option.Out = Path("sigmma-demo"),
    n_cells: Annotated[int, typer.Option(help="Cells to simulate.")] = 12_000,
    epochs: option.Epochs = 60,
    resolution: option.Resolution = "auto",
    devices: option.Devices = "auto",
    seed: Annotated[int, typer.Option(help="Seed of tissue and training.")] = 0,
    overwrite: option.Overwrite = False,
) -> None:
    """Simulate a slide, train, embed and cluster it, and compare with the truth. Needs no download."""
    from sigmma_sc import SIGMMA
    from sigmma_sc.datasets import simulate_tissue

    require_free(out, overwrite)
    niches, chosen = _resolution(resolution), _devices(devices)
    steps = Steps(4)
    sdata = simulate_tissue(n_cells=n_cells, seed=seed)
    SIGMMA.setup_spatialdata(sdata)
    model = SIGMMA(sdata, seed=seed)
    with steps("Training"):
        model.train(max_epochs=epochs, devices=chosen)
    finish(model, sdata, out, None, steps, niches, truth=("compartment", "niche"))


@app.command()
def check(
    store: option.Store,
    image: option.Image = ["he_image"],  # noqa: B006 - typer copies it
    table: option.TableName = "table",
    coordinate_system: option.System = ["global"],  # noqa: B006
    layer: option.Layer = None,
    microns_per_pixel: option.Microns = None,
    he_image: option.HEImage = None,
    he_alignment: option.HEAlignment = None,
) -> None:
    """Check whether image and cells are registered. The exit code is 1 if they are not."""
    from sigmma_sc import SIGMMA, pp

    sdata = _read(Source(store, he_image, he_alignment))
    with warnings.catch_warnings():
        # The verdict is printed below.
        warnings.simplefilter("ignore")
        SIGMMA.setup_spatialdata(
            sdata, _by_region(image), table, _by_region(coordinate_system), layer, microns_per_pixel=microns_per_pixel
        )
    report = pp.check_registration(sdata)
    for slide, row in report.iterrows():
        console.print(
            f"[bold]{slide}[/bold]: {row.verdict} ({row.on_image:.1%} of the cells under the image, {row.on_tissue:.1%} on "
            f"tissue)\n  {escape(with_options(row.advice))}"
        )
    if report.verdict.isin(["shifted", "misregistered"]).any():
        raise typer.Exit(1)


@app.command()
def register(
    store: option.Store,
    image: option.Image = ["he_image"],  # noqa: B006
    table: option.TableName = "table",
    coordinate_system: option.System = ["global"],  # noqa: B006
    layer: option.Layer = None,
    microns_per_pixel: option.Microns = None,
    landmarks: option.Landmarks = None,
    overwrite: option.Again = False,
) -> None:
    """Find where each image belongs on its cells, and write certified poses to the store.

    The exit code is 1 if a pose cannot be told. The image then keeps its transformation.
    """
    from sigmma_sc import pp

    marked = None if landmarks is None else read_landmarks(landmarks)
    if is_xenium(store):
        raise SetupError(
            f"{store} is the output of a Xenium run, and poses are written to a SpatialData store. Write one first: "
            "sg.io.xenium(path, he_image).write('slide.zarr')."
        )
    sdata = _read(Source(store))
    require_writable(store / "any")
    images = _by_region(image)
    with warnings.catch_warnings():
        # The verdict is printed below.
        warnings.simplefilter("ignore")
        report = pp.register(
            sdata,
            images,
            table,
            _by_region(coordinate_system),
            layer=layer,
            microns_per_pixel=microns_per_pixel,
            landmarks=marked,
            overwrite=overwrite,
        )
    with writing(store):
        for region in report.index[report.written]:
            sdata.write_transformations(images[region] if isinstance(images, dict) else images)
            if (squares := _keys.tile_squares(region)) in sdata.shapes:
                sdata.write_transformations(squares)
        if report.written.any():
            sdata.write_attrs()
    for slide, row in report.iterrows():
        moved = f" (moved by {row.moved:.0f} µm)" if row.written else ""
        console.print(f"[bold]{slide}[/bold]: {row.verdict}{moved}\n  {escape(with_options(row.advice))}")
    if (report.verdict != "registered").any():
        raise typer.Exit(1)


@app.command()
def train(  # noqa: PLR0913 - typer reads an option from each parameter
    out: option.Out,
    stores: option.Stores = None,
    manifest: option.Manifest = None,
    image: option.Image = ["he_image"],  # noqa: B006
    table: option.TableName = "table",
    coordinate_system: option.System = ["global"],  # noqa: B006
    microns_per_pixel: option.Microns = None,
    tile_size: option.TileSize = 128.0,
    layer: option.Layer = None,
    features_key: option.Features = None,
    sample_key: option.Sample = None,
    encoder: option.Encoder = "stain-stats",
    weights: option.Weights = None,
    encoder_arg: option.EncoderArg = [],  # noqa: B006
    epochs: option.Epochs = 60,
    resolution: option.Resolution = "auto",
    devices: option.Devices = "auto",
    he_image: option.HEImage = None,
    he_alignment: option.HEAlignment = None,
    split: Annotated[str, typer.Option(help=f"{', '.join(SPLITS)}, or a registered one.")] = "auto",
    options: option.Options = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    cache: option.Cache = None,
    checkpoints: option.Checkpoints = None,
    skip_failed: option.SkipFailed = False,
    overwrite: option.Overwrite = False,
) -> None:
    """Train on one store or several; write model, embeddings, niches and figures to a folder. No store is changed.

    OUT holds model/ (for 'embed'), cells.zarr (your table with obsm X_sigmma_micro, _meso, _macro and niche labels, the
    cells' shapes, and the table of tiles), niches.parquet and niches.csv (cell, niche and confidence), markers.csv, figures
    (niches.png, registration.png, training.png), retrieval.csv, history.csv and run.json (files, settings, versions).

    Of several stores, niches are found together. What belongs to a slide is in slides/ under its name. Slides of one donor
    are held out together if a manifest names donors; otherwise each is a sample.
    """
    from sigmma_sc import SIGMMA, get_encoder

    require_free(out, overwrite)
    chosen = _options(options)
    # Before the store is read and checked, so that a wrong name or missing weights raise at once.
    get_split(split)
    frozen = get_encoder(encoder, weights, **_pairs("--encoder-arg", encoder_arg))
    niches, places = _resolution(resolution), _devices(devices)
    source = Source(stores[0] if stores else Path(), he_image, he_alignment)
    members = members_of(stores or [], manifest, source)
    samples = sample_key_of(members, sample_key)
    steps = Steps(4)

    def set_up(sdata: SpatialData, member: Member) -> None:
        SIGMMA.setup_spatialdata(
            sdata,
            member.image or _by_region(image),
            table,
            _by_region(coordinate_system),
            layer,
            features_key,
            samples,
            microns_per_pixel=member.microns_per_pixel or microns_per_pixel,
            tile_size=tile_size,
        )

    slides, left_out = read_members(members, table, _read, set_up, skip_failed)
    together = manifest is not None or len(members) > 1
    model = SIGMMA(
        slides if together else next(iter(slides.values())), frozen, cache_dir=cache, **{"seed": seed, **chosen}
    )
    with steps("Training"):
        model.train(max_epochs=epochs, split=split, devices=places, checkpoint_dir=checkpoints)
    if together:
        finish_cohort(model, slides, members, left_out, out, steps, niches)
    else:
        finish(model, next(iter(slides.values())), out, source, steps, niches)


@app.command()
def embed(  # noqa: PLR0913 - typer reads an option from each parameter
    store: option.Store,
    model: option.Model,
    out: option.Out,
    image: option.Image = [],  # noqa: B006
    table: option.TableName = "table",
    coordinate_system: option.System = ["global"],  # noqa: B006
    layer: option.OtherLayer = None,
    microns_per_pixel: option.Microns = None,
    he_image: option.HEImage = None,
    he_alignment: option.HEAlignment = None,
    encoder: option.ModelEncoder = None,
    weights: option.Weights = None,
    encoder_arg: option.EncoderArg = [],  # noqa: B006
    resolution: option.Resolution = "auto",
    he_only: option.HeOnly = False,
    interval: option.Interval = None,
    withhold: option.Withhold = 0.01,
    keep_all: option.KeepAll = False,
    cache: option.Cache = None,
    overwrite: option.Overwrite = False,
) -> None:
    """Embed a store with a trained model; write the same files as 'train'. The store is not changed.

    If --he-only is given, OUT holds model/, tiles.zarr (the table of tiles with image embeddings, and their squares) and
    expression.h5ad (tiles × genes, predicted by retrieval, with the reliability of each gene). Tiles that are unlike the
    training tissue are withheld, and one sentence says how many.
    """
    from sigmma_sc import SIGMMA
    from sigmma_sc.store.model import setup_of_model

    require_free(out, overwrite)
    _require_model(model)
    if not he_only and (keep_all or interval is not None):
        raise SetupError(f"{'--keep-all' if keep_all else '--interval'} goes with --he-only. Leave it out.")
    require_interval(interval)
    require_withhold(withhold)
    given = _encoder(encoder, weights, encoder_arg)
    niches = _resolution(resolution)
    source = Source(store, he_image, he_alignment)
    sdata = _read(source)
    trained = setup_of_model(model)
    _set_up_as(trained, sdata, image, None if he_only else table, coordinate_system, layer, microns_per_pixel)
    loaded = SIGMMA.load(model, sdata, given, cache_dir=cache)
    if he_only:
        finish_he_only(loaded, sdata, out, source, interval, None if keep_all else withhold)
    else:
        finish(loaded, sdata, out, source, Steps(3), niches)


@app.command()
def index(  # noqa: PLR0913 - typer reads an option from each parameter
    stores: Annotated[list[Path], typer.Argument(help="SpatialData stores (.zarr); their names name the slides.")],
    model: option.Model,
    out: Annotated[Path, typer.Option(help="Folder to make for the index.")],
    label: Annotated[list[str], typer.Option(help="Column of obs whose labels can be searched for.")] = [],  # noqa: B006
    image: option.Image = [],  # noqa: B006
    table: option.TableName = "table",
    coordinate_system: option.System = ["global"],  # noqa: B006
    layer: option.OtherLayer = None,
    microns_per_pixel: option.Microns = None,
    encoder: option.ModelEncoder = None,
    weights: option.Weights = None,
    encoder_arg: option.EncoderArg = [],  # noqa: B006
    he_only: option.HeOnly = False,
    cache: option.Cache = None,
    overwrite: option.Overwrite = False,
) -> None:
    """Write an index of the tiles of one or many stores, for 'search'. The stores are not changed."""
    from sigmma_sc import SIGMMA
    from sigmma_sc.infer.index import FOLDER
    from sigmma_sc.store.model import setup_of_model

    FOLDER.require_replaceable(out, overwrite)
    _require_model(model)
    given = _encoder(encoder, weights, encoder_arg)
    trained = setup_of_model(model)
    slides = {}
    for store in stores:
        if store.stem in slides:
            raise SetupError(
                f"Two stores are named {store.stem!r}, so that their tiles would have one name. Rename one."
            )
        sdata = _read(Source(store))
        _set_up_as(trained, sdata, image, None if he_only else table, coordinate_system, layer, microns_per_pixel)
        slides[store.stem] = sdata
    made = SIGMMA.load(model, slides, given, cache_dir=cache).build_index(out, labels=label, overwrite=overwrite)
    console.print(f"Index: {out}, {made}", highlight=False)


@app.command()
def search(
    index: Annotated[Path, typer.Argument(help="Folder that 'index' wrote.")],
    tile: Annotated[list[str], typer.Option(help="Tile of the index; give several for a region.")] = [],  # noqa: B006
    gene: Annotated[list[str], typer.Option(help="Gene; give several for a set.")] = [],  # noqa: B006
    label: Annotated[str | None, typer.Option(help="COLUMN=LABEL of the cells, of a column in the index.")] = None,
    transcriptome: Annotated[
        bool, typer.Option("--transcriptome", help="Compare the cells of the tiles instead of their H&E.")
    ] = False,
    scale: Annotated[str, typer.Option(help="Name of a scale, or all.")] = "all",
    fdr: Annotated[float, typer.Option(help="Level of false discoveries among the tiles that are alike.")] = 0.1,
    withhold: option.WithholdTiles = 0.01,
    out: Annotated[Path | None, typer.Option(help="CSV file to write with all tiles.")] = None,
    overwrite: option.Overwrite = False,
) -> None:
    """Find the tiles of an index that are alike to tiles, genes or labelled cells, or that nothing is."""
    from sigmma_sc import tl

    if out is not None and out.exists() and not overwrite:
        raise ExistsError(f"{out} exists. Choose another --out, or pass --overwrite to replace it.")
    given: dict[str, str | list[str]] = {"tiles": tile, "genes": gene}
    if label is not None:
        column, _, name = label.partition("=")
        given[column] = name
    query = {key: value for key, value in given.items() if value}
    if len(query) != 1:
        raise SetupError("A search is for one thing: pass --tile, --gene or --label COLUMN=LABEL.")
    found = tl.search(query, index, "transcriptome" if transcriptome else "image", scale, fdr=fdr, withhold=withhold)
    if out is not None:
        with fresh_file(out) as file:
            found.to_csv(file, index=False)
    print_found(found)


@app.command()
def report(
    run: option.Run,
    out: Annotated[Path | None, typer.Option(help="File to write; by default report.html in RUN.")] = None,
    images: Annotated[
        Path | None,
        typer.Option("--store", help="Store with the H&E images; by default the one that the run was made on."),
    ] = None,
    groupby: Annotated[
        str | None, typer.Option(help="Column of obs with cell types, for the composition of niches.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page; by default the name of RUN.")] = None,
    encoder: option.ModelEncoder = None,
    weights: option.Weights = None,
    encoder_arg: option.EncoderArg = [],  # noqa: B006
    overwrite: option.Overwrite = False,
) -> None:
    """Write a run to one HTML file, with maps of the niches on the H&E. It opens in a browser and needs nothing else."""
    from sigmma_sc import SIGMMA
    from sigmma_sc.reporting import report as write_report

    file = run / "report.html" if out is None else out
    if file.exists() and not overwrite:
        raise ExistsError(f"{file} exists. Choose another --out, or pass --overwrite to replace it.")
    described = read_run(run)
    given = _encoder(encoder, weights, encoder_arg)
    sdata = _read(Source(run / "cells.zarr"))
    add_images(sdata, Source(images) if images else source_of(described), _read)
    model = SIGMMA.load(run / "model", sdata, given)
    named = title or run.absolute().name
    write_report(model, sdata, file, groupby=groupby, title=named, command=described["command"], overwrite=overwrite)
    console.print(f"Report: {file}")


@app.command()
def benchmark(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a configuration in the package.")],
    out: option.Out,
    jobs: Annotated[int, typer.Option(help="Processes that share the trials and this machine's cores.")] = 1,
    cache: option.Cache = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run trials anew whose settings changed.")] = False,
) -> None:
    """Compare methods on data sets, splits and seeds; write tables and a report. The same command resumes a stopped run."""
    from sigmma_sc.benchmark import run

    modules: list[str] = context.obj
    command = " ".join(["sigmma-sc", *(f"--import {module}" for module in modules), f"benchmark {config} --out {out}"])
    if jobs > 1:
        command += f" --jobs {jobs}"
    run(config, out, jobs=jobs, cache_dir=cache, overwrite=overwrite, command=command, imports=modules)
    console.print(f"Report: {out / 'report.html'}")


@app.command()
def encoders() -> None:
    """List the image encoders known by name."""
    from sigmma_sc import list_encoders

    columns = ["name", "architecture", "dim", "licence", "gated", "page"]
    print_table("Image encoders", list_encoders().reset_index()[columns])


def main() -> None:
    """Entry point: errors of sigmma-sc are printed without a traceback, in the words of the command line."""
    with spoken():
        try:
            app()
        except SigmmaError as error:
            complain(type(error).__name__, str(error), "red")
            sys.exit(2)


def _require_model(path: Path) -> None:
    """Raise :class:`SetupError` where no model lies."""
    if not (path / "model.json").exists():
        raise SetupError(f"{path} holds no saved model. Give the folder model/ that 'sigmma-sc train' wrote.")


def _set_up_as(
    trained: Setup,
    sdata: SpatialData,
    image: list[str],
    table: str | None,
    coordinate_system: list[str],
    layer: str | None,
    microns_per_pixel: float | None,
) -> None:
    """Set up an object as that of a trained model, but for what is given.

    A column of samples tells what is held out in training. A new store needs none.
    """
    from sigmma_sc import SIGMMA

    has_samples = table in sdata.tables and trained.sample_key in sdata.tables[table].obs
    SIGMMA.setup_spatialdata(
        sdata,
        _by_region(image) if image else trained.image_key,
        table,
        _by_region(coordinate_system),
        trained.layer if layer is None else layer,
        trained.features_key,
        trained.sample_key if has_samples else None,
        microns_per_pixel,
        trained.tile_size,
        trained.grids,
    )


def _encoder(name: str | None, weights: Path | None, arguments: list[str]) -> ImageEncoder | None:
    """The encoder that a model was trained with, where it is named."""
    from sigmma_sc import get_encoder

    if name is not None:
        return get_encoder(name, weights, **_pairs("--encoder-arg", arguments))
    if weights is not None or arguments:
        raise SetupError(
            f"{'--encoder-arg' if weights is None else '--weights'} goes with --encoder. Pass the same encoder options as to 'train'."
        )
    return None


def _resolution(text: str) -> float | str:
    """Resolution of niches, or "auto"."""
    value = _value(text)
    if value != "auto" and not is_number(value):
        raise SetupError(f"resolution={text!r} must be a positive number or 'auto'.")
    if isinstance(value, (int, float)):
        require_positive(value, "resolution")
        return float(value)
    return "auto"


def _devices(text: str) -> int | list[int] | str:
    """Lightning's devices: their number, their places separated by commas, or "auto"."""
    value = _value(text)
    places = value if isinstance(value, tuple) else (value,)
    if text == "auto":
        return text
    if any(isinstance(place, bool) or not isinstance(place, int) for place in places):
        raise SetupError(f"devices={text!r} must be a number, places separated by commas, or 'auto'.")
    found = [int(place) for place in places if isinstance(place, int)]
    return found if isinstance(value, tuple) else found[0]


def _read(source: Source) -> SpatialData:
    import spatialdata

    from sigmma_sc import io

    store = source.store
    if not store.exists():
        raise SetupError(f"{store} does not exist.")
    if is_xenium(store):
        return io.xenium(store, source.he_image, source.he_alignment)
    if source.he_image is not None or source.he_alignment is not None:
        name = "he_alignment" if source.he_image is None else "he_image"
        raise SetupError(f"{name}=… goes with the output folder of a Xenium run, and {store} has no experiment.xenium.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sdata = spatialdata.read_zarr(store)
    except Exception as error:
        # Readers of zarr raise errors of many kinds for what is no store, or a damaged one.
        raise SetupError(
            f"{store} is no SpatialData store, or is damaged ({type(error).__name__}). Write one with sdata.write(path)."
        ) from error
    if not any(True for _ in sdata.gen_elements()):
        raise SetupError(
            f"{store} is a SpatialData store without any element. Write one with an H&E image and a table."
        )
    return sdata


def _by_region(values: list[str]) -> str | dict[str, str]:
    """One name, or REGION=NAME pairs."""
    if len(values) == 1 and "=" not in values[0]:
        return values[0]
    if not all("=" in value for value in values):
        raise SetupError(f"{values!r}: give one name, or REGION=NAME for each region.")
    return dict(value.split("=", 1) for value in values)


def _options(arguments: list[str]) -> dict[str, Any]:
    """Options of the method from NAME=VALUE; flags as booleans."""
    from sigmma_sc.config import FLAGS

    given = _texts("--set", arguments)
    for name in given.keys() & set(FLAGS):
        if given[name].lower() not in BOOLEANS:
            raise SetupError(f"--set {name}={given[name]} must be one of {', '.join(BOOLEANS)}.")
    return {name: BOOLEANS[text.lower()] if name in FLAGS else _value(text) for name, text in given.items()}


def _pairs(option: str, arguments: list[str]) -> dict[str, Value]:
    """Values by name from NAME=VALUE."""
    return {name: _value(text) for name, text in _texts(option, arguments).items()}


def _texts(option: str, arguments: list[str]) -> dict[str, str]:
    if wrong := [argument for argument in arguments if "=" not in argument]:
        raise SetupError(f"{option} {wrong[0]} must have the form NAME=VALUE.")
    return dict(argument.split("=", 1) for argument in arguments)


def _value(text: str) -> Value:
    """A number, numbers separated by commas, true or false, or the text itself."""
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
