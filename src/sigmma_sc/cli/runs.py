"""What a folder of results says of the run that made it."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from sigmma_sc import __version__
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.setup import common_setup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spatialdata import SpatialData

RUN = "run.json"

SLIDES = "slides"
"""Folder of what belongs to each slide, where a run is of several."""


class Source(NamedTuple):
    """Where a slide is read from: a store, or the output folder of a Xenium run with its H&E."""

    store: Path
    he_image: Path | None = None
    he_alignment: Path | None = None


def is_xenium(folder: Path) -> bool:
    """Whether a folder is the output of a Xenium run."""
    return (folder / "experiment.xenium").is_file()


class Run(TypedDict):
    """What made a folder of results."""

    command: str
    version: str
    date: str
    # Absolute paths of the store with the images, and of an H&E beside it; None where they are in the folder.
    store: str | None
    he_image: str | None
    he_alignment: str | None


def write_run(
    folder: Path,
    source: Source | None,
    settings: Mapping[str, str] | None = None,
    cohort: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write the command of this process, where its images are, its settings, and the files of the folder.

    ``cohort`` are the stores of several slides, and the reasons of those that were left out.
    """
    store, he_image, he_alignment = [None if path is None else str(path.absolute()) for path in source or [None] * 3]
    run = Run(
        command=shlex.join(["sigmma-sc", *sys.argv[1:]]),
        version=__version__,
        date=date.today().isoformat(),
        store=store,
        he_image=he_image,
        he_alignment=he_alignment,
    )
    manifest = {**run, "settings": dict(settings or {}), **(cohort or {}), "files": _files_of(folder)}
    (folder / RUN).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


def _files_of(folder: Path) -> dict[str, dict[str, int | str]]:
    """Size of each file and folder of results, with the SHA-256 of files."""
    found: dict[str, dict[str, int | str]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found[path.name] = {"bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file())}
            continue
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    return found


def read_run(folder: Path) -> Run:
    """Read what made a folder, or raise :class:`SetupError` where it holds no embedded cells."""
    if (folder / SLIDES).is_dir():
        raise SetupError(
            f"{folder} is of several slides, and a report is of one run on one store. Run 'sigmma-sc embed STORE --model "
            f"{folder / 'model'} --out OUT', and report OUT."
        )
    for name in ("cells.zarr", "model", RUN):
        if not (folder / name).exists():
            raise SetupError(
                f"{folder} lacks {name}, so there is no run to report. Give the folder that 'sigmma-sc train', 'embed' (without "
                "--he-only) or 'demo' wrote."
            )
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        return Run(
            command=run["command"],
            version=run["version"],
            date=run["date"],
            store=run["store"],
            he_image=run.get("he_image"),
            he_alignment=run.get("he_alignment"),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(
            f"{folder / RUN} is damaged ({type(error).__name__} {error}). Run the command again."
        ) from error


def source_of(run: Run) -> Source | None:
    """Where the images of a run are; ``None`` where they are in its folder."""
    if run["store"] is None:
        return None
    image, alignment = [None if path is None else Path(path) for path in (run["he_image"], run["he_alignment"])]
    return Source(Path(run["store"]), image, alignment)


def add_images(sdata: SpatialData, source: Source | None, read: Callable[[Source], SpatialData]) -> None:
    """Add the images that the setup of an object names and that it lacks, from where ``read`` reads them."""
    named = common_setup(sdata).image_key
    wanted = list(named.values()) if isinstance(named, dict) else [named]
    missing = [name for name in dict.fromkeys(wanted) if name not in sdata.images]
    if not missing:
        return
    store = None if source is None else source.store
    if source is None or not source.store.exists():
        raise SetupError(f"The images of the run are not at {store}. Pass --store with the store that holds {missing}.")
    images = read(source).images
    for name in missing:
        if name not in images:
            raise SetupError(f"{store} holds no image {name!r}. Pass --store with the store of the run.")
        sdata.images[name] = images[name]
