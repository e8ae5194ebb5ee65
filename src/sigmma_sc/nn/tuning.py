"""Which parameters of an image encoder are trained: low-rank adapters, its last blocks, or all."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import nn

from sigmma_sc._checks import require_package
from sigmma_sc.errors import EncoderError
from sigmma_sc.nn.encoders import ImageEncoder

if TYPE_CHECKING:
    from sigmma_sc.config import Config


def require_tunable(encoder: ImageEncoder, config: Config) -> None:
    """Check that an encoder can be trained as the configuration says.

    Raises
    ------
    EncoderError
        It has nothing to train, nothing to adapt, or fewer blocks.
    MissingPackageError
        ``regime="lora"`` without peft.
    """
    if not isinstance(encoder.module, nn.Module) or not any(True for _ in encoder.module.parameters()):
        raise EncoderError(
            f"Image encoder {encoder.name!r} has no weights to train with regime={config.regime!r}. Use regime='frozen', or an "
            "encoder with weights, e.g. 'resnet50'."
        )
    if config.regime == "lora":
        require_package("peft", "encoders")
        if not adaptable(encoder.module):
            raise EncoderError(
                f"Image encoder {encoder.name!r} has no linear map and no 1 × 1 convolution to adapt. Use regime='full' or "
                "'last_k'."
            )
    if config.regime == "last_k" and config.last_k > len(blocks_of(encoder.module)):
        raise EncoderError(
            f"Image encoder {encoder.name!r} has {len(blocks_of(encoder.module))} blocks, last_k={config.last_k}. Give at most "
            "that many, or use regime='full'."
        )


def tuned(encoder: ImageEncoder, config: Config) -> ImageEncoder:
    """A copy of an encoder with the parameters to be trained set to require a gradient; the encoder itself stays as it is.

    ``"lora"`` gives the linear maps, or of a convolutional network the 1 × 1 convolutions, low-rank adapters (Hu et al. 2021). α is
    the rank, so that adapters add with weight 1 (our choice); they start at zero, which leaves the output unchanged.
    ``"last_k"`` takes the last blocks with what follows them, ``"full"`` everything.
    """
    encoder = copy.deepcopy(encoder).requires_grad_(config.regime == "full")
    if config.regime == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        rank = config.lora_rank
        adapters = LoraConfig(r=rank, lora_alpha=rank, target_modules=adaptable(encoder.module))
        inject_adapter_in_model(adapters, encoder.module)
    elif config.regime == "last_k":
        names = {name for block in blocks_of(encoder.module)[-config.last_k :] for name in block}
        for name, parameter in encoder.module.named_parameters():
            parameter.requires_grad_(name in names)
    return encoder


def adaptable(module: nn.Module) -> list[str]:
    """Names of the layers that adapters go to."""
    # torch's own attention reads the weights of its output map without calling it, past any adapter.
    bypassed = {f"{name}.out_proj" for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)}
    named = list(module.named_modules())
    linear = [name for name, part in named if isinstance(part, nn.Linear) and name and name not in bypassed]
    return linear or [
        name for name, part in named if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1
    ]


def blocks_of(module: nn.Module) -> list[list[str]]:
    """Names of the parameters of each block of an encoder, first to last, what follows the last block with it.

    Blocks are those by which timm decays learning rates; of an encoder that is not timm's, the parts of its longest list of
    modules.
    """
    names = [name for name, _ in module.named_parameters()]
    if hasattr(module, "group_matcher"):
        from timm.models import group_parameters

        groups: dict[int, list[str]] = group_parameters(module, module.group_matcher(coarse=False))
        return [groups[n] for n in sorted(groups)]
    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, (nn.ModuleList, nn.Sequential))]
    longest, parts = max(lists, key=lambda pair: len(pair[1]), default=("", nn.Sequential()))
    prefix = f"{longest}." if longest else ""
    weighty = [n for n, part in parts.named_children() if any(True for _ in part.parameters())]
    starts = [next(k for k, name in enumerate(names) if name.startswith(f"{prefix}{n}.")) for n in weighty]
    return [names[a:b] for a, b in zip(starts, [*starts[1:], len(names)], strict=True)]
