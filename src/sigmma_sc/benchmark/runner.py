"""A whole benchmark: every trial once, kept as soon as it is done, then tables and the report."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from sigmma_sc._checks import origin_of, require_path, require_whole
from sigmma_sc._files import recover
from sigmma_sc._notices import silenced
from sigmma_sc._progress import Display, displayed
from sigmma_sc.benchmark.config import BenchmarkConfig, MethodSpec, TrialSpec, read_config
from sigmma_sc.benchmark.evaluation import run_trial
from sigmma_sc.benchmark.intervals import intervals_table
from sigmma_sc.benchmark.methods import METHODS
from sigmma_sc.benchmark.output import fresh_output, require_own
from sigmma_sc.benchmark.report import figure_name, write_report
from sigmma_sc.benchmark.scores import genes_table, results_table, stability_table
from sigmma_sc.benchmark.sources import encoder_of, load
from sigmma_sc.benchmark.trial import Trial, require_same, settings_of, trial_path
from sigmma_sc.encoders.registry import all_entries
from sigmma_sc.encoders.text import PRETRAINED, text_tower
from sigmma_sc.errors import SetupError, SigmmaError, SplitWarning, WriteError
from sigmma_sc.features.registry import NODE_FEATURES
from sigmma_sc.nn.objectives import OBJECTIVES
from sigmma_sc.tissue.split import LEAK, SPLITS, get_split


def run(
    config: BenchmarkConfig | str | Path | dict[str, Any],
    out: str | Path,
    *,
    jobs: int = 1,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    command: str | None = None,
    imports: Sequence[str] = (),
) -> pd.DataFrame:
    """Run a benchmark, or what is left of it, and report.

    Every trial (data set × split × seed × method) is kept in a file of its own as soon as it is done; the same call, run again after it
    was stopped, resumes from there.

    Parameters
    ----------
    config
        Configuration, a YAML file or dict of it, or the name of one in the package (``sigmma_sc.benchmark.packaged()``).
    out
        Folder of trials, tables and report.
    jobs
        Processes that share the trials, and this machine's cores. Each imports the modules of what was registered: methods,
        splits, node features, objectives, and functions that build encoders. Those of a notebook run with one process only.
    cache_dir
        Of patch features; ``out/features`` by default.
    overwrite
        Run trials anew whose settings are no longer the configuration's, or whose file is damaged.
    command
        What to print in the report as the command that was run.
    imports
        Further modules that each process imports first, such as one that registers a network of timm as an encoder.

    Returns
    -------
    The tidy table of all figures, which ``out`` holds as ``results.csv`` and ``results.parquet`` beside ``genes.parquet`` (every
    gene), ``intervals.csv`` (95 % intervals over spatial blocks and paired differences from the first method) and the report,
    ``report.html`` by itself and ``report.md`` with its figures.

    Raises
    ------
    SetupError
        The configuration is wrong or the file of a trial damaged; nothing is run then. Or some trials failed; the report is written
        before and names them.
    ExistsError
        A trial in ``out`` was run with other settings, and ``overwrite`` is not set. Or ``out`` holds a file of yours under a
        name of the benchmark's. Nothing is run then.
    WriteError
        Nothing can be written to ``out``.

    Warns
    -----
    SplitWarning
        A split leaks, as ``"random"`` does.

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
    require_whole(jobs, "jobs")
    require_path(out, "out")
    plan = config if isinstance(config, BenchmarkConfig) else read_config(config)
    out = Path(out).expanduser()
    cache = str(out / "features" if cache_dir is None else Path(cache_dir).expanduser())
    require_own(out, [figure_name(data, split) for data in plan.datasets for split in data.splits])
    missing = _missing(plan, out, overwrite)
    for split, names in _leaking(plan).items():
        warnings.warn(f"split={split!r} of {', '.join(names)} {LEAK}", SplitWarning, stacklevel=2)
    failed = []
    for spec, error in _results(plan, missing, out, cache, int(jobs), imports):
        if error is not None:
            failed.append(f"{spec}: {error}")
            warnings.warn(f"{failed[-1]} The benchmark goes on.", stacklevel=2)
    specs = plan.trials()
    paths = [trial_path(out, spec) for spec in specs]
    trials = [Trial.read(path) for path in paths if path.exists()]
    if not trials:
        raise SetupError(f"No trial could be run. {failed[0]}")
    table = _write(plan, trials, out, command or f"sg.benchmark.run(…, {str(out)!r}, jobs={jobs})", failed)
    if failed:
        raise SetupError(f"{len(failed)} of {len(specs)} trials failed; the report holds the others. {failed[0]}")
    return table


def _leaking(plan: BenchmarkConfig) -> dict[str, list[str]]:
    """Splits that leak, and the data sets that are split by them."""
    leaking: dict[str, list[str]] = {}
    for data in plan.datasets:
        for split in data.splits:
            if get_split(split).leaks:
                leaking.setdefault(split, []).append(data.name)
    return leaking


def _missing(plan: BenchmarkConfig, out: Path, overwrite: bool) -> list[TrialSpec]:
    """Trials to run; all that can be refused is refused here, before any work."""
    missing = []
    for spec in plan.trials():
        path, settings = trial_path(out, spec), settings_of(plan, spec.data, spec.method)
        recover(path)
        if not path.exists() or (overwrite and not _was_run_with(path, settings)):
            missing.append(spec)
        else:
            require_same(path, settings)
    _require_weights(plan, [spec.method for spec in missing])
    return missing


def _was_run_with(path: Path, settings: dict[str, Any]) -> bool:
    try:
        return Trial.read(path).meta.settings == settings
    except SetupError:  # damaged
        return False


