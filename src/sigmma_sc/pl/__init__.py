"""Figures."""

from sigmma_sc.pl.niches import niches

__all__ = ["niches"]
