"""Readers of files of slides into SpatialData for ``SIGMMA.setup_spatialdata``, and files for other programs."""

from sigmma_sc.io.explorer import to_xenium_explorer
from sigmma_sc.io.geojson import read_regions, to_geojson
from sigmma_sc.io.hest import hest
from sigmma_sc.io.results import write_results
from sigmma_sc.io.xenium import xenium

__all__ = ["hest", "read_regions", "to_geojson", "to_xenium_explorer", "write_results", "xenium"]
