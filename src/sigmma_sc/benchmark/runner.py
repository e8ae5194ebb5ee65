"""A whole benchmark: every cell once, kept as soon as it is done, then tables and the report."""

from __future__ import annotations

import logging
import os
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigmma_sc._checks import require_positive
from sigmma_sc._files import fresh_file
from sigmma_sc.benchmark.config import BenchmarkConfig, read_config
from sigmma_sc.benchmark.intervals import intervals_table
from sigmma_sc.benchmark.methods import METHODS
from sigmma_sc.benchmark.report import write_report
from sigmma_sc.benchmark.scores import genes_table, results_table, stability_table
from sigmma_sc.benchmark.sources import encoder_of, load
from sigmma_sc.benchmark.trial import Cell, cell_path, require_same, run_cell, settings_of
from sigmma_sc.encoders.text import PRETRAINED, text_tower
from sigmma_sc.errors import SetupError, SigmmaError, SplitWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from sigmma_sc.benchmark.config import DataSpec, MethodSpec

    Job = tuple[DataSpec, str, MethodSpec, int]


def run(
    config: BenchmarkConfig | str | Path | dict[str, Any],
    out: str | Path,
    *,
    jobs: int = 1,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    command: str | None = None,
) -> pd.DataFrame:
    """Run a benchmark, or what is left of it, and report.

    Every cell (data set × split × seed × method) is kept in a file of its own as soon as it is done; the same call, run again after it
    was stopped, takes up from there.

    Parameters
    ----------
    config
        Configuration, a YAML file or dict of it, or the name of one in the package (``sigmma_sc.benchmark.packaged()``).
    out
        Folder of cells, tables and report.
    jobs
        Processes that share the cells, and this machine's cores. Methods that were added to ``METHODS`` in a notebook run with
        one process only.
    cache_dir
        Of patch features; ``out/features`` by default.
    overwrite
        Run cells anew whose settings are no longer the configuration's.
    command
        What to print in the report as the command that was run.

    Returns
    -------
    The tidy table of all figures, which ``out`` holds as ``results.csv`` and ``results.parquet`` beside ``genes.parquet`` (every
    gene), ``intervals.csv`` (95 % intervals over spatial blocks and paired differences from the first method) and the report,
    ``report.html`` by itself and ``report.md`` with its figures.

    Raises
    ------
    SetupError
        The configuration is wrong, or some cells failed; the report is written before and names them.
    ExistsError
        A cell in ``out`` was run with other settings, and ``overwrite`` is not set; nothing is run then.

    Warns
    -----
    SplitWarning
        A data set is split at random.

    Examples
    --------
    >>> data = {"simulated": {"simulate": {"n_cells": 900}, "setup": {"tile_size": 64}}}
    >>> config = {"datasets": data, "methods": ["random", "gene-mean"], "seeds": [0]}
    >>> table = sg.benchmark.run(config, "comparison")
    >>> table.loc[table["metric"].str.startswith("mean recall"), ["method", "metric", "n_test", "chance"]].round(2)
       method                           metric  n_test  chance
    3  random  mean recall image→transcriptome       9    0.15
    8  random  mean recall transcriptome→image       9    0.15
    """
    require_positive(jobs, "jobs")
    plan = config if isinstance(config, BenchmarkConfig) else read_config(config)
    out = Path(out).expanduser()
    cache = str(out / "features" if cache_dir is None else Path(cache_dir).expanduser())
    missing = _missing(plan, out, overwrite)
    if leaking := [data.name for data in plan.datasets if "random" in data.splits]:
        warnings.warn(
            f"split='random' of {', '.join(leaking)} puts neighbouring tiles into train and test: use its figures only to show the "
            "leak.",
            SplitWarning,
            stacklevel=2,
        )
    failed = []
    for job, error in _results(plan, missing, out, cache, int(jobs)):
        if error is not None:
            failed.append(f"{_name(job)}: {error}")
            warnings.warn(f"{failed[-1]} The benchmark goes on.", stacklevel=2)
    cells = [Cell.read(path) for job in plan.cells() if (path := cell_path(out, *job)).exists()]
    if not cells:
        raise SetupError(f"No cell could be run. {failed[0]}")
    table = _write(plan, cells, out, command or f"sg.benchmark.run(…, {str(out)!r}, jobs={jobs})", failed)
    if failed:
        raise SetupError(f"{len(failed)} of {len(plan.cells())} cells failed; the report holds the others. {failed[0]}")
    return table


def _missing(plan: BenchmarkConfig, out: Path, overwrite: bool) -> list[Job]:
    """Cells to run; all that can be refused is refused here, before any work."""
    jobs = []
    for job in plan.cells():
        data, _, method, _ = job
        path, settings = cell_path(out, *job), settings_of(plan, data, method)
        if path.exists():
            if overwrite and Cell.read(path).meta["settings"] != settings:
                jobs.append(job)
                continue
            require_same(path, settings)
        else:
            jobs.append(job)
    _require_weights(plan, [method for *_, method, _ in jobs])
    return jobs


