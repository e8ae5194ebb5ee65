"""Temperature of contrastive objectives."""

import math

import torch
from torch import Tensor, nn

from sigmma_sc.config import MAX_TEMPERATURE, MIN_TEMPERATURE


class Temperature(nn.Module):
    """τ of each scale, fixed or learned as its logarithm."""

    def __init__(self, n_scales: int, start: float, learned: bool):
        super().__init__()
        self.log = nn.Parameter(torch.full((n_scales,), math.log(start)), requires_grad=learned)

    def forward(self) -> Tensor:
        """τ, ``(n_scales,)``."""
        return self.log.exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring a learned τ back into its bounds after a step; clamped where it is used, it would get no gradient beyond them."""
        if self.log.requires_grad:
            self.log.clamp_(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
