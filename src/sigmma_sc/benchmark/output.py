"""Tables and report of a benchmark in a folder that may hold files of the user, which are never replaced."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sigmma_sc._files import NEW, checksum, fresh_file, recover, require_writable, scratch_folder, settle, writing
from sigmma_sc._schema import require_schema
from sigmma_sc.errors import ExistsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WRITTEN = ".written.json"
"""File that knows what the benchmark wrote: SHA-256 by name."""

FIGURES = "figures"
REPORT = "report"
"""Name beside which scratch lies."""

NAMES = ("results.parquet", "genes.parquet", "results.csv", "intervals.csv", "report.md", "report.html")


def require_own(out: Path, figures: Iterable[str]) -> None:
    """Raise :class:`ExistsError` for a file at a place of ours that is not as the benchmark wrote it.

    ``figures`` are names of files in the folder of figures. :class:`WriteError` where nothing can be written.
    """
    if out.exists() and not out.is_dir():
        raise ExistsError(f"{out} is a file. Pass another folder as out.")
    require_writable(out / WRITTEN)
    known = _known(out)
    foreign = []
    for name in (*NAMES, *(f"{FIGURES}/{figure}" for figure in figures)):
        path = out / name
        if path.exists() and (not path.is_file() or checksum(path) not in known.get(name, ())):
            foreign.append(name)
    if (out / FIGURES).exists() and not (out / FIGURES).is_dir():
        foreign.append(FIGURES)
    if foreign:
        raise ExistsError(
            f"{out} holds {', '.join(foreign)}, which this benchmark did not write, or which was changed since. Move it away, "
            "or choose another out."
        )


@contextmanager
def fresh_output(out: Path) -> Iterator[Path]:
    """Fill a new folder with tables, report and figures; each file takes its place in ``out`` when the block ends.

    After an error nothing is replaced. Figures that an earlier run wrote, and this one does not, are removed.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        recover(out / REPORT)
        with scratch_folder(out / REPORT) as scratch:
            yield scratch / NEW
            _publish(scratch / NEW, out)


def _publish(fresh: Path, out: Path) -> None:
    new = {}
    for path in sorted(fresh.rglob("*")):
        if path.is_file():
            settle(path, fresh)
            new[path.relative_to(fresh).as_posix()] = [checksum(path)]
    before = _known(out)
    # Both, so that after a kill between two files the next run knows the old ones and the new ones.
    both = {name: before.get(name, []) + new.get(name, []) for name in before.keys() | new.keys()}
    _write_known(out, both)
    (out / FIGURES).mkdir(exist_ok=True)
    for name in new:
        os.replace(fresh / name, out / name)
    for name in before.keys() - new.keys():
        if (out / name).is_file() and checksum(out / name) in before[name]:
            (out / name).unlink()
    _write_known(out, new)


def _known(out: Path) -> dict[str, list[str]]:
    """Checksums of what the benchmark wrote, by name; nothing of a file that is damaged."""
    try:
        known = json.loads((out / WRITTEN).read_text())
        require_schema(known, dict[str, list[str]], WRITTEN)
    except (OSError, ValueError, RecursionError):  # a SetupError is a ValueError
        known = {}
    return known


def _write_known(out: Path, known: dict[str, list[str]]) -> None:
    with fresh_file(out / WRITTEN) as fresh:
        fresh.write_text(json.dumps(known, indent=1, sort_keys=True))
