"""Contrastive objectives (paper, section 5.3); put a function into :data:`OBJECTIVES` to add one."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps image and transcriptome embeddings ``(n, d)`` of the same tiles, and τ, to a loss."""


def info_nce(image: Tensor, transcriptome: Tensor, temperature: Tensor | float) -> Tensor:
    """Symmetric InfoNCE, ½ [L(I→S) + L(S→I)], with cosine similarity; row i of both ``(n, d)`` belongs together."""
    with torch.autocast(image.device.type, enabled=False):
        image = functional.normalize(at_least_single(image), dim=-1)
        transcriptome = functional.normalize(at_least_single(transcriptome), dim=-1)
        logits = image @ transcriptome.T / temperature
        partner = torch.arange(len(logits), device=logits.device)
        return 0.5 * (functional.cross_entropy(logits, partner) + functional.cross_entropy(logits.T, partner))


def at_least_single(z: Tensor) -> Tensor:
    """Half precision as single: similarities over τ would lose their second digit."""
    return z if z.dtype == torch.float64 else z.float()


OBJECTIVES: dict[str, Objective] = {"infonce": info_nce}
"""Objectives by name, as the option ``objective`` takes them."""
