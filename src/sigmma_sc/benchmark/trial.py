"""The outcome of one trial, tile by tile, and its file: what all scores are made of."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sigmma_sc._files import fresh_file, writing
from sigmma_sc._schema import require_fields
from sigmma_sc.benchmark.config import BenchmarkConfig, DataSpec, MethodSpec, TrialSpec
from sigmma_sc.errors import ExistsError, SetupError
from sigmma_sc.tissue.split import get_split

Protocol = Literal["default", "hest"]
Head = Literal["default", "hest", "lookup", "auto"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
HEADS: dict[Head, Protocol] = {"default": "default", "hest": "hest", "lookup": "default", "auto": "default"}
"""Protocol whose target each head predicts."""

UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy, zipfile and json raise on a damaged file."""


@dataclass(frozen=True)
class TrialMeta:
    """What was run."""

    # Which trial it is; method is the label.
    dataset: str
    split: str
    method: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)  # all else that decides the outcome, see settings_of
    n_train: int = 0  # training tiles of the covering grid
    seconds: float = 0.0  # how long it took
    fit: dict[str, Any] = field(default_factory=dict)  # what the method reports of its training
    encoder: str | None = None  # image encoder, None for the method's own
    versions: dict[str, str] = field(default_factory=dict)  # of packages, by name


@dataclass(frozen=True)
class RankKey:
    """Which ranks: direction of the retrieval, and scale of the embeddings."""

    direction: str
    scale: str


@dataclass(frozen=True)
class Expression:
    """Log expression of the scored tiles under one protocol."""

    genes: NDArray[np.str_]  # names, (g,)
    target: NDArray[np.float32]  # (n, g) float32
    mean: NDArray[np.float32]  # mean of the training tiles, (g,) float32
    predicted: dict[Head, NDArray[np.float32]]  # (n, g) float32 by head


@dataclass(frozen=True)
class Niches:
    """Niches of some cells."""

    labels: dict[str, NDArray[np.int64]]  # Leiden labels (n_cells,) by scale
    slide: NDArray[np.int64]  # number of the slide of each cell, (n_cells,)
    xy: NDArray[np.float64]  # place in µm, (n_cells, 2)
    # Known niches, (n_cells,), empty text where a cell has none; None without any.
    reference: NDArray[np.str_] | None = None


@dataclass(frozen=True)
class Trial:
    """A method on a data set, with one split and one seed."""

    meta: TrialMeta  # what was run
    # Slide of each scored tile, and the spatial block that is drawn as a whole in intervals, (n,).
    slide: NDArray[np.str_]
    block: NDArray[np.str_]
    # Rank of each tile's partner, (n,); nothing for a method that retrieves nothing.
    ranks: dict[RankKey, NDArray[np.int64]]
    expression: dict[Protocol, Expression]  # by protocol
    niches: Niches | None = None  # None where no cells were clustered

    def save(self, path: Path) -> None:
        """Write to a file, whole or not at all."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with fresh_file(path) as fresh, open(fresh, "wb") as file:
            np.savez_compressed(file, **_encode(self))

    @classmethod
    def read(cls, path: Path) -> Trial:
        """Read what :meth:`save` wrote, or raise :class:`SetupError`; a file from elsewhere can execute nothing."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            trial = _decode(arrays)
            require_fields(trial.meta, "meta")
            _check_shapes(trial)
        except UNREADABLE as error:
            raise SetupError(
                f"{path} is damaged, or no trial of a benchmark ({type(error).__name__}: {error}). Remove it, or pass "
                "overwrite=True: the trial is then run anew."
            ) from error
        return trial


def _encode(trial: Trial) -> dict[str, Any]:
    """Arrays of a file by name; parts of a name are joined by slashes."""
    arrays = {"meta": np.array(json.dumps(asdict(trial.meta))), "slide": trial.slide, "block": trial.block}
    for key, ranks in trial.ranks.items():
        arrays[f"ranks/{key.direction}/{key.scale}"] = ranks
    for protocol, expression in trial.expression.items():
        arrays[f"genes/{protocol}"] = expression.genes
        arrays[f"target/{protocol}"] = expression.target
        arrays[f"mean/{protocol}"] = expression.mean
        for head, predicted in expression.predicted.items():
            arrays[f"predicted/{head}"] = predicted
    if trial.niches is not None:
        arrays["cells/slide"], arrays["cells/xy"] = trial.niches.slide, trial.niches.xy
        for scale, labels in trial.niches.labels.items():
            arrays[f"niches/{scale}"] = labels
        if trial.niches.reference is not None:
            arrays["cells/reference"] = trial.niches.reference
    return arrays


