"""Features of many crops in the memory of a few, with the gradient of all (Gao et al. 2021, GradCache)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Encode = Callable[[Tensor, int], Tensor]


class Limit(Protocol):
    """How many crops are encoded at once; :meth:`halve` is called when they do not fit into memory."""

    chunk_size: int

    def halve(self) -> None:
        """Halve ``chunk_size``, or raise an error."""


def features_in_chunks(
    encode: Encode, groups: Sequence[Tensor], weights: Sequence[Tensor], limit: Limit
) -> tuple[Tensor, ...]:
    """Features ``(n, d)`` of each group of patches ``(n, …)``, a chunk at a time.

    ``encode`` takes patches and the number of their group. It has to give the same features every time, because each
    chunk is encoded again in the backward pass, for the gradient of ``weights``.
    """
    return _Chunked.apply(encode, limit, len(groups), *groups, *weights)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, encode: Encode, limit: Limit, n_groups: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        groups = tensors[:n_groups]
        ctx.encode, ctx.limit, ctx.weights = encode, limit, tensors[n_groups:]
        ctx.autocast = _autocast_now(groups[0].device.type)
        ctx.save_for_backward(*groups)
        return tuple(_features(encode, patches, number, limit) for number, patches in enumerate(groups))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        groups = ctx.saved_tensors
        totals: list[Tensor | None] = [None] * len(ctx.weights)
        # The last chunk of the last group first, and one sum: the order in which autograd adds gradients.
        for number in reversed(range(len(groups))):
            end = len(groups[number])
            while end:
                begin = (end - 1) // ctx.limit.chunk_size * ctx.limit.chunk_size
                try:
                    gradients = _gradients(ctx, groups[number][begin:end], number, grads[number][begin:end])
                except torch.OutOfMemoryError:
                    ctx.limit.halve()
                    continue
                totals = [_added(total, more) for total, more in zip(totals, gradients, strict=True)]
                end = begin
        return (None,) * (3 + len(groups)) + tuple(totals)


def _features(encode: Encode, patches: Tensor, number: int, limit: Limit) -> Tensor:
    parts: list[Tensor] = []
    begin = 0
    while begin < len(patches) or not parts:
        try:
            parts.append(encode(patches[begin : begin + limit.chunk_size], number))
        except torch.OutOfMemoryError:
            limit.halve()
            continue
        begin += len(parts[-1])
    return torch.cat(parts)


def _gradients(ctx: Any, patches: Tensor, number: int, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
    """Gradients of the weights by one chunk."""
    with torch.enable_grad(), ctx.autocast():
        features = ctx.encode(patches, number)
    return torch.autograd.grad(features, ctx.weights, grad, allow_unused=True)


def _added(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more  # not in place: gradients of two weights may share memory


def _autocast_now(kind: str) -> Callable[[], AbstractContextManager]:
    """Makes the autocast that is active now, for the backward pass, where none is."""
    if not torch.amp.is_autocast_available(kind):
        return nullcontext
    enabled = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype, enabled=enabled)
