"""What made a run: versions, seed, setup and options."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

from sigmma_sc import __version__, _keys

if TYPE_CHECKING:
    from anndata import AnnData

    from sigmma_sc.model import SIGMMA
    from sigmma_sc.tissue.setup import Setup

PACKAGES = ("torch", "spatialdata", "anndata", "scanpy", "scvi-tools", "numpy")


def settings_of(model: SIGMMA, setup: Setup, cells: AnnData, command: str | None) -> dict[str, str]:
    """Settings by name, as text."""
    found = {} if command is None else {"command": command}
    found |= {
        "model": type(model).__name__,
        "epochs": str(model.epochs_trained),
        "seed": str(model.config.seed),
        "split": json.dumps(model.data.roles.split, ensure_ascii=False),
        "image encoder": model.image_encoder.name,
    }
    for name, value in setup.to_json().items():
        found[name] = json.dumps(value, ensure_ascii=False)
    for name, value in model.config.to_json().items():
        if name != "seed":
            found[f"option {name}"] = json.dumps(value, ensure_ascii=False)
    for column, record in cells.uns.get(_keys.UNS, {}).get("niches", {}).items():
        found[f"resolution of {column}"] = f"{float(record['resolution']):g}, {int(record['n_runs'])} runs"
    found["sigmma-sc"] = __version__
    found["Python"] = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    for package in PACKAGES:
        found[package] = version(package)
    return found