def _decode(arrays: dict[str, NDArray]) -> Trial:
    """The trial of what :func:`_encode` gave."""
    ranks = {}
    for name, values in _below("ranks", arrays).items():
        direction, scale = name.split("/")
        ranks[RankKey(direction, scale)] = values
    expression = {}
    for protocol in PROTOCOLS:
        predicted: dict[Head, NDArray[np.float32]] = {}
        for head, of in HEADS.items():
            if of == protocol and f"predicted/{head}" in arrays:
                predicted[head] = arrays[f"predicted/{head}"]
        if f"genes/{protocol}" in arrays:
            genes, target, mean = arrays[f"genes/{protocol}"], arrays[f"target/{protocol}"], arrays[f"mean/{protocol}"]
            expression[protocol] = Expression(genes, target, mean, predicted)
    niches = None
    if "cells/xy" in arrays:
        labels = _below("niches", arrays)
        niches = Niches(labels, arrays["cells/slide"], arrays["cells/xy"], arrays.get("cells/reference"))
    meta = TrialMeta(**json.loads(str(arrays["meta"])))
    return Trial(meta, arrays["slide"], arrays["block"], ranks, expression, niches)


def _below(folder: str, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    prefix = f"{folder}/"
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _check_shapes(trial: Trial) -> None:
    """Raise ValueError unless all that belongs to the same tiles, genes or cells has their number."""
    n = (len(trial.slide),)
    shapes: list[tuple[str, NDArray, tuple[int, ...]]] = [("block", trial.block, n)]
    shapes += [(f"ranks of {key}", values, n) for key, values in trial.ranks.items()]
    for protocol, expression in trial.expression.items():
        g = expression.genes.shape
        shapes += [(f"target of {protocol}", expression.target, n + g), (f"mean of {protocol}", expression.mean, g)]
        shapes += [(f"prediction of {head}", values, n + g) for head, values in expression.predicted.items()]
    if trial.niches is not None:
        cells = (len(trial.niches.xy),)
        shapes += [("slide of cells", trial.niches.slide, cells), ("place of cells", trial.niches.xy, (*cells, 2))]
        shapes += [(f"niches of {scale}", labels, cells) for scale, labels in trial.niches.labels.items()]
        if trial.niches.reference is not None:
            shapes.append(("reference", trial.niches.reference, cells))
    for what, values, kinds in _kinds(trial):
        if values.dtype.kind not in kinds:
            raise ValueError(f"{what} is of type {values.dtype}")
    for what, values, shape in shapes:
        if values.shape != shape:
            raise ValueError(f"{what} has shape {values.shape} instead of {shape}")


def _kinds(trial: Trial) -> list[tuple[str, NDArray, str]]:
    """Arrays of a trial, each with the kinds of NumPy's types that it may have."""
    kinds: list[tuple[str, NDArray, str]] = [("slide", trial.slide, "U"), ("block", trial.block, "U")]
    kinds += [(f"ranks of {key}", values, "iu") for key, values in trial.ranks.items()]
    for protocol, expression in trial.expression.items():
        kinds += [(f"genes of {protocol}", expression.genes, "U"), (f"target of {protocol}", expression.target, "f")]
        kinds += [(f"prediction of {head}", values, "f") for head, values in expression.predicted.items()]
    if trial.niches is not None:
        kinds += [("place of cells", trial.niches.xy, "f"), ("slide of cells", trial.niches.slide, "iu")]
        kinds += [(f"niches of {scale}", labels, "iu") for scale, labels in trial.niches.labels.items()]
    return kinds


def trial_path(out: Path, trial: TrialSpec) -> Path:
    """File of a trial."""
    return out / "trials" / trial.data.name / trial.split / trial.method.label / f"{trial.seed}.npz"


def settings_of(config: BenchmarkConfig, data: DataSpec, method: MethodSpec) -> dict[str, Any]:
    """All that decides the outcome of a trial, but split and seed, as plain values."""
    of_data = {k: v for k, v in asdict(data).items() if k not in ("name", "splits", "note", "published")}
    clustered = config.niches is not None and method.label in config.niches.methods
    # What a seed leaves out in turn depends on which seeds there are.
    in_turn = any(get_split(split).takes_turns for split in data.splits)
    settings = {
        "data": of_data,
        "method": {"method": method.method, "arguments": method.arguments, "train": method.train},
        "encoder": method.encoder or config.encoder,
        "train": config.train,
        "tune": config.tune,
        "niches": asdict(config.niches) if config.niches is not None and clustered else None,
        "seeds": list(config.seeds) if in_turn else None,
        "score": config.score,
    }
    return json.loads(json.dumps(settings))


def require_same(path: Path, settings: dict[str, Any]) -> None:
    """Refuse a trial that was run with other settings, before any work."""
    stored = Trial.read(path).meta.settings
    differ = [name for name in settings if settings[name] != stored.get(name)]
    if differ:
        raise ExistsError(
            f"{path} was run with other settings ({', '.join(differ)}). Choose another, or pass overwrite=True."
        )
