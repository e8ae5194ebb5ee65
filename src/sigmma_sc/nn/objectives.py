"""Contrastive objectives (paper, section 5.3); put a function into :data:`OBJECTIVES` to add one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps image and transcriptome embeddings ``(n, d)`` of the same tiles, and τ, to a loss."""


def info_nce(image: Tensor, transcriptome: Tensor, temperature: Tensor | float) -> Tensor:
    """Symmetric InfoNCE, ½ [L(I→S) + L(S→I)], with cosine similarity.

    Half precision becomes single: similarities over τ would lose their second digit.

    Parameters
    ----------
    image, transcriptome
        Paired embeddings, ``(n, d)``; row i of one belongs to row i of the other, all other rows are negatives.
    temperature
        τ of the paper.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, transcriptome = (z if z.dtype == torch.float64 else z.float() for z in (image, transcriptome))
        logits = functional.normalize(image, dim=-1) @ functional.normalize(transcriptome, dim=-1).T / temperature
        partner = torch.arange(len(logits), device=logits.device)
        return 0.5 * (functional.cross_entropy(logits, partner) + functional.cross_entropy(logits.T, partner))


OBJECTIVES: dict[str, Objective] = {"infonce": info_nce}
"""Objectives by name, as the option ``objective`` takes them."""
