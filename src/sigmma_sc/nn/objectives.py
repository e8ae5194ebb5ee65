"""Contrastive objectives (paper, section 5.3), by name."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from sigmma_sc._checks import require_new_name
from sigmma_sc.errors import SetupError

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
"""Objectives by name; :func:`register_objective` adds to them."""


def register_objective(name: str, objective: Objective) -> None:
    """Register a contrastive objective by its name, for the option ``objective`` of :class:`sigmma_sc.SIGMMA`.

    It is registered in this process. On the command line, ``sigmma-sc --import MODULE`` first imports your module.

    Parameters
    ----------
    name
        Letters, digits, ``-`` and ``_``.
    objective
        Function of image and transcriptome embeddings ``(n, d)``, whose rows belong together, and of the temperature. It
        returns the loss, a scalar with a gradient. If it draws random numbers, it needs a generator of its own: training
        does not seed torch's.

    Raises
    ------
    SetupError
        The name is malformed or taken, or the function gives no such loss for four random tiles.

    Examples
    --------
    >>> def image_to_cells(image, transcriptome, temperature):
    ...     cosine = image @ transcriptome.T / image.norm(dim=1)[:, None] / transcriptome.norm(dim=1)
    ...     return -(cosine / temperature).log_softmax(dim=1).diagonal().mean()
    >>> sg.register_objective("image-to-cells", image_to_cells)
    >>> sg.Config(objective="image-to-cells").objective
    'image-to-cells'
    """
    require_new_name(name, objective, OBJECTIVES, "objective")
    image = torch.linspace(-1, 1, 32).view(4, 8).requires_grad_()
    transcriptome = torch.linspace(0, 5, 32).sin().view(4, 8).requires_grad_()
    try:
        loss = objective(image, transcriptome, torch.tensor(0.1))
    except Exception as error:
        raise SetupError(
            f"objective={name!r} fails for embeddings (4, 8), with {type(error).__name__}: {error}. Give a function of image, "
            "transcriptome and temperature."
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.isfinite().all() or not loss.requires_grad:
        raise SetupError(
            f"objective={name!r} gives {loss!r} for embeddings (4, 8). Return one finite number, a tensor with a gradient."
        )
    OBJECTIVES[name] = objective
