"""What a folder of results says of the run that made it."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from sigmma_sc import __version__
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.setup import common_setup

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

RUN = "run.json"


class Run(TypedDict):
    """What made a folder of results."""

    command: str
    version: str
    date: str
    store: str | None  # absolute path of the store with the images; None where they are in the folder


def write_run(folder: Path, store: Path | None) -> None:
    """Write the command of this process, and where its images are."""
    run = Run(
        command=shlex.join(["sigmma-sc", *sys.argv[1:]]),
        version=__version__,
        date=date.today().isoformat(),
        store=None if store is None else str(store.absolute()),
    )
    (folder / RUN).write_text(json.dumps(run, indent=1, ensure_ascii=False), encoding="utf-8")


def read_run(folder: Path) -> Run:
    """Read what made a folder, or raise :class:`SetupError` where it holds no embedded cells."""
    for name in ("cells.zarr", "model", RUN):
        if not (folder / name).exists():
            raise SetupError(
                f"{folder} lacks {name}, so there is no run to report. Give the folder that 'sigmma-sc train', 'embed' (without "
                "--he-only) or 'demo' wrote."
            )
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        return Run(command=run["command"], version=run["version"], date=run["date"], store=run["store"])
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(
            f"{folder / RUN} is damaged ({type(error).__name__} {error}). Run the command again."
        ) from error


def add_images(sdata: SpatialData, store: str | Path | None, read: Callable[[Path], SpatialData]) -> None:
    """Add the images that the setup of an object names and that it lacks, from a store read by ``read``."""
    named = common_setup(sdata).image_key
    wanted = list(named.values()) if isinstance(named, dict) else [named]
    missing = [name for name in dict.fromkeys(wanted) if name not in sdata.images]
    if not missing:
        return
    if store is None or not Path(store).exists():
        raise SetupError(f"The images of the run are not at {store}. Pass --store with the store that holds {missing}.")
    images = read(Path(store)).images
    for name in missing:
        if name not in images:
            raise SetupError(f"{store} holds no image {name!r}. Pass --store with the store of the run.")
        sdata.images[name] = images[name]
