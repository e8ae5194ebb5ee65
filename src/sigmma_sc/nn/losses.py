"""Contrastive objectives (paper, section 5.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def info_nce(image: Tensor, transcriptome: Tensor, temperature: Tensor | float) -> Tensor:
    """Symmetric InfoNCE, ½ [L(I→S) + L(S→I)], with cosine similarity.

    Parameters
    ----------
    image, transcriptome
        Paired embeddings, ``(n, d)``; row i of one belongs to row i of the other, all other rows are negatives.
    temperature
        τ of the paper.
    """
    logits = functional.normalize(image, dim=-1) @ functional.normalize(transcriptome, dim=-1).T / temperature
    partner = torch.arange(len(logits), device=logits.device)
    return 0.5 * (functional.cross_entropy(logits, partner) + functional.cross_entropy(logits.T, partner))
