"""What the package tells, in the words of the command line."""

from __future__ import annotations

import logging
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.markup import escape

from sigmma_sc._notices import silenced
from sigmma_sc._settings import settings, terminal
from sigmma_sc.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

OPTIONS = {
    "microns_per_pixel": "--microns-per-pixel",
    "coordinate_system": "--coordinate-system",
    "image_key": "--image",
    "table_key": "--table",
    "layer": "--layer",
    "features_key": "--features-key",
    "sample_key": "--sample-key",
    "tile_size": "--tile-size",
    "image_encoder": "--encoder",
    "weights": "--weights",
    "max_epochs": "--epochs",
    "devices": "--devices",
    "n_cells": "--n-cells",
    "split": "--split",
    "seed": "--seed",
    "resolution": "--resolution",
    "interval": "--interval",
    "withhold": "--withhold",
    "fdr": "--fdr",
    "scale": "--scale",
    "cache_dir": "--cache",
    "checkpoint_dir": "--checkpoints",
    "overwrite": "--overwrite",
    "landmarks": "--landmarks",
    "he_image": "--he-image",
    "he_alignment": "--he-alignment",
    "groupby": "--groupby",
    "title": "--title",
    "jobs": "--jobs",
    **{name: f"--set {name}" for name in Config.__dataclass_fields__ if name != "seed"},
}
"""Options of the commands by the arguments of Python that they set."""

COMMANDS = {"sg.pp.check_registration(sdata)": "sigmma-sc check", "sg.pp.register(sdata)": "sigmma-sc register"}
"""Commands by the calls of Python that they are."""

complaints = Console(stderr=True, soft_wrap=True)
"""Where errors and warnings go."""


def with_options(message: str) -> str:
    """A message in which arguments of Python are options of the command line, but for those in a call of Python."""
    for call, command in COMMANDS.items():
        message = message.replace(call, f"'{command}'")
    # Another call is found first, and stays as it is.
    found = rf"(?P<call>\w\([^()]*\))|(?<![\w\[.'\"-])(?P<argument>{'|'.join(OPTIONS)})(?==)"
    message = re.sub(found, _spelled, message)
    return message.replace(f"{OPTIONS['overwrite']}=True", "--overwrite")


def _spelled(match: re.Match[str]) -> str:
    return match["call"] or OPTIONS[match["argument"]]


def complain(kind: str, message: str, colour: str) -> None:
    """Print an error or a warning in one line, without where it comes from."""
    complaints.print(f"[bold {colour}]{kind}[/bold {colour}]: {escape(with_options(message))}", highlight=False)


@contextmanager
def spoken() -> Iterator[None]:
    """Within the block, warnings and messages of the package are in these words, and other packages are quiet.

    Verbosity is as before when it ends.
    """
    before = settings.verbosity
    formatter = terminal.formatter
    terminal.setFormatter(_Words())
    try:
        with silenced(), warnings.catch_warnings():
            warnings.showwarning = _showing(warnings.showwarning)
            yield
    finally:
        terminal.setFormatter(formatter)
        settings.verbosity = before


class _Words(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return with_options(super().format(record))


def _showing(others):
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category.__module__ != "sigmma_sc.errors":
            others(message, category, filename, lineno, file, line)
        elif settings.shows("warning"):
            complain(category.__name__, str(message), "yellow")

    return show
