"""Example data."""

from sigmma_sc.datasets.simulate import simulate_tissue

__all__ = ["simulate_tissue"]
