"""Which parameters of an image encoder are trained: low-rank adapters, its last blocks, or all."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import nn

from sigmma_sc._checks import EncoderError, require_package
from sigmma_sc.nn.encoders import ImageEncoder

if TYPE_CHECKING:
    from sigmma_sc.config import Config


def tuned(encoder: ImageEncoder, config: Config) -> ImageEncoder:
    """A copy of an encoder with the parameters to be trained set to require a gradient; the encoder itself stays as it is.

    It is put in evaluation mode for good: statistics of batch norms and stochastic depth stay as the encoder's authors left
    them, and a crop's features do not depend on the crops beside it.

    Raises
    ------
    EncoderError
        The encoder has nothing to train, no linear maps or no such number of blocks.
    MissingPackageError
        ``regime="lora"`` without peft.
    """
    if not isinstance(encoder.module, nn.Module) or not any(True for _ in encoder.module.parameters()):
        raise EncoderError(
            f"Image encoder {encoder.name!r} has no weights to train with regime={config.regime!r}. Use regime='frozen', or an "
            "encoder with weights, e.g. 'resnet50'."
        )
    encoder = copy.deepcopy(encoder).eval().requires_grad_(config.regime == "full")
    if config.regime == "lora":
        add_adapters(encoder, config.lora_rank)
    elif config.regime == "last_k":
        names = last_blocks(encoder, config.last_k)
        for name, parameter in encoder.module.named_parameters():
            parameter.requires_grad_(name in names)
    return encoder


def add_adapters(encoder: ImageEncoder, rank: int) -> None:
    """Give the linear maps of an encoder, or of a convolutional one its 1 × 1 convolutions, low-rank adapters (Hu et al. 2021).

    α is the rank, so that adapters add with weight 1 (our choice). They start at zero: the encoder's output is unchanged.
    """
    require_package("peft", "encoders")
    from peft import LoraConfig, inject_adapter_in_model

    found = adaptable(encoder.module)
    if not found:
        raise EncoderError(
            f"Image encoder {encoder.name!r} has no linear map and no 1 × 1 convolution to adapt. Use regime='full' or 'last_k'."
        )
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=found), encoder.module)


def adaptable(module: nn.Module) -> list[str]:
    """Names of the layers that adapters go to."""
    # torch's own attention reads the weights of its output map without calling it, past any adapter.
    bypassed = {f"{name}.out_proj" for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)}
    named = list(module.named_modules())
    linear = [name for name, part in named if isinstance(part, nn.Linear) and name and name not in bypassed]
    return linear or [
        name for name, part in named if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1
    ]


def last_blocks(encoder: ImageEncoder, k: int) -> set[str]:
    """Names of the parameters of an encoder's last ``k`` blocks and of what follows them.

    Blocks are those by which timm decays learning rates; of an encoder that is not timm's, the parts of its longest list of
    modules, and with them everything that is defined after it.
    """
    module, parameters = encoder.module, [name for name, _ in encoder.module.named_parameters()]
    if hasattr(module, "group_matcher"):
        from timm.models import group_parameters

        groups: dict[int, list[str]] = group_parameters(module, module.group_matcher(coarse=False), reverse=False)
        blocks = [groups[n] for n in sorted(groups)]
    else:
        lists = {
            name: part for name, part in module.named_modules() if isinstance(part, (nn.ModuleList, nn.Sequential))
        }
        longest = max(lists, key=lambda name: len(lists[name]), default=None)
        if longest is None:
            blocks = []
        else:
            prefix = f"{longest}." if longest else ""
            starts = [next(i for i, name in enumerate(parameters) if name.startswith(f"{prefix}{n}."))
                      for n, part in lists[longest].named_children() if any(True for _ in part.parameters())]  # fmt: skip
            blocks = [parameters[a:b] for a, b in zip(starts, [*starts[1:], len(parameters)], strict=True)]
    if k > len(blocks):
        raise EncoderError(
            f"Image encoder {encoder.name!r} has {len(blocks)} blocks, last_k={k}. Give at most that many, or use regime='full'."
        )
    return {name for block in blocks[-k:] for name in block}
