"""Figures."""

from sigmma_sc.pl.niches import niches
from sigmma_sc.pl.registration import registration

__all__ = ["niches", "registration"]
