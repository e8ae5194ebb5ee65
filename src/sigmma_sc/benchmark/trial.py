"""One cell of the benchmark: a method on a data set, for one split and seed, kept as what scores are made of."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc import __version__
from sigmma_sc._files import fresh_file
from sigmma_sc.benchmark.methods import METHODS, Case
from sigmma_sc.benchmark.niches import niche_labels
from sigmma_sc.benchmark.sources import encoder_of, load, split_of
from sigmma_sc.config import Config
from sigmma_sc.errors import ExistsError, SetupError
from sigmma_sc.features.data import TissueData
from sigmma_sc.infer.predict import retrieve
from sigmma_sc.metrics.expression import expression_targets, fit_probe
from sigmma_sc.metrics.retrieval import retrieval_table, tile_ranks
from sigmma_sc.tissue.counts import pooled_counts
from sigmma_sc.tissue.setup import common_setup, slides_of
from sigmma_sc.tissue.split import block_groups

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sigmma_sc.benchmark.config import BenchmarkConfig, DataSpec, MethodSpec
    from sigmma_sc.benchmark.methods import Method
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles

    Embeddings = tuple[dict[str, NDArray] | None, dict[str, NDArray] | None]

N_LOOKUP = 50
"""Training tiles that BLEEP's inference averages."""

PACKAGES = ("torch", "timm", "scanpy", "spatialdata", "scvi-tools", "scikit-learn", "numpy")


@dataclass
class Cell:
    """What was run, and its outcome tile by tile.

    Attributes
    ----------
    meta
        Plain values: ``dataset``, ``split``, ``method`` (label), ``seed``, ``settings``, ``n_train`` tiles, ``seconds``, ``fit``,
        ``encoder``, ``versions``.
    arrays
        ``slide`` and ``block`` of each tile scored; ``rank|<direction>|<scale>``; for each protocol ``genes|<protocol>``,
        ``target|<protocol>`` ``(n, g)`` and ``mean|<protocol>`` ``(g,)``; ``predicted|<head>`` ``(n, g)`` for heads ``default``,
        ``hest`` and ``lookup``, whose target is the default protocol's; and of niches ``niche|<scale>``, ``reference``.
    """

    meta: dict[str, Any]
    arrays: dict[str, NDArray]

    def save(self, path: Path) -> None:
        """Write to a file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh_file(path) as fresh, open(fresh, "wb") as file:
            np.savez_compressed(file, meta=np.array(json.dumps(self.meta)), **self.arrays)

    @classmethod
    def read(cls, path: Path) -> Cell:
        """Read what :meth:`save` wrote; a file from elsewhere can execute nothing."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != "meta"}
            return cls(json.loads(str(file["meta"])), arrays)


def cell_path(out: Path, data: DataSpec, split: str, method: MethodSpec, seed: int) -> Path:
    """File of a cell."""
    return out / "cells" / data.name / split / method.label / f"{seed}.npz"


def settings_of(config: BenchmarkConfig, data: DataSpec, method: MethodSpec) -> dict[str, Any]:
    """All that decides the outcome of a cell, but split and seed, as plain values."""
    given = {k: v for k, v in asdict(data).items() if k not in ("name", "splits", "note", "published")}
    niches = asdict(config.niches) if config.niches and method.label in config.niches.methods else None
    own = {"method": method.method, "arguments": method.arguments, "train": method.train}
    encoder = method.encoder or config.encoder
    # The turn of a section depends on which seeds there are.
    sections = list(config.seeds) if set(data.splits) & {"section", "donor"} else None
    everything = {
        "data": given, "method": own, "encoder": encoder, "train": config.train, "tune": config.tune, "niches": niches,
        "seeds": sections, "score": config.score,
    }  # fmt: skip
    return json.loads(json.dumps(everything))


