"""Batch normalisation folded into the convolutions before it, for a frozen encoder: fewer passes over each layer."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

if TYPE_CHECKING:
    from sigmma_sc.encoders.encoder import ImageEncoder

TOLERANCE = 1e-4
"""Largest difference of a feature that is rounding, relative to the largest feature."""


class _Tracer(fx.Tracer):
    """Keeps normalisations whole, also those of timm, which hold an activation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def folded(encoder: ImageEncoder) -> ImageEncoder:
    """A copy that encodes as the encoder does, up to rounding, with less work.

    The encoder itself is returned where nothing can be folded: no batch normalisation alone takes the output of a
    convolution, torch cannot trace the network, or the copy gives other features for a crop of noise.
    """
    network = encoder.module
    if not isinstance(network, nn.Module) or not any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        return encoder
    pairs = _pairs(network)
    if not pairs:
        return encoder
    other = copy.deepcopy(encoder).eval()
    if isinstance(other.module, nn.Module):
        _fold(other.module, pairs)
    noise = torch.randint(
        256,
        (1, 3, encoder.input_size, encoder.input_size),
        generator=torch.Generator().manual_seed(0),
        dtype=torch.uint8,
    )
    here, there = encoder.encode(noise), other.encode(noise)
    return other if (here - there).abs().max() <= TOLERANCE * here.abs().max() else encoder


def _fold(network: nn.Module, pairs: list[tuple[str, str]]) -> None:
    for first, second in pairs:
        convolution, norm = network.get_submodule(first), network.get_submodule(second)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            _put(network, first, fuse_conv_bn_eval(convolution, norm))
            # What timm's normalisation goes on with.
            after = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
            _put(network, second, nn.Sequential(*after))


def _pairs(network: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions, and of the normalisations that alone take their output."""
    from timm.layers import BatchNormAct2d

    in_training = [part for part in network.modules() if part.training]
    for part in in_training:
        part.training = False
    try:
        graph = _Tracer().trace(network)
    except Exception:  # noqa: BLE001 - the code of any network runs, with stand-ins for its values
        return []
    finally:
        for part in in_training:
            part.training = True
    # A module may have several names.
    called = Counter(id(network.get_submodule(str(node.target))) for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    pairs = []
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        names = str(before.target), str(node.target)
        convolution, norm = map(network.get_submodule, names)
        # A class of its own may compute its weights anew in each pass.
        kinds = type(convolution) is nn.Conv2d and type(norm) in (nn.BatchNorm2d, BatchNormAct2d)
        plain = not any(called[id(part)] > 1 or _has_hooks(part) for part in (convolution, norm))
        if kinds and plain and norm.track_running_stats and not read & set(names):
            pairs.append(names)
    return pairs


def _has_hooks(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)  # noqa: SLF001 - torch has no public way to ask


def _put(network: nn.Module, name: str, part: nn.Module) -> None:
    """Put a module in the place of the one of a name."""
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, part)
