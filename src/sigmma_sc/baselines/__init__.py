"""Published methods on the same tiles, splits and candidates as SIGMMA."""

from sigmma_sc.baselines.bleep import BLEEP
from sigmma_sc.baselines.clip import CLIP

__all__ = ["BLEEP", "CLIP"]
