"""Figures."""

from sigmma_sc.pl.attention import attention
from sigmma_sc.pl.benchmark import benchmark
from sigmma_sc.pl.niches import niches
from sigmma_sc.pl.registration import registration

__all__ = ["attention", "benchmark", "niches", "registration"]
