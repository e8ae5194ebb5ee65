"""Readers of slides that come as files, into SpatialData that ``SIGMMA.setup_spatialdata`` takes as it is."""

from sigmma_sc.io.hest import hest
from sigmma_sc.io.xenium import xenium

__all__ = ["hest", "xenium"]
