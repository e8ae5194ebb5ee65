"""Attention of the class token to the patches of a crop in an encoder's last block (paper, Fig. 3)."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from sigmma_sc.encoders.architectures import Conch
from sigmma_sc.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sigmma_sc.encoders.encoder import ImageEncoder

    Kept = list[Tensor]


OF_TRANSFORMERS = ("clip_vision_model", "dinov2", "dinov2_with_registers", "vit")
"""Models of transformers whose scores are the product of queries and keys as they are projected, without rotary positions."""


class _TimmAttention(Protocol):
    fused_attn: bool
    attn_drop: nn.Module


def cls_attention(encoder: ImageEncoder, crops: Tensor) -> Tensor:
    """Attention of the class token to the patches in the last block, ``(B, heads, h, w)`` float32 on the CPU.

    The weights are those that the block itself computes, softmax over all tokens. The class token's weight on itself
    and those on register tokens are then left out, so that a map sums to less than 1. ``crops`` ``(B, 3, S, S)`` are
    uint8, S a size in px that the encoder takes. An encoder without a class token and attention raises
    :class:`EncoderError`.
    """
    network = encoder.module.trunk if isinstance(encoder.module, Conch) else encoder.module
    found = _last_attention(network) if isinstance(network, nn.Module) else None
    if found is None:
        raise EncoderError(
            f"Image encoder {encoder.name!r} ({type(network).__name__}) has no attention of a class token to patches. Needed is "
            "a vision transformer with a class token as timm, transformers (CLIP, DINOv2) or open_clip build it, such as "
            "'kaiko-vits16', 'uni' or 'h-optimus-0'."
        )
    reading, prefix = found
    with reading as kept:
        encoder.encode(crops)
    weights = kept[-1][:, :, 0, prefix:]
    side = math.isqrt(weights.shape[-1])
    if side * side != weights.shape[-1]:
        raise EncoderError(
            f"The last block of image encoder {encoder.name!r} has {weights.shape[-1]} patches, which are no square: patches "
            "that were merged or dropped cannot be placed on the crop. Build it without."
        )
    return weights.unflatten(-1, (side, side)).float().cpu()


def _last_attention(network: nn.Module) -> tuple[AbstractContextManager[Kept], int] | None:
    """How to read the last block's weights, and the number of tokens before the patches; ``None`` if unknown."""
    from timm import models

    if isinstance(network, (models.VisionTransformer, models.Eva, models.Beit, models.VisionTransformerRelPos)):
        attention: Any = getattr(network.blocks[-1], "attn", network.blocks[-1])
        if network.cls_token is not None and hasattr(attention, "attn_drop") and hasattr(attention, "fused_attn"):
            return _unfused(attention), network.num_prefix_tokens
    config = getattr(network, "config", None)
    if config is not None and getattr(config, "model_type", None) in OF_TRANSFORMERS:
        # transformers 5 names them q_proj and k_proj, earlier versions query and key.
        projections = _last_pair(network, "q_proj", "k_proj") or _last_pair(network, "query", "key")
        if projections is not None:
            prefix = 1 + getattr(config, "num_register_tokens", 0)
            return _projected(*projections, config.num_attention_heads), prefix
    blocks = getattr(getattr(network, "transformer", None), "resblocks", None)  # open_clip
    if hasattr(network, "class_embedding") and blocks and isinstance(blocks[-1].attn, nn.MultiheadAttention):
        return _weighed(blocks[-1].attn), 1
    return None


def _last_pair(network: nn.Module, query: str, key: str) -> tuple[nn.Module, nn.Module] | None:
    """Last projections to queries and to keys, by the ends of their names; ``None`` if there are none."""
    named = list(network.named_modules())
    queries = [module for name, module in named if name.endswith(f".{query}")]
    keys = [module for name, module in named if name.endswith(f".{key}")]
    return (queries[-1], keys[-1]) if queries and keys else None


@contextmanager
def _hooked(*hooks: tuple[nn.Module, Callable]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unfused(attention: _TimmAttention) -> Iterator[Kept]:
    """Timm's weights: fused attention never holds them, while its other path gives them to a dropout layer.

    Whatever the block does to queries and keys (norms, rotary positions, biases) is in them.
    """
    kept: Kept = []
    fused = attention.fused_attn
    attention.fused_attn = False
    try:
        with _hooked((attention.attn_drop, lambda module, given, out: kept.append(given[0]))):
            yield kept
    finally:
        attention.fused_attn = fused


@contextmanager
def _projected(query: nn.Module, key: nn.Module, heads: int) -> Iterator[Kept]:
    """Transformers' weights, from queries and keys: whether a block returns them depends on version and settings.

    So does which of the two a block projects first.
    """
    kept: Kept = []
    waiting: dict[nn.Module, Tensor] = {}

    def weigh(module: nn.Module, given: tuple, projected: Tensor) -> None:
        waiting[module] = projected.unflatten(-1, (heads, -1)).transpose(1, 2)
        if len(waiting) == 2:
            q = waiting.pop(query)
            k = waiting.pop(key)
            kept.append((q[:, :, :1] @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1))

    with _hooked((query, weigh), (key, weigh)):
        yield kept


@contextmanager
def _weighed(attention: nn.MultiheadAttention) -> Iterator[Kept]:
    """open_clip's weights: torch's own module is called again, for the weights that the block does not request."""
    kept: Kept = []

    def call_again(module: nn.MultiheadAttention, given: tuple, out: tuple) -> None:
        if out[1] is None:
            kept.append(module(*given[:3], need_weights=True, average_attn_weights=False)[1])

    with _hooked((attention, call_again)):
        yield kept
