"""Which parameters of an image encoder are trained: low-rank adapters, its last blocks, or all."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

from torch import nn

from sigmma_sc._checks import require_package
from sigmma_sc.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sigmma_sc.config import Config
    from sigmma_sc.encoders.encoder import ImageEncoder

LISTS = (nn.ModuleList, nn.Sequential)

MIN_SHARE = 0.05
"""Least share of an encoder's weights that adapters must reach: those of a ResNet of 3 × 3 convolutions reach next to nothing."""


def require_tunable(encoder: ImageEncoder, config: Config) -> None:
    """Check that an encoder has weights that ``regime`` and ``last_k`` can train, and that peft is there if needed."""
    network = _trainable_network(encoder, config)
    if config.regime == "lora":
        require_package("peft", "encoders")
        share = _adapted_share(network)
        if share < MIN_SHARE:
            raise EncoderError(
                f"Image encoder {encoder.name!r} has {share:.1%} of its weights in linear maps and 1 × 1 convolutions, which are "
                f"what regime='lora' adapts; {MIN_SHARE:.0%} are needed. Use regime='full' or 'last_k'."
            )
    if config.regime == "last_k":
        later = _later_lists(network)
        if later:
            raise EncoderError(
                f"Image encoder {encoder.name!r} is no plain stack of blocks: {_longest_list(network)[0]!r}, its longest "
                f"list of them, is followed by {', '.join(map(repr, later))}, so that last_k={config.last_k} could not be counted. "
                "Use regime='lora' or 'full'."
            )
        n_blocks = len(blocks_of(network))
        if config.last_k > n_blocks:
            raise EncoderError(
                f"Image encoder {encoder.name!r} has {n_blocks} blocks, last_k={config.last_k}. Give at most that many, or use "
                "regime='full'."
            )


def _trainable_network(encoder: ImageEncoder, config: Config) -> nn.Module:
    """The encoder's module, if it has weights."""
    network = encoder.module
    if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
        raise EncoderError(
            f"Image encoder {encoder.name!r} has no weights to train with regime={config.regime!r}. Use regime='frozen', or an "
            "encoder with weights, e.g. 'resnet50'."
        )
    return network


def tuned(encoder: ImageEncoder, config: Config) -> ImageEncoder:
    """Copy an encoder and let the parameters to be trained require a gradient; the encoder itself stays as it is.

    ``"lora"`` gives low-rank adapters (Hu et al. 2021) to the linear maps and the 1 × 1 convolutions. α is the rank, so
    that adapters are added with weight 1 (our choice). They start at zero, which leaves the output unchanged.
    ``"last_k"`` trains the last blocks with the layers that follow them, ``"full"`` everything.
    """
    encoder = copy.deepcopy(encoder).requires_grad_(config.regime == "full")
    if config.regime == "lora":
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        network = _trainable_network(encoder, config)
        rank = config.lora_rank
        # A list would be matched by the ends of names: "0" would be every layer that is the first of its kind.
        names = "|".join(re.escape(name) for name in adaptable(network))
        adapters = LoraConfig(r=rank, lora_alpha=rank, target_modules=f"(?:{names})")
        inject_adapter_in_model(adapters, network)
        adapted: list[Any] = [part for part in network.modules() if isinstance(part, BaseTunerLayer)]
        for layer in adapted:
            # Under autocast peft would cast each input to float32, and autocast would cast it back: the same numbers for
            # more than twice the memory traffic.
            layer.cast_input_dtype_enabled = False
    elif config.regime == "last_k":
        network = _trainable_network(encoder, config)
        for block in blocks_of(network)[-config.last_k :]:
            for name in block:
                network.get_parameter(name).requires_grad_(True)
    return encoder


def adaptable(module: nn.Module) -> list[str]:
    """Names of the layers that get adapters: linear maps and 1 × 1 convolutions, which are linear maps of channels."""
    return [name for name, _ in _adaptable_layers(module)]


def _adaptable_layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    # torch's own attention reads the weights of its output map without calling it, past any adapter.
    bypassed = {f"{name}.out_proj" for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)}
    for name, part in module.named_modules():
        if not name or name in bypassed:
            continue
        pointwise = isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1
        if pointwise or isinstance(part, nn.Linear):
            yield name, part


def _adapted_share(module: nn.Module) -> float:
    """Share of the weights that adapters reach."""
    reached = sum(layer.weight.numel() for _, layer in _adaptable_layers(module))
    return reached / sum(parameter.numel() for parameter in module.parameters())


def blocks_of(module: nn.Module) -> list[list[str]]:
    """Names of the parameters of each block of an encoder, first to last; the last one includes the layers that follow.

    Blocks are those by which timm decays learning rates, or else the modules of a network's longest list of modules.
    """
    matcher = getattr(module, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        groups: dict[int, list[str]] = group_parameters(module, matcher(coarse=False))
        return [groups[number] for number in sorted(groups)]
    longest, listed = _longest_list(module)
    prefix = f"{longest}." if longest else ""
    names = _in_order_of_use(module, prefix)
    starts = []
    for child, _ in listed.named_children():
        own = [k for k, name in enumerate(names) if name.startswith(f"{prefix}{child}.")]
        starts += own[:1]  # a block without parameters has none
    ends = [*starts[1:], len(names)]
    return [names[start:end] for start, end in zip(starts, ends, strict=True)]


def _in_order_of_use(module: nn.Module, blocks: str) -> list[str]:
    """Names of the parameters, with the projections of CLIP and open_clip last, where they are applied.

    Modules name their own parameters before those of their submodules. For the embeddings of a transformer that is their
    order; ``proj``, outside of the blocks, is applied after everything else.
    """
    names = []
    projections = []
    for name, _ in module.named_parameters():
        in_blocks = blocks and name.startswith(blocks)
        if name.rpartition(".")[2] == "proj" and not in_blocks:
            projections.append(name)
        else:
            names.append(name)
    return names + projections


def _longest_list(module: nn.Module) -> tuple[str, nn.ModuleList | nn.Sequential]:
    """Name and module of the longest list of modules; the first of equal ones."""
    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, LISTS)]
    return max(lists, key=lambda pair: len(pair[1]), default=("", nn.Sequential()))


def _later_lists(module: nn.Module) -> list[str]:
    """Lists of blocks behind the longest one: stages, as convolutional networks have them.

    A block has submodules; a list of single layers, such as a head, is not counted.
    """
    if hasattr(module, "group_matcher"):
        return []
    longest, _ = _longest_list(module)
    prefix = f"{longest}." if longest else ""
    named = list(module.named_modules())
    last = max(k for k, (name, _) in enumerate(named) if f"{name}.".startswith(prefix))
    later = []
    for name, part in named[last + 1 :]:
        if isinstance(part, LISTS):
            blocks = [block for block in part if next(block.children(), None) is not None]
            if len(blocks) > 1:
                later.append(name)
    return later
