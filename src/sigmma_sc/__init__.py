"""Multi-scale alignment of H&E histology with single-cell spatial transcriptomics."""

__version__ = "0.1.0"
