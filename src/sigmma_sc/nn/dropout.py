"""Dropout with the generator of the thread that trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sigmma_sc._random import generator


class Dropout(nn.Dropout):
    """torch's dropout, whose mask is drawn from :func:`sigmma_sc._random.generator`; the same numbers for the same seed."""

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share ``p`` of the values in training, and scale up the others."""
        own = generator(x.device)
        if own is None or not self.training or self.p in (0, 1):
            return super().forward(x)
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=own)
        return x * kept.div_(1 - self.p)
