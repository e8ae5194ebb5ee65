"""After training: niches."""

from sigmma_sc.tl.niches import niches

__all__ = ["niches"]
