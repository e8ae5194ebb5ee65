"""One HTML file of a run, which needs nothing else."""

from sigmma_sc.reporting.report import report

__all__ = ["report"]