def require_same(path: Path, settings: dict[str, Any]) -> None:
    """Refuse a cell that was run with other settings, before any work."""
    found = Cell.read(path).meta["settings"]
    differ = [name for name in settings if settings[name] != found.get(name)]
    if differ:
        raise ExistsError(
            f"{path} was run with other settings ({', '.join(differ)}). Choose another folder, or pass overwrite=True."
        )


def run_cell(
    config: BenchmarkConfig, data: DataSpec, split: str, method: MethodSpec, seed: int, cache_dir: str | None
) -> Cell:
    """Fit a method and keep what scores are made of."""
    start = time.perf_counter()
    tissue = load(data)
    given = method.encoder or config.encoder
    encoder = None if given is None else encoder_of(given)
    roles = _roles(tissue, data, split, list(config.seeds).index(seed), seed)
    case = Case(tissue, encoder, roles.roles.split, seed, dict(data.switches), cache_dir)
    fitted, fit = _best(config, data, method, case, roles)
    parts = {"train": _tiles(roles, tissue, "train"), "test": _tiles(roles, tissue, config.score)}
    for role, chosen in zip(("train", config.score), parts.values(), strict=True):
        if not chosen:
            raise SetupError(f"{data.name}: split={split!r} with seed {seed} leaves no {role} tile.")
    embedded = {role: _embed(fitted, chosen) for role, chosen in parts.items()}
    arrays = _places(roles, parts["test"])
    arrays |= _ranks(embedded["test"], arrays["slide"])
    arrays |= _expression(parts, embedded)
    if config.niches and method.label in config.niches.methods:
        arrays |= niche_labels(fitted, slides_of(tissue), data, config.niches)
    meta = {
        "dataset": data.name,
        "split": split,
        "method": method.label,
        "seed": seed,
        "settings": settings_of(config, data, method),
        "n_train": int(sum(len(tiles) for _, tiles in parts["train"])),
        "seconds": time.perf_counter() - start,
        "fit": fit,
        "encoder": None if encoder is None else encoder.name,
        "versions": {"sigmma-sc": __version__, **{name: version(name) for name in PACKAGES}},
    }
    return Cell(meta, arrays)


def _roles(tissue: Any, data: DataSpec, split: str, turn: int, seed: int) -> TissueData:
    """Who trains and who is tested, the same for every method."""
    from sigmma_sc.encoders.encoder import get_encoder

    setup = common_setup(tissue)
    roles = TissueData(setup, get_encoder("stain-stats"), Config.of({**data.switches, "seed": seed}, setup.grids))
    slides = slides_of(tissue)
    roles.assign_roles(slides, split_of(split, [slide.sample for slide in slides], data.donors, turn))
    return roles


def _best(
    config: BenchmarkConfig, data: DataSpec, method: MethodSpec, case: Case, roles: TissueData
) -> tuple[Method, dict[str, Any]]:
    """A method fitted with the training arguments of the budget that do best on the validation tiles."""
    fixed, budget = {**config.train, **data.train, **method.train}, config.budget()
    one = METHODS[method.method](case, **method.arguments)
    if len(budget) == 1 or not one.trains:
        return one, one.fit(**fixed)
    held_out, best = _tiles(roles, case.sdata, "val"), (-1.0, one, {})
    if not held_out:
        raise SetupError(f"{data.name}: tune={config.tune!r} needs validation tiles, and the split leaves none.")
    for tried in budget:
        one = METHODS[method.method](case, **method.arguments)
        fit = one.fit(**{**fixed, **tried})
        score = _validation_score(one, held_out)
        if score > best[0]:
            best = (score, one, {**fit, "tuned": tried, "validation_score": score})
    return best[1], best[2]


def _validation_score(method: Method, chosen: list[tuple[Slide, Tiles]]) -> float:
    """Mean recall of both directions over all scales together."""
    image, transcriptome = _embed(method, chosen)
    table = retrieval_table(image, transcriptome, np.concatenate([np.full(len(t), s.name) for s, t in chosen]))
    whole = table[table.scale == table.scale.iloc[-1]]
    return float(whole.filter(like="recall@").to_numpy().mean())


