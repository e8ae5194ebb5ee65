"""Metrics of the evaluation, from arrays alone: retrieval, expression, niches.

Each module is imported when one of its names is first used, so that retrieval does not import scanpy.
"""

from importlib import import_module

_HOME = {
    "partner_ranks": "retrieval",
    "recall_at_percent": "retrieval",
    "retrieval_table": "retrieval",
    "tile_ranks": "retrieval",
    "expression_probe": "expression",
    "expression_targets": "expression",
    "summarise_expression": "expression",
    "niche_agreement": "niches",
    "niche_mixing": "mixing",
    "seam_ratio": "niches",
    "spatial_contiguity": "niches",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
