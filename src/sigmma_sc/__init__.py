"""Multi-scale alignment of H&E histology with single-cell spatial transcriptomics."""

from importlib import import_module
from typing import TYPE_CHECKING

from sigmma_sc._settings import settings
from sigmma_sc._version import __version__ as __version__

if TYPE_CHECKING:
    from sigmma_sc import baselines, benchmark, datasets, errors, io, metrics, pl, pp, tl
    from sigmma_sc.config import Config
    from sigmma_sc.encoders.encoder import ImageEncoder, get_encoder
    from sigmma_sc.encoders.registry import list_encoders, register_encoder
    from sigmma_sc.features.node_features import NodeFeatures
    from sigmma_sc.features.registry import register_node_features
    from sigmma_sc.infer.index import TileIndex
    from sigmma_sc.model import SIGMMA
    from sigmma_sc.niches.prototypes import NichePrototypes
    from sigmma_sc.nn.objectives import register_objective
    from sigmma_sc.reporting.report import report
    from sigmma_sc.tissue.split import Split, register_split

__all__ = [
    "SIGMMA",
    "Config",
    "ImageEncoder",
    "NichePrototypes",
    "NodeFeatures",
    "Split",
    "TileIndex",
    "baselines",
    "benchmark",
    "datasets",
    "errors",
    "get_encoder",
    "io",
    "list_encoders",
    "metrics",
    "pl",
    "pp",
    "register_encoder",
    "register_node_features",
    "register_objective",
    "register_split",
    "report",
    "settings",
    "tl",
]

_HOMES = {
    "SIGMMA": "sigmma_sc.model",
    "Config": "sigmma_sc.config",
    "ImageEncoder": "sigmma_sc.encoders.encoder",
    "get_encoder": "sigmma_sc.encoders.encoder",
    "list_encoders": "sigmma_sc.encoders.registry",
    "register_encoder": "sigmma_sc.encoders.registry",
    "NichePrototypes": "sigmma_sc.niches.prototypes",
    "NodeFeatures": "sigmma_sc.features.node_features",
    "Split": "sigmma_sc.tissue.split",
    "TileIndex": "sigmma_sc.infer.index",
    "register_node_features": "sigmma_sc.features.registry",
    "register_objective": "sigmma_sc.nn.objectives",
    "register_split": "sigmma_sc.tissue.split",
    "report": "sigmma_sc.reporting.report",
}


def __getattr__(name: str) -> object:
    # Names load on first use: importing the package must not cost the seconds that torch and lightning take.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in __all__:
        return import_module(f"sigmma_sc.{name}")
    raise AttributeError(f"module 'sigmma_sc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