def _tiles(roles: TissueData, tissue: Any, role: str) -> list[tuple[Slide, Tiles]]:
    """Tiles of a role, slide by slide."""
    out = []
    for slide in slides_of(tissue):
        which = np.flatnonzero(roles.roles.of(slide) == role)
        if len(which):
            out.append((slide, slide.tiles.take(which)))
    return out


def _embed(method: Method, chosen: list[tuple[Slide, Tiles]]) -> Embeddings:
    found = [method.embed(slide, tiles) for slide, tiles in chosen]
    image, transcriptome = (
        None if parts[0] is None else {s: np.concatenate([part[s] for part in parts]) for s in parts[0]}
        for parts in zip(*found, strict=True)
    )
    return image, transcriptome


def _places(roles: TissueData, chosen: list[tuple[Slide, Tiles]]) -> dict[str, NDArray]:
    """Slide of each test tile, and the spatial block of it that is drawn at once in intervals."""
    slides, blocks = [], []
    for slide, tiles in chosen:
        every = slide.tiles
        group = block_groups(every, roles.usable(slide, every))
        of_corner = dict(zip(map(tuple, np.round(every.origins, 3)), group, strict=True))
        slides.append(np.full(len(tiles), slide.name))
        blocks.append(np.array([f"{slide.name}#{of_corner[tuple(at)]}" for at in np.round(tiles.origins, 3)]))
    return {"slide": np.concatenate(slides), "block": np.concatenate(blocks)}


def _ranks(embedded: Embeddings, slide: NDArray) -> dict[str, NDArray]:
    image, transcriptome = embedded
    if image is None or transcriptome is None or len(slide) == len(np.unique(slide)):
        return {}
    return {
        f"rank|{direction}|{scale}": r for (direction, scale), r in tile_ranks(image, transcriptome, slide)[0].items()
    }


def _expression(parts: dict[str, list], embedded: dict[str, Embeddings]) -> dict[str, NDArray]:
    """Targets and predictions of both protocols, and of BLEEP's inference."""
    genes, counts = _counts(parts)
    out: dict[str, NDArray] = {}
    x, x_test = (
        None if embedded[role][0] is None else np.concatenate(list(embedded[role][0].values()), axis=1).astype(float)
        for role in ("train", "test")
    )
    for protocol in ("default", "hest"):
        names, y, y_test = expression_targets(counts["train"], counts["test"], genes, protocol=protocol)
        mean = y.mean(axis=0)
        predicted = np.broadcast_to(mean, y_test.shape)
        if x is not None:
            predicted = fit_probe(x, y, protocol).predict(x_test).reshape(y_test.shape)
        out[f"genes|{protocol}"] = np.array(names, dtype=str)
        out |= {
            f"{what}|{protocol}": values.astype(np.float32)
            for what, values in (("target", y_test), ("mean", mean), ("predicted", predicted))
        }
        if protocol == "default" and x is not None and embedded["train"][1] is not None:
            query, keys = (_side_by_side(embedded[role][k]) for role, k in (("test", 0), ("train", 1)))
            # An infinite temperature weighs all alike, as BLEEP's published average does.
            out["predicted|lookup"] = retrieve(query, keys, y.astype(np.float32), N_LOOKUP, np.inf)
    return out


def _side_by_side(scales: dict[str, NDArray]) -> NDArray:
    return np.concatenate([z / np.linalg.norm(z, axis=1, keepdims=True) for z in scales.values()], axis=1)


def _counts(parts: dict[str, list]) -> tuple[list[str], dict[str, Any]]:
    """Genes, and raw counts pooled over each tile's cells."""
    from scipy.sparse import vstack

    genes = list(map(str, parts["train"][0][0].table.var_names))
    out = {}
    for role, chosen in parts.items():
        pooled = []
        for slide, tiles in chosen:
            pooled.append(pooled_counts(slide, tiles, genes))
        out[role] = vstack(pooled, format="csr")
    return genes, out
