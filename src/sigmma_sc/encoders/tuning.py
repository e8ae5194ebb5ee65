"""Which parameters of an image encoder are trained: low-rank adapters, its last blocks, or all."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

from torch import nn

from sigmma_sc._checks import require_package
from sigmma_sc.encoders.encoder import ImageEncoder
from sigmma_sc.errors import EncoderError

if TYPE_CHECKING:
    from sigmma_sc.config import Config

LISTS = (nn.ModuleList, nn.Sequential)

MIN_SHARE = 0.05
"""Least share of an encoder's weights that adapters must reach: those of a ResNet of 3 × 3 convolutions reach next to nothing."""


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
        share = _adapted_share(encoder.module)
        if share < MIN_SHARE:
            raise EncoderError(
                f"Image encoder {encoder.name!r} has {share:.1%} of its weights in linear maps and 1 × 1 convolutions, which are "
                f"what regime='lora' adapts; {MIN_SHARE:.0%} are needed. Use regime='full' or 'last_k'."
            )
    if config.regime == "last_k":
        if later := _later_lists(encoder.module):
            raise EncoderError(
                f"Image encoder {encoder.name!r} is no plain stack of blocks: {_longest_list(encoder.module)[0]!r}, its longest "
                f"list of them, is followed by {', '.join(map(repr, later))}, so that last_k={config.last_k} could not be counted. "
                "Use regime='lora' or 'full'."
            )
        if config.last_k > (n := len(blocks_of(encoder.module))):
            raise EncoderError(
                f"Image encoder {encoder.name!r} has {n} blocks, last_k={config.last_k}. Give at most that many, or use "
                "regime='full'."
            )


def tuned(encoder: ImageEncoder, config: Config) -> ImageEncoder:
    """A copy of an encoder with the parameters to be trained set to require a gradient; the encoder itself stays as it is.

    ``"lora"`` gives the linear maps and the 1 × 1 convolutions low-rank adapters (Hu et al. 2021). α is the rank, so that adapters add with weight 1 (our choice); they start at zero, which leaves the output unchanged.
    ``"last_k"`` takes the last blocks with what follows them, ``"full"`` everything.
    """
    encoder = copy.deepcopy(encoder).requires_grad_(config.regime == "full")
    if config.regime == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        rank = config.lora_rank
        # A list would be matched by the ends of names: "0" would be every layer that is the first of its kind.
        names = "|".join(map(re.escape, adaptable(encoder.module)))
        adapters = LoraConfig(r=rank, lora_alpha=rank, target_modules=f"(?:{names})")
        inject_adapter_in_model(adapters, encoder.module)
    elif config.regime == "last_k":
        names = {name for block in blocks_of(encoder.module)[-config.last_k :] for name in block}
        for name, parameter in encoder.module.named_parameters():
            parameter.requires_grad_(name in names)
    return encoder


def adaptable(module: nn.Module) -> list[str]:
    """Names of the layers that adapters go to: linear maps and 1 × 1 convolutions, which are linear maps of channels."""
    # torch's own attention reads the weights of its output map without calling it, past any adapter.
    bypassed = {f"{name}.out_proj" for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)}
    return [name for name, part in module.named_modules() if name and name not in bypassed and _is_linear(part)]


def _is_linear(part: nn.Module) -> bool:
    if isinstance(part, nn.Conv2d):
        return part.kernel_size == (1, 1) and part.groups == 1
    return isinstance(part, nn.Linear)


def _adapted_share(module: nn.Module) -> float:
    """Share of the weights that adapters reach."""
    reached = sum(module.get_submodule(name).weight.numel() for name in adaptable(module))
    return reached / sum(p.numel() for p in module.parameters())


def blocks_of(module: nn.Module) -> list[list[str]]:
    """Names of the parameters of each block of an encoder, first to last, what follows the last block with it.

    Blocks are those by which timm decays learning rates; of an encoder that is not timm's, the parts of its longest list of
    modules.
    """
    if hasattr(module, "group_matcher"):
        from timm.models import group_parameters

        groups: dict[int, list[str]] = group_parameters(module, module.group_matcher(coarse=False))
        return [groups[n] for n in sorted(groups)]
    longest, parts = _longest_list(module)
    prefix = f"{longest}." if longest else ""
    # Modules name their bare parameters before their parts. For the embeddings of a transformer that is their order; what CLIP
    # and open_clip call proj is applied last.
    names = [name for name, _ in module.named_parameters()]
    last = [name for name in names if name.rpartition(".")[2] == "proj" and not (longest and name.startswith(prefix))]
    names = [*(name for name in names if name not in last), *last]
    weighty = [n for n, part in parts.named_children() if any(True for _ in part.parameters())]
    starts = [next(k for k, name in enumerate(names) if name.startswith(f"{prefix}{n}.")) for n in weighty]
    return [names[a:b] for a, b in zip(starts, [*starts[1:], len(names)], strict=True)]


def _longest_list(module: nn.Module) -> tuple[str, nn.Module]:
    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, LISTS)]
    return max(lists, key=lambda pair: len(pair[1]), default=("", nn.Sequential()))


def _later_lists(module: nn.Module) -> list[str]:
    """Lists of blocks behind the longest one: stages, as convolutional networks have them. Single layers of a head are no blocks."""
    if hasattr(module, "group_matcher"):
        return []
    longest, _ = _longest_list(module)
    named = list(module.named_modules())
    end = max(k for k, (name, _) in enumerate(named) if f"{name}.".startswith(f"{longest}." if longest else ""))
    later = [(name, part) for name, part in named[end + 1 :] if isinstance(part, LISTS)]
    return [name for name, part in later if sum(any(True for _ in block.children()) for block in part) > 1]
