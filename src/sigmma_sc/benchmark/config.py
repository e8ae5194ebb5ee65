"""What a benchmark compares: data sets, splits, methods and seeds, checked before any compute."""

import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from sigmma_sc._checks import require_choice, require_path, require_positive, require_whole
from sigmma_sc._schema import require_fields, require_schema
from sigmma_sc.benchmark.methods import METHODS
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.split import SPLITS, get_split

SOURCES = ("store", "simulate", "hest")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """One data set.

    Attributes
    ----------
    name
        As reported.
    store, simulate, hest
        Where it comes from, one of: a SpatialData store (.zarr); arguments of
        :func:`sigmma_sc.datasets.simulate_tissue`; ``{root: folder, samples: [ids]}`` of HEST-1k.
    window
        ``(x0, y0, x1, y1)`` in the coordinate system: use this part of the store alone.
    setup
        Arguments of :meth:`sigmma_sc.SIGMMA.setup_spatialdata`.
    splits
        Names of splits as for :meth:`sigmma_sc.SIGMMA.train`. Of ``"section"`` and ``"donor"`` each seed leaves another sample or donor
        out, in turn.
    donors
        Donor of each sample, where it is not the sample itself.
    options
        Of every method on this data set, fields of :class:`sigmma_sc.Config`.
    train
        Arguments of :meth:`sigmma_sc.SIGMMA.train` of every method on this data set.
    reference
        Column of ``obs`` that niches are compared with.
    note
        A sentence for the report.
    published
        Published figures to print beside ours: method by row, figure by column.

    Examples
    --------
    >>> data = sg.benchmark.DataSpec(name="simulated", simulate={"n_cells": 2000}, splits=("blocks", "end"))
    >>> data.splits
    ('blocks', 'end')
    """

    name: str
    store: str | None = None
    simulate: dict[str, Any] | None = None
    hest: dict[str, Any] | None = None
    window: tuple[float, float, float, float] | None = None
    setup: dict[str, Any] = field(default_factory=dict)
    splits: tuple[str, ...] = ("blocks",)
    donors: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    reference: str | None = None
    note: str = ""
    published: dict[str, dict[str, str | float]] | None = None

    def __post_init__(self):
        require_schema(self.name, str, "datasets: name")
        require_fields(self, f"datasets[{self.name!r}]")
        _require_folder(self.name, "datasets")
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise SetupError(
                f"datasets[{self.name!r}] must name one of {', '.join(SOURCES)}, it names {given or 'none'}."
            )
        for split in self.splits:
            if not get_split(split, f"datasets[{self.name!r}] split").holds_out:
                raise SetupError(f"datasets[{self.name!r}] split={split!r} leaves no test tile. Choose another.")
        if not self.splits:
            raise SetupError(f"datasets[{self.name!r}] has no splits. Choose among {', '.join(SPLITS)}.")
        if self.window is not None and (self.store is None or len(self.window) != 4):
            raise SetupError(f"datasets[{self.name!r}] window={self.window!r} must be (x0, y0, x1, y1) of a store.")


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """One method, as it is compared.

    Attributes
    ----------
    method
        Name in ``sigmma_sc.benchmark.METHODS``.
    label
        As reported; the name by default.
    encoder
        Image encoder in the place of the benchmark's.
    arguments
        Of the method: options of :class:`sigmma_sc.Config`, or what else its class takes.
    train
        Arguments of its training.

    Examples
    --------
    >>> spec = sg.benchmark.MethodSpec(method="sigmma", label="64 wide", arguments={"n_latent": 64})
    >>> spec.label
    '64 wide'
    """

    method: str
    label: str = ""
    encoder: str | dict[str, Any] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        require_fields(self, "methods:")
        require_choice(self.method, METHODS, "method")
        for name in ("seed", "min_cells", "image_encoder", "cache_dir"):
            if name in self.arguments:
                raise SetupError(
                    f"arguments of {self.method!r} hold {name!r}, which decides what is compared or on which tiles. Seeds are the "
                    "benchmark's, min_cells a data set's switch, and an encoder is named by 'encoder'."
                )
        object.__setattr__(self, "label", self.label or self.method)
        _require_folder(self.label, "label")