def _require_weights(plan: BenchmarkConfig, methods: list[MethodSpec]) -> None:
    """Build every image encoder and pretrained text tower once, a method's defaults included."""
    encoders, texts = {}, set()
    for spec in methods:
        arguments = arguments_of(spec)
        given = spec.encoder or plan.encoder or arguments.get("image_encoder")
        if given is not None:
            encoders[repr(given)] = given
        if arguments.get("text") in PRETRAINED:
            texts.add((arguments["text"], arguments.get("text_weights")))
    for given in encoders.values():
        encoder_of(given)
    for name, weights in texts:
        text_tower(name, weights, [])


def arguments_of(spec: MethodSpec) -> dict[str, Any]:
    """Arguments of a method's class: its defaults, those that come with the method's name, and the configuration's."""
    make = METHODS[spec.method]
    classes = [argument for argument in getattr(make, "args", ()) if isinstance(argument, type)]
    kind = classes[0] if classes else make
    defaults = {name: p.default for name, p in signature(kind).parameters.items() if p.default is not p.empty}
    return {**defaults, **getattr(make, "keywords", {}), **spec.arguments}


def _results(
    plan: BenchmarkConfig, missing: list[TrialSpec], out: Path, cache: str, jobs: int, imports: Sequence[str]
) -> Iterator[tuple[TrialSpec, str | None]]:
    """Run trials; each with what went wrong, if it failed."""
    with Display("Benchmark", len(missing), "trials") as display:
        run_one = partial(_run_one, plan, out=out, cache=cache)
        if jobs == 1 or len(missing) < 2:
            for spec in missing:
                yield spec, run_one(spec)
                display.advance(1, str(spec))
            return
        _encode(plan, missing, cache)
        modules = [*imports, *_modules_of_users()]
        with _threads(max(1, (os.cpu_count() or jobs) // jobs)):
            for spec, error in _in_processes(run_one, missing, jobs, modules):
                display.advance(1, str(spec))
                yield spec, error


def _in_processes(
    run_one: Callable[[TrialSpec], str | None], missing: list[TrialSpec], jobs: int, modules: list[str]
) -> Iterator[tuple[TrialSpec, str | None]]:
    """Run trials in several processes. Those that were left when a process died are run again, each in one of its own."""
    left = []
    with _pool(jobs, modules) as pool:
        waiting = {pool.submit(run_one, spec): spec for spec in missing}
        for done in as_completed(waiting):
            try:
                error = done.result()
            except BrokenExecutor:
                left.append(waiting[done])
                continue
            yield waiting[done], error
    for spec in left:
        with _pool(1, modules) as pool:
            try:
                error = pool.submit(run_one, spec).result()
            except BrokenExecutor as broken:
                error = f"Its process died, as it does where memory runs out ({broken})."
            yield spec, error


def _pool(jobs: int, modules: list[str]) -> ProcessPoolExecutor:
    # Fresh processes: one that was forked beside torch's threads may hang.
    return ProcessPoolExecutor(jobs, get_context("spawn"), _import, (modules,))


def _modules_of_users() -> list[str]:
    """Modules outside the package that hold what users registered."""
    builders = [entry.build for entry in all_entries().values() if entry.build is not None]
    registered = [*SPLITS.values(), *METHODS.values(), *NODE_FEATURES.values(), *OBJECTIVES.values(), *builders]
    names = {origin_of(value)[0] for value in registered}
    return sorted(name for name in names if name.partition(".")[0] not in ("sigmma_sc", "functools", "__main__"))


def _import(modules: list[str]) -> None:
    for module in modules:
        import_module(module)


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


def _run_one(plan: BenchmarkConfig, spec: TrialSpec, out: Path, cache: str) -> str | None:
    """Run a trial and keep it; what went wrong, if it failed."""
    try:
        with _quiet():
            run_trial(plan, spec, cache).save(trial_path(out, spec))
    except WriteError:
        raise  # no other trial could be kept either
    except SigmmaError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - of a method of the user, it may be any
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Show no progress of each of some hundred runs, and drop the warning of a split that leaks, which was given once."""
    with silenced(), displayed(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=SplitWarning)
        yield


def _encode(plan: BenchmarkConfig, missing: list[TrialSpec], cache: str) -> None:
    """Encode what the processes share, before they start."""
    from sigmma_sc.pp import encode_patches

    seen = set()
    for data, _, method, _ in missing:
        given = method.encoder or plan.encoder
        stride = {**plan.train, **data.train, **method.train}.get("stride")
        sizes = {**data.options, **method.arguments}.get("crop_sizes")
        key = (data.name, repr(given), stride, repr(sizes))
        if given is not None and key not in seen:
            encode_patches(load(data), encoder_of(given), cache, stride=stride, crop_sizes=sizes)
        seen.add(key)


def _write(plan: BenchmarkConfig, trials: list[Trial], out: Path, command: str, failed: list[str]) -> pd.DataFrame:
    results, genes, stability = results_table(trials), genes_table(trials), stability_table(trials)
    together: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        together.setdefault((trial.meta.dataset, trial.meta.split), []).append(trial)
    parts = []
    for (dataset, split), group in together.items():
        parts.append(intervals_table(group).assign(dataset=dataset, split=split))
    intervals = pd.concat(parts, ignore_index=True)
    with fresh_output(out) as folder:
        for table, name in ((results, "results"), (genes, "genes")):
            table.to_parquet(folder / f"{name}.parquet")
        for table, name in ((results, "results"), (intervals, "intervals")):
            table.to_csv(folder / f"{name}.csv", index=False)
        write_report(plan, trials, results, intervals, stability, folder, command, failed)
    return results
