"""Several slides in one command: stores named one after another, or the lines of a manifest."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from sigmma_sc._checks import is_number
from sigmma_sc.cli.runs import Source
from sigmma_sc.cli.words import complain
from sigmma_sc.errors import SetupError, SigmmaError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from spatialdata import SpatialData

PATH, SAMPLE, IMAGE, MICRONS = "path", "sample", "image", "microns_per_pixel"
DONOR = "donor"
"""Columns of a manifest with a meaning. All but path, image and microns_per_pixel are written to ``obs``."""

NAME = re.compile(r"[\w.+-]*\w[\w.+-]*")
"""A sample names a folder of results, and a slide."""


class Member(NamedTuple):
    """One slide of a cohort."""

    sample: str
    source: Source
    image: str | None = None
    microns_per_pixel: float | None = None
    # Columns of obs that every cell gets, with their values.
    obs: dict[str, str] = {}


def members_of(stores: Sequence[Path], manifest: Path | None, one: Source) -> list[Member]:
    """Slides of a command, in its order; a single store is ``one``, with what is given beside it."""
    if manifest is None and not stores:
        raise SetupError("No slide is given. Name one store or more, or pass --manifest.")
    if manifest is not None and stores:
        raise SetupError(f"{stores[0]} is given beside --manifest {manifest}. Add it to the manifest.")
    if manifest is None and len(stores) == 1:
        return [Member(stores[0].stem, one)]
    if one.he_image is not None or one.he_alignment is not None:
        raise SetupError("he_image=… and he_alignment=… go with a single Xenium run. Write each run to a store first.")
    if manifest is not None:
        return read_manifest(manifest)
    seen: dict[str, Path] = {}
    for store in stores:
        if not NAME.fullmatch(store.stem):
            raise SetupError(f"{store}: {store.stem!r} names a folder of results. Name it otherwise in a --manifest.")
        if store.stem in seen:
            raise SetupError(
                f"{seen[store.stem]} and {store} are both named {store.stem!r}. Name them by the column 'sample' of a --manifest."
            )
        seen[store.stem] = store
    return [Member(name, Source(store), obs={SAMPLE: name}) for name, store in seen.items()]


def read_manifest(manifest: Path) -> list[Member]:
    """Slides of a CSV file; :class:`SetupError` names the line and the column of what is wrong.

    ``path`` is needed, relative to the folder of the file. ``sample`` is the name of the store by default. ``image`` and
    ``microns_per_pixel`` are settings of the slide. All other columns describe it, such as ``donor`` and ``condition``.
    """
    try:
        table = pd.read_csv(manifest, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError) as error:  # pandas' ParserError and EmptyDataError are ValueErrors
        raise SetupError(
            f"{manifest} is no CSV file with a header ({error}). Give one with a column 'path'."
        ) from error
    if PATH not in table or not len(table):
        what = "no slide" if PATH in table else f"no column 'path', only {', '.join(map(repr, table.columns))}"
        raise SetupError(f"{manifest} has {what}. Give one line for each slide, and its store in the column 'path'.")
    members: list[Member] = []
    for number, row in enumerate(table.to_dict("records"), start=2):
        where = f"{manifest}, line {number}"
        given = {str(name): str(value).strip() for name, value in row.items()}
        store = manifest.parent / given[PATH]
        if not given[PATH] or not store.exists():
            raise SetupError(f"{where}: path={given[PATH]!r} does not exist in {manifest.parent.absolute()}.")
        sample = given.get(SAMPLE) or store.stem
        if not NAME.fullmatch(sample):
            raise SetupError(f"{where}: sample={sample!r} names a folder. Use letters, digits, '.', '-', '+' and '_'.")
        if any(member.sample == sample for member in members):
            raise SetupError(f"{where}: sample={sample!r} is the name of an earlier line. Give each slide its own.")
        obs = {name: value for name, value in given.items() if name not in (PATH, IMAGE, MICRONS)} | {SAMPLE: sample}
        if empty := [name for name, value in obs.items() if not value]:
            raise SetupError(f"{where}: {empty[0]} is empty. Fill it in for every slide, or leave out the column.")
        size = _microns(given.get(MICRONS, ""), where)
        members.append(Member(sample, Source(store), given.get(IMAGE) or None, size, obs))
    return members


def _microns(text: str, where: str) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = float("nan")
    if value is not None and not (is_number(value) and 0 < value < float("inf")):
        raise SetupError(f"{where}: microns_per_pixel={text!r} must be a positive number of µm, or empty.")
    return value


def sample_key_of(members: Sequence[Member], given: str | None) -> str | None:
    """Column of ``obs`` by which slides are held out: that given, the donor of a manifest, or the sample of several."""
    if given is not None:
        return given
    if all(DONOR in member.obs for member in members):
        return DONOR
    return SAMPLE if len(members) > 1 else None


def read_members(
    members: Sequence[Member],
    table: str,
    read: Callable[[Source], SpatialData],
    set_up: Callable[[SpatialData, Member], None],
    skip: bool,
) -> tuple[dict[str, SpatialData], dict[str, str]]:
    """Slides by sample, read and set up one after another, and the reasons of those that were left out.

    A slide that fails raises :class:`SetupError` with its name; with ``skip`` it is told of and left out.
    """
    slides = {}
    left_out = {}
    for member in members:
        try:
            sdata = read(member.source)
            if table in sdata.tables:
                _describe(sdata.tables[table].obs, member)
            set_up(sdata, member)
        except (SigmmaError, OSError) as error:
            if len(members) == 1:
                raise
            if not skip:
                raise SetupError(
                    f"Slide {member.sample!r} ({member.source.store}): {error} To go on without it, pass --skip-failed."
                ) from error
            left_out[member.sample] = str(error)
            complain("Left out", f"Slide {member.sample!r} ({member.source.store}): {error}", "yellow")
            continue
        slides[member.sample] = sdata
    if not slides:
        raise SetupError(f"All {len(members)} slides fail, the first one: {next(iter(left_out.values()))}")
    return slides, left_out


def _describe(obs: pd.DataFrame, member: Member) -> None:
    """Write what a manifest says of a slide to the cells; a column that says something else is an error."""
    for name, value in member.obs.items():
        if name in obs and not (obs[name].astype(str) == value).all():
            other = sorted(set(obs[name].astype(str)) - {value})[0]
            raise SetupError(
                f"obs[{name!r}] of the store is {other!r}, and the cohort says {value!r}. Rename the column of the manifest, or "
                "correct one of them."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
            obs[name] = pd.Categorical([value] * len(obs))
