"""Figures."""

from sigmma_sc.pl.attention import attention
from sigmma_sc.pl.benchmark import benchmark
from sigmma_sc.pl.composition import composition
from sigmma_sc.pl.edges import edges
from sigmma_sc.pl.niche_abundance import niche_abundance
from sigmma_sc.pl.niches import niches
from sigmma_sc.pl.prediction import prediction
from sigmma_sc.pl.register import register
from sigmma_sc.pl.registration import registration
from sigmma_sc.pl.retrieval import retrieval
from sigmma_sc.pl.search import search
from sigmma_sc.pl.signature import signature
from sigmma_sc.pl.training import training

__all__ = [
    "attention",
    "benchmark",
    "composition",
    "edges",
    "niche_abundance",
    "niches",
    "prediction",
    "register",
    "registration",
    "retrieval",
    "search",
    "signature",
    "training",
]
