"""Methods compared on the same tiles, splits and candidates (METHOD: evaluation; paper, section 6)."""

from sigmma_sc.benchmark.config import BenchmarkConfig, DataSpec, MethodSpec, NicheSpec, packaged, read_config
from sigmma_sc.benchmark.methods import METHODS, Alignment, Case, Frozen, Method, Random
from sigmma_sc.benchmark.runner import run

__all__ = [
    "METHODS",
    "Alignment",
    "BenchmarkConfig",
    "Case",
    "DataSpec",
    "Frozen",
    "Method",
    "MethodSpec",
    "NicheSpec",
    "Random",
    "packaged",
    "read_config",
    "run",
]
