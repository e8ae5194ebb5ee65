"""Data sets of a benchmark: loaded and set up."""

from __future__ import annotations

import json
import os
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sigmma_sc.benchmark.config import DataSpec
from sigmma_sc.errors import CoverageWarning, SetupError
from sigmma_sc.model import SIGMMA
from sigmma_sc.tissue.setup import common_setup, get_table, objects_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.tissue.setup import Tissue


def load(spec: DataSpec) -> Tissue:
    """Object, or objects by name, of a data set, set up; kept until another one is asked for."""
    needed = ("name", "store", "simulate", "hest", "window", "setup", "reference")
    return _loaded(json.dumps({name: getattr(spec, name) for name in needed}))


@lru_cache(maxsize=1)
def _loaded(given: str) -> Tissue:
    spec = DataSpec(**json.loads(given))
    if spec.store is not None:
        tissue: Tissue = _of_store(spec)
    elif spec.simulate is not None:
        from sigmma_sc.datasets import simulate_tissue

        tissue = simulate_tissue(**spec.simulate)
    else:
        tissue = _of_hest(spec)
    defaults = {} if spec.hest is None else {"sample_key": "sample"}
    SIGMMA.setup_spatialdata(tissue, **{**defaults, **spec.setup})
    for one in objects_of(tissue).values():
        obs = get_table(one, common_setup(one)).obs
        if spec.reference is not None and spec.reference not in obs:
            raise SetupError(
                f"datasets[{spec.name!r}] reference={spec.reference!r} is no column of obs, which has {', '.join(obs.columns)}."
            )
    return tissue


def encoder_of(given: str | dict[str, Any]) -> ImageEncoder:
    """An image encoder as a configuration names it."""
    from sigmma_sc.encoders.encoder import get_encoder

    return get_encoder(given) if isinstance(given, str) else get_encoder(**given)


def _of_store(spec: DataSpec) -> SpatialData:
    import spatialdata

    if not os.path.exists(str(spec.store)):
        raise SetupError(f"datasets[{spec.name!r}]: store {spec.store} does not exist.")
    sdata = spatialdata.read_zarr(spec.store)
    if spec.window is None:
        return sdata
    x0, y0, x1, y1 = spec.window
    return sdata.query.bounding_box(
        axes=("x", "y"),
        min_coordinate=[x0, y0],
        max_coordinate=[x1, y1],
        target_coordinate_system=spec.setup.get("coordinate_system", "global"),
    )


def _of_hest(spec: DataSpec) -> dict[str, Any]:
    """Samples of HEST-1k with the genes that all of them have."""
    from sigmma_sc.io import hest

    given = spec.hest or {}
    if not given.get("samples"):
        raise SetupError(f"datasets[{spec.name!r}] hest={given!r} names no samples.")
    tissue = {sample: hest(given["root"], sample) for sample in given["samples"]}
    tables = [one.tables["table"] for one in tissue.values()]
    common = set(tables[0].var_names)
    for table in tables[1:]:
        common &= set(table.var_names)
    shared = [gene for gene in tables[0].var_names if gene in common]
    if not shared:
        raise SetupError(f"datasets[{spec.name!r}]: samples {', '.join(tissue)} have no gene in common.")
    if any(table.n_vars > len(shared) for table in tables):
        warnings.warn(
            f"{spec.name}: {len(shared)} genes are on the panels of all samples and are used; the largest panel has "
            f"{max(table.n_vars for table in tables)}.",
            CoverageWarning,
            stacklevel=2,
        )
    for one in tissue.values():
        one.tables["table"] = one.tables["table"][:, shared].copy()
    return tissue
