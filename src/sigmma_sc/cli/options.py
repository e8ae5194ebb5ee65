"""Arguments and options of several commands."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path, typer.Option(help="Folder of a trained model (model/ of 'train').")]
Store = Annotated[
    Path,
    typer.Argument(help="SpatialData store (.zarr) with an H&E image and a table of cells, or outs/ of a Xenium run."),
]
Stores = Annotated[
    list[Path] | None,
    typer.Argument(help="SpatialData stores (.zarr) with an H&E image and a table of cells, or outs/ of a Xenium run."),
]
Manifest = Annotated[
    Path | None,
    typer.Option(
        help="CSV with a line for each slide: path, and if needed sample, donor, condition, image, microns_per_pixel."
    ),
]
SkipFailed = Annotated[
    bool, typer.Option("--skip-failed", help="Leave out slides that cannot be read or set up, and say which.")
]
HEImage = Annotated[
    Path | None,
    typer.Option("--he-image", help="H&E of a Xenium run, (OME-)TIFF; by default *he_image.ome.tif in its folder."),
]
HEAlignment = Annotated[
    Path | None,
    typer.Option(
        "--he-alignment", help="Matrix of H&E to morphology pixels (CSV) of a Xenium run; by default beside it."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder to make for the results.")]
Image = Annotated[list[str], typer.Option("--image", help="Name of the H&E image, or REGION=NAME for each region.")]
System = Annotated[
    list[str],
    typer.Option("--coordinate-system", help="System that image and cells share, or REGION=NAME for each region."),
]
TableName = Annotated[str, typer.Option("--table", help="Name of the table of cells.")]
Microns = Annotated[float | None, typer.Option(help="µm per H&E pixel at full resolution, unless the transforms tell.")]
TileSize = Annotated[float, typer.Option(help="Side of a tile in µm; spots 200 µm apart need about 800.")]
Layer = Annotated[str | None, typer.Option(help="Layer that holds the raw counts; by default X.")]
OtherLayer = Annotated[str | None, typer.Option("--layer", help="Layer of the raw counts; by default the model's.")]
Features = Annotated[str | None, typer.Option(help="Key of obsm with cell embeddings; by default PCA of the counts.")]
Sample = Annotated[str | None, typer.Option(help="Column of obs that names donor or section.")]
Encoder = Annotated[str, typer.Option(help="Image encoder: a name from 'sigmma-sc encoders', or of a timm model.")]
ModelEncoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="Image encoder of the training, named as for 'train'; by default the one that the model stores.",
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="Checkpoint of the encoder (.safetensors, .pt, .pth, .bin) or folder.")
]
EncoderArg = Annotated[
    list[str], typer.Option("--encoder-arg", help="NAME=VALUE for timm.create_model, or mean=…/std=… as three numbers.")
]
Options = Annotated[
    list[str],
    typer.Option("--set", help="NAME=VALUE for an option of sg.Config, e.g. edges=none or loss_weights=0,0,1."),
]
Epochs = Annotated[int, typer.Option(help="Passes over the tissue.")]
Resolution = Annotated[str, typer.Option(help="Resolution of the niches: higher gives more. 'auto' compares several.")]
Devices = Annotated[
    str, typer.Option(help="Devices to train on: how many, or which, separated by commas; 'auto' takes what is there.")
]
Run = Annotated[Path, typer.Argument(help="Folder that 'demo', 'train' or 'embed' wrote.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results of an earlier run.")]
Landmarks = Annotated[
    Path | None,
    typer.Option(
        help="CSV of places marked by hand, in place of the search: image_x, image_y (px of the full-resolution image), cell_x, "
        "cell_y (µm, as the cells), and slide if there are several."
    ),
]
Again = Annotated[bool, typer.Option("--overwrite", help="Register images again that were registered before.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Folder that keeps patch features between runs.")]
Checkpoints = Annotated[
    Path | None,
    typer.Option("--checkpoints", help="Folder that keeps the state of training; the same command resumes from it."),
]
HeOnly = Annotated[bool, typer.Option("--he-only", help="Read the image alone; needs --microns-per-pixel.")]
Interval = Annotated[
    float | None,
    typer.Option(help="Share of new tiles within the interval of each gene, e.g. 0.9; goes with --he-only."),
]
Withhold = Annotated[
    float, typer.Option(help="Level of likeness up to which tiles are withheld (NaN); goes with --he-only.")
]
WithholdTiles = Annotated[float, typer.Option("--withhold", help="Level of likeness up to which tiles are not tested.")]
KeepAll = Annotated[bool, typer.Option("--keep-all", help="Withhold no tile; goes with --he-only.")]
