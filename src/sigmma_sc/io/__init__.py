"""Readers of files of slides into SpatialData for ``SIGMMA.setup_spatialdata``."""

from sigmma_sc.io.hest import hest
from sigmma_sc.io.xenium import xenium

__all__ = ["hest", "xenium"]