@dataclass(frozen=True, kw_only=True)
class NicheSpec:
    """Leiden niches of the cells.

    Attributes
    ----------
    methods
        Labels of the methods whose cells are clustered.
    resolution
        Of Leiden.
    n_cells
        Most cells to cluster, drawn once for a data set.

    Examples
    --------
    >>> sg.benchmark.NicheSpec(methods=("sigmma", "frozen")).n_cells
    20000
    """

    methods: tuple[str, ...]
    resolution: float = 0.5
    n_cells: int = 20_000

    def __post_init__(self):
        require_fields(self, "niches:")
        require_positive(self.resolution, "niches.resolution")
        require_whole(self.n_cells, "niches.n_cells")


class TrialSpec(NamedTuple):
    """One trial: a method on a data set with one split and one seed."""

    data: DataSpec
    split: str
    method: MethodSpec
    seed: int

    def __str__(self) -> str:
        return f"{self.data.name}, {self.split}, {self.method.label}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """A whole benchmark.

    Attributes
    ----------
    datasets, methods
        What is compared. Differences are taken from the first method.
    seeds
        Each draws splits, weights and batches anew.
    encoder
        Image encoder of every method: a name, or ``{name: …, weights: …}`` with arguments of
        :meth:`sigmma_sc.ImageEncoder.from_timm`. ``None``: each method's own default.
    train
        Arguments of :meth:`sigmma_sc.SIGMMA.train` of every method.
    tune
        Values by argument of training. Each method is trained with all combinations, and the one of best mean recall on the
        validation tiles is scored: the same budget for all.
    score
        Tiles to score on, ``"test"`` or ``"val"``: variants of a method are compared on validation tiles, so that test tiles
        are looked at once.
    niches
        Whose cells to cluster; ``None`` for nobody's.
    title
        Of the report.

    Examples
    --------
    >>> data = sg.benchmark.DataSpec(name="simulated", simulate={"n_cells": 2000})
    >>> methods = tuple(sg.benchmark.MethodSpec(method=name) for name in ("sigmma", "bleep", "random"))
    >>> plan = sg.benchmark.BenchmarkConfig(datasets=(data,), methods=methods, seeds=(0, 1))
    >>> len(plan.trials())  # one data set, one split, two seeds, three methods
    6
    """

    datasets: tuple[DataSpec, ...]
    methods: tuple[MethodSpec, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    encoder: str | dict[str, Any] | None = None
    train: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, list[Any]] = field(default_factory=dict)
    score: Literal["test", "val"] = "test"
    niches: NicheSpec | None = None
    title: str = "Benchmark"

    def __post_init__(self):
        require_fields(self, "The benchmark:")
        for seed in self.seeds:
            require_whole(seed, "seeds", 0)
        for what in ("datasets", "methods", "seeds"):
            if not getattr(self, what):
                raise SetupError(f"The benchmark names no {what}.")
        _require_once([data.name for data in self.datasets], "datasets")
        _require_once([method.label for method in self.methods], "methods")
        _require_once(self.seeds, "seeds")
        require_choice(self.score, ("test", "val"), "score")
        if self.tune and self.score == "val":
            raise SetupError("score='val' with tune=… would score tiles that were chosen by. Leave one of them out.")
        for name, values in self.tune.items():
            if not isinstance(values, list) or not values:
                raise SetupError(f"tune[{name!r}]={values!r} must be a list of values to try.")
        for name in self.niches.methods if self.niches else ():
            require_choice(name, [m.label for m in self.methods], "niches.methods")

    def trials(self) -> list[TrialSpec]:
        """Every trial to run, data set by data set, seed by seed."""
        trials = []
        for data in self.datasets:
            for split, seed, method in product(data.splits, self.seeds, self.methods):
                trials.append(TrialSpec(data, split, method, seed))
        return trials

    def budget(self) -> list[dict[str, Any]]:
        """Arguments of training that each method may choose among."""
        return [dict(zip(self.tune, values, strict=True)) for values in product(*self.tune.values())]


def read_config(source: str | Path | dict[str, Any]) -> BenchmarkConfig:
    """Read a benchmark from a YAML file, a dict of the same form, or a name of those in the package.

    Paths may hold environment variables (``${HEST}``); relative ones start at the file's folder.

    Raises
    ------
    SetupError
        A key, a method or a split does not exist, or a variable is not set.

    Examples
    --------
    >>> data = {"simulated": {"simulate": {"n_cells": 2000}, "splits": ["blocks", "end"]}}
    >>> plan = sg.benchmark.read_config({"datasets": data, "methods": ["sigmma", "random"], "seeds": [0]})
    >>> [(trial.split, trial.method.label) for trial in plan.trials()]
    [('blocks', 'sigmma'), ('blocks', 'random'), ('end', 'sigmma'), ('end', 'random')]
    """
    if isinstance(source, dict):
        return _build(source, Path.cwd())
    import yaml

    require_path(source, "config")
    path = Path(source)
    if not path.exists() and str(source) in packaged():
        path = Path(__file__).parent / "configs" / f"{source}.yaml"
    if not path.is_file():
        raise SetupError(f"{source} does not exist, and is none of the configurations {', '.join(packaged())}.")
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SetupError(f"{path} is no YAML: {error}") from error
    if not isinstance(raw, dict):
        raise SetupError(f"{path} holds no mapping of datasets, methods and seeds.")
    return _build(raw, path.absolute().parent)


def packaged() -> list[str]:
    """Names of the configurations that come with the package.

    Examples
    --------
    >>> sg.benchmark.packaged()
    ['hest-idc', 'hest-luad', 'hest-paad', 'hest-skcm']
    """
    return sorted(path.stem for path in (Path(__file__).parent / "configs").glob("*.yaml"))


def _build(raw: dict[str, Any], folder: Path) -> BenchmarkConfig:
    raw = dict(raw)
    require_schema(raw.get("datasets"), dict[str, dict[str, Any]], "datasets", "Give a mapping by name.")
    require_schema(raw.get("methods"), list[str | dict[str, Any]], "methods", "Give a list.")
    datasets = []
    for name, given in raw["datasets"].items():
        spec = dict(given)
        if spec.get("store") is not None:
            spec["store"] = _path(spec["store"], folder)
        if spec.get("hest") is not None:
            require_schema(spec["hest"], dict[str, Any], f"datasets[{name!r}] hest")
            spec["hest"] = {**spec["hest"], "root": _path(spec["hest"].get("root", "."), folder)}
        datasets.append(_of(DataSpec, {"name": name, **spec}, f"datasets[{name!r}]"))
    methods = []
    for given in raw["methods"]:
        spec = {"method": given} if isinstance(given, str) else dict(given)
        spec["encoder"] = _encoder(spec.get("encoder"), folder)
        arguments = spec.get("arguments") or {}
        require_schema(arguments, dict[str, Any], "methods: arguments")
        if "text_weights" in arguments:
            spec["arguments"] = {**arguments, "text_weights": _path(arguments["text_weights"], folder)}
        methods.append(_of(MethodSpec, spec, "methods"))
    if raw.get("niches") is not None:
        require_schema(raw["niches"], dict[str, Any], "niches")
        raw["niches"] = _of(NicheSpec, raw["niches"], "niches")
    raw["encoder"] = _encoder(raw.get("encoder"), folder)
    return _of(BenchmarkConfig, {**raw, "datasets": datasets, "methods": methods}, "The benchmark")


def _require_once(names: Sequence[str | int], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SetupError(f"{what} names {name!r} twice. Name each once, methods by labels.")


def _require_folder(name: str, what: str) -> None:
    if not name or name != name.strip() or set("/\\:") & set(name) or name.startswith("."):
        raise SetupError(f"{what}={name!r} names a folder: no slash, backslash or colon, no dot first.")


def _of(kind: type[T], values: dict[str, Any], where: str) -> T:
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            like = get_close_matches(str(name), known, 1)
            hint = f" Did you mean {like[0]!r}?" if like else ""
            raise SetupError(f"{where} has no key {name!r}.{hint} Keys: {', '.join(known)}.")
    given = {}
    for name, value in values.items():
        if value is not None:
            given[name] = tuple(value) if isinstance(value, list) else value
    for f in fields(kind):  # type: ignore[arg-type]
        if f.default is MISSING and f.default_factory is MISSING and f.name not in given:
            raise SetupError(f"{where} needs {f.name!r}.")
    return kind(**given)


def _encoder(given: str | dict[str, Any] | None, folder: Path) -> str | dict[str, Any] | None:
    if not isinstance(given, dict):
        return given
    if not isinstance(given.get("name"), str):
        raise SetupError(f"encoder={given!r} has no name.")
    if given.get("weights"):
        return {**given, "weights": _path(given["weights"], folder)}
    return dict(given)


def _path(value: str, folder: Path) -> str:
    full = os.path.expandvars(str(value))
    if "$" in full:
        raise SetupError(f"{value!r} names an environment variable that is not set. Set it, or write the path.")
    return str(folder / Path(full).expanduser())