def _require_weights(plan: BenchmarkConfig, methods: list[MethodSpec]) -> None:
    """Build every image encoder and pretrained text tower once, those that a method takes by itself among them."""
    encoders, texts = {}, set()
    for spec in methods:
        own = _arguments_of(spec)
        given = spec.encoder or plan.encoder or own.get("image_encoder")
        if given is not None:
            encoders[repr(given)] = given
        if own.get("text") in PRETRAINED:
            texts.add((own["text"], own.get("text_weights")))
    for given in encoders.values():
        encoder_of(given)
    for name, weights in texts:
        text_tower(name, weights, [])


def _arguments_of(spec: MethodSpec) -> dict[str, Any]:
    """Arguments of a method's class: its defaults, those that come with the method's name, and the configuration's."""
    make = METHODS[spec.method]
    kind = next((one for one in getattr(make, "args", ()) if isinstance(one, type)), make)
    defaults = {name: p.default for name, p in signature(kind).parameters.items() if p.default is not p.empty}
    return {**defaults, **getattr(make, "keywords", {}), **spec.arguments}


def _results(
    plan: BenchmarkConfig, missing: list[Job], out: Path, cache: str, jobs: int
) -> Iterator[tuple[Job, SigmmaError | None]]:
    """Run cells, and say of each whether it failed."""
    from rich.progress import Progress

    with Progress(disable=None) as progress:
        bar = progress.add_task("Benchmark", total=len(missing))
        one = partial(_run_one, plan, out=out, cache=cache)
        if jobs == 1 or len(missing) < 2:
            for job in missing:
                progress.update(bar, description=_name(job))
                yield job, one(job)
                progress.advance(bar)
            return
        _encode(plan, missing, cache)
        # Fresh processes: one that was forked beside torch's threads may hang.
        with (
            _threads(max(1, (os.cpu_count() or jobs) // jobs)),
            ProcessPoolExecutor(jobs, get_context("spawn")) as pool,
        ):
            waiting = {pool.submit(one, job): job for job in missing}
            for done in as_completed(waiting):
                progress.update(bar, advance=1, description=_name(waiting[done]))
                yield waiting[done], done.result()


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Let processes that are started meanwhile take this many threads each."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    try:
        os.environ.update(dict.fromkeys(names, str(n)))
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _run_one(plan: BenchmarkConfig, job: Job, out: Path, cache: str) -> SigmmaError | None:
    try:
        with _quiet():
            run_cell(plan, *job, cache).save(cell_path(out, *job))
    except SigmmaError as error:
        return error
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what a trainer says of each of some hundred runs, and that a random split leaks, which is said once."""
    talkers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    levels = [talker.level for talker in talkers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=SplitWarning)
        warnings.filterwarnings("ignore", module="lightning")
        try:
            for talker in talkers:
                talker.setLevel(logging.ERROR)
            yield
        finally:
            for talker, level in zip(talkers, levels, strict=True):
                talker.setLevel(level)


def _encode(plan: BenchmarkConfig, missing: list[Job], cache: str) -> None:
    """Encode what the processes share, before they start."""
    from sigmma_sc.pp import encode_patches

    seen = set()
    for data, _, method, _ in missing:
        given = method.encoder or plan.encoder
        stride = {**plan.train, **data.train, **method.train}.get("stride")
        sizes = {**data.switches, **method.arguments}.get("crop_sizes")
        key = (data.name, repr(given), stride, repr(sizes))
        if given is not None and key not in seen:
            encode_patches(load(data), encoder_of(given), cache, stride=stride, crop_sizes=sizes)
        seen.add(key)


def _write(plan: BenchmarkConfig, cells: list[Cell], out: Path, command: str, failed: list[str]) -> pd.DataFrame:
    import pandas as pd

    results, genes, stability = results_table(cells), genes_table(cells), stability_table(cells)
    parts = []
    for (dataset, split), group in pd.DataFrame([c.meta | {"cell": c} for c in cells]).groupby(
        ["dataset", "split"], sort=False
    ):
        parts.append(intervals_table(list(group.cell)).assign(dataset=dataset, split=split))
    intervals = pd.concat(parts, ignore_index=True)
    for table, name in ((results, "results"), (genes, "genes")):
        with fresh_file(out / f"{name}.parquet") as fresh:
            table.to_parquet(fresh)
    for table, name in ((results, "results"), (intervals, "intervals")):
        with fresh_file(out / f"{name}.csv") as fresh:
            table.to_csv(fresh, index=False)
    write_report(plan, cells, results, intervals, stability, out, command, failed)
    return results


def _name(job: Job) -> str:
    data, split, method, seed = job
    return f"{data.name}, {split}, {method.label}, seed {seed}"
