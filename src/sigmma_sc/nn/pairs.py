"""Pairs of cells as small dense problems: how they are laid out, and weights of edges drawn over them.

Pairs come in *shells*. The first holds pairs that share a block of the second finest grid (meso), where the first edges are added; the
spatial edges, within micro blocks, are among them. The next holds pairs that share a block of the next grid but none of a finer one. A pair
appears at the scale at which it first can be an edge, and stays. Each shell is a set of blocks of nearly equal size. The macro scale's pairs
then cost the finer scales nothing, and a dense tile does not set the cost of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sigmma_sc._random import generator

if TYPE_CHECKING:
    from collections.abc import Callable

WORK = 2**18
"""Pairs times hidden units that a CPU computes at once: they stay in its cache."""

GPU_WORK = 2**26
"""The same for a GPU, where each call costs as much as many pairs: 256 MB in float32."""


@dataclass(frozen=True)
class Bucket:
    """Blocks of nearly equal size: ``n`` of them, padded to ``size`` slots, from slot ``start`` on; ``shell`` they are of."""

    shell: int
    n: int
    size: int
    start: int


@dataclass(frozen=True)
class CellLayout:
    """The cells of a batch of tiles in slots; prepared on the host, so that the tower never reads a value."""

    # The blocks, bucket after bucket, shell after shell. Blocks of a single cell hold no pair and are left out.
    buckets: tuple[Bucket, ...]
    cell: Tensor  # cell of each slot, (n_slots,); padding is n_cells, a row of zeros
    # Number of each slot's block in the shell before within its own block, (n_slots,) float32: a pair that shares it
    # belongs there. In the first shell the number of the cell.
    inner_block: Tensor
    slot: Tensor  # slot of each cell in each shell, (n_shells, n_cells); n_slots where it has none
    # Spatial edges, a 0/1 matrix a block of the first shell, flat, bool; row v holds the sources of target v.
    micro: Tensor
    tile: Tensor  # tile of each cell, (n_cells,)
    n_tiles: int  # number of tiles

    def to(self, device: torch.device) -> CellLayout:
        """Move to a device; Lightning's batch transfer calls this, and leaves it open whether to wait."""
        waits = torch.device(device).type in ("cpu", "mps")
        return self._with(lambda tensor: tensor.to(device, non_blocking=not waits))

    def pin_memory(self) -> CellLayout:
        """Copy to memory that a GPU reads by itself; torch's loaders call this."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> CellLayout:
        return replace(
            self,
            cell=change(self.cell),
            inner_block=change(self.inner_block),
            slot=change(self.slot),
            micro=change(self.micro),
            tile=change(self.tile),
        )

    def active_buckets(self, scale: int) -> list[Bucket]:
        """Buckets whose pairs can be edges at a scale: at the first the spatial edges, in the first shell."""
        return [bucket for bucket in self.buckets if bucket.shell <= max(0, scale - 1)]

    def to_slots(self, cells: Tensor, buckets: list[Bucket]) -> dict[Bucket, Tensor]:
        """Rows of ``cells`` ``(n_cells, d)`` in the slots of the first buckets, ``(n, size, d)`` each."""
        sizes = [bucket.n * bucket.size for bucket in buckets]
        slots = ToSlots.apply(cells, *self._places(buckets))
        # One split, whose gradient is one concatenation; that of a slice would be as large as the whole.
        parts = slots.split(sizes) if buckets else ()
        return {b: part.unflatten(0, (b.n, b.size)) for b, part in zip(buckets, parts, strict=True)}

    def from_slots(self, slots: dict[Bucket, Tensor], zero: Tensor) -> Tensor:
        """Sum over shells of each cell's slots, ``(n_cells, d)``, for what :meth:`to_slots` gave; ``zero`` is a row of zeros."""
        rows = torch.cat([*(part.flatten(0, 1) for part in slots.values()), zero[:0]])
        return FromSlots.apply(rows, *self._places(list(slots)))

    def _places(self, buckets: list[Bucket]) -> tuple[Tensor, Tensor]:
        """Cell of each slot of the first buckets ``(n_slots,)``, and slot of each cell by shell ``(n_shells, n_cells)``.

        A slot of padding has a cell past the last, and a cell without a slot has a slot past the last.
        """
        n = sum(bucket.n * bucket.size for bucket in buckets)
        shells = 1 + max((bucket.shell for bucket in buckets), default=0)
        return self.cell[:n], self.slot[:shells].clamp_max(n)

    def blocks(self, slots: Tensor, bucket: Bucket) -> Tensor:
        """Part of ``slots`` ``(n_slots,)`` that is a bucket's, ``(n, size)``."""
        return slots[bucket.start : bucket.start + bucket.n * bucket.size].view(bucket.n, bucket.size)

    def candidates(self, bucket: Bucket) -> Tensor:
        """Pairs of a bucket that can be edges as 0/1, ``(n, size, size)`` float: no cell with itself, no pair of an earlier shell."""
        inner_block = self.blocks(self.inner_block, bucket)
        # Whole numbers: what is not equal differs by one at least. Several times faster than a comparison.
        return (inner_block[:, :, None] - inner_block[:, None, :]).abs_().clamp_max_(1)

    def spatial(self, bucket: Bucket, dtype: torch.dtype) -> Tensor:
        """Spatial edges of a bucket of the first shell, ``(n, size, size)``."""
        before = sum(b.n * b.size**2 for b in self.buckets if b.shell == 0 and b.start < bucket.start)
        flat = self.micro[before : before + bucket.n * bucket.size**2]
        return flat.view(bucket.n, bucket.size, bucket.size).to(dtype)


def spread(cells: Tensor, cell: Tensor) -> Tensor:
    """Rows ``(n_cells, d)`` at their slots ``(n_slots,)``, and zeros in the padding."""
    return torch.cat([cells, cells.new_zeros(1, cells.shape[1])]).index_select(0, cell)


def collected(slots: Tensor, slot: Tensor) -> Tensor:
    """Sum over shells of the rows ``(n_slots, d)`` at each cell's slots ``(n_shells, n_cells)``; half types add in single."""
    rows = torch.cat([slots, slots.new_zeros(1, slots.shape[1])])
    return rows.index_select(0, slot.flatten()).unflatten(0, slot.shape).sum(0)


class ToSlots(torch.autograd.Function):
    """:func:`spread`, whose gradient is :func:`collected`.

    A gather both ways. The gradient that torch has of a gather adds row by row, in an order that a GPU does not fix, and
    all padding to one row.
    """

    @staticmethod
    def forward(ctx, cells: Tensor, cell: Tensor, slot: Tensor) -> Tensor:
        """Rows of cells ``(n_cells, d)`` at their slots, ``(n_slots, d)``."""
        ctx.save_for_backward(slot)
        return spread(cells, cell)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the cells, from that of their slots."""
        return collected(grad, *ctx.saved_tensors), None, None


class FromSlots(torch.autograd.Function):
    """:func:`collected`, whose gradient is :func:`spread`; see :class:`ToSlots`."""

    @staticmethod
    def forward(ctx, slots: Tensor, cell: Tensor, slot: Tensor) -> Tensor:
        """Sum over shells of each cell's slots ``(n_slots, d)``, ``(n_cells, d)``."""
        ctx.save_for_backward(cell)
        return collected(slots, slot)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the slots, from that of the cells."""
        return spread(grad, *ctx.saved_tensors), None, None


def at_least_single(kind: torch.dtype) -> torch.dtype:
    """Type in which logits and edge weights are held: half precision would lose draws and small shares."""
    return torch.promote_types(kind, torch.float32)


def uniform_like(x: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), 65,536 of them: four from each 64 random bits, which is three times as fast as one from each."""
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    bits.random_(-(2**63), None, generator=generator(x.device))
    return bits.view(torch.int16)[: x.numel()].view(x.shape).to(x.dtype).add_(32768.5).div_(65536)


class EdgeWeights(torch.autograd.Function):
    """Union of edges that are there and edges that are drawn: ``w + (1 - w) e``, in few passes over the pairs.

    e is 0 or 1 as drawn from the relaxed Bernoulli of the score, with the gradient of its soft value (straight through), or
    the probability itself. The score of a pair, ``s = Σ_k c_k relu(a_vk + b_uk) + d``, is computed a few hidden units at a time as
    ``Σ_k c_k max(a_vk, -b_uk) + Σ_k c_k b_uk + d``, and again in the backward pass: one matrix of pairs is kept.
    """

    @staticmethod
    def forward(
        ctx,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor,
        weights: Tensor | None,
        candidates: Tensor,
        temperature: float | None,
        symmetric: bool,
    ) -> Tensor:
        """Weights ``(n, p, p)``, united with those before, if any; ``temperature=None`` takes the probability.

        ``a`` and ``b`` ``(n, p, k)`` are contributions of target and source cells to the hidden layer, ``c`` ``(k,)``
        and ``d`` weights and bias of the output. ``candidates`` ``(n, p, p)`` are pairs that may be linked as 0/1.
        """
        target = a.permute(2, 0, 1).contiguous()
        source = -b.permute(2, 0, 1).contiguous()
        score = ((b * c).sum(-1) + d)[:, None, :].expand(-1, a.shape[1], -1).clone()
        for some in _groups(len(c), score):
            largest = torch.maximum(target[some, :, :, None], source[some, :, None, :])
            score.view(-1).addmv_(largest.flatten(1).T, c[some])
        if symmetric:
            score = (score + score.mT) / 2
        soft = _drawn(score, temperature, symmetric).mul_(candidates)
        edges = soft if temperature is None else soft.round()
        ctx.save_for_backward(a, b, c, soft, weights)
        ctx.temperature, ctx.symmetric = temperature, symmetric
        if weights is None:
            return edges.clone() if temperature is None else edges
        return torch.addcmul(weights, 1 - weights, edges)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``a``, ``b``, ``c``, ``d`` and ``weights``."""
        a, b, c, soft, weights = ctx.saved_tensors
        of_weights = None
        through = soft * (1 - soft)
        if weights is not None:
            if ctx.needs_input_grad[4]:
                edges = soft if ctx.temperature is None else soft.round()
                of_weights = torch.addcmul(grad, grad, edges, value=-1)
            through.mul_(1 - weights)
        through.mul_(grad)
        if ctx.temperature is not None:
            through.div_(ctx.temperature)
        if ctx.symmetric:
            through = (through + through.mT) / 2
        target = a.permute(2, 0, 1).contiguous()
        source = b.permute(2, 0, 1).contiguous()
        of_target = torch.empty_like(target)
        of_source = torch.empty_like(source)
        for some in _groups(len(c), through):
            hidden = target[some, :, :, None] + source[some, :, None, :]
            # The gradient where the hidden unit is active, zero elsewhere.
            part = torch.ops.aten.threshold_backward(through.expand_as(hidden), hidden, 0)
            torch.sum(part, 3, out=of_target[some])
            torch.sum(part, 2, out=of_source[some])
        of_c = (of_target * target + of_source * source).sum((1, 2))
        da = (c[:, None, None] * of_target).permute(1, 2, 0)
        db = (c[:, None, None] * of_source).permute(1, 2, 0)
        return da, db, of_c, through.sum(), of_weights, None, None, None


def _groups(n_hidden: int, pairs: Tensor) -> list[slice]:
    """Hidden units to compute at once: one for a large bucket, all for a small one, so that little memory is touched by few calls."""
    work = WORK if pairs.device.type == "cpu" else GPU_WORK
    step = min(n_hidden, max(1, work // max(1, pairs.numel())))
    return [slice(k, k + step) for k in range(0, n_hidden, step)]


def _drawn(score: Tensor, temperature: float | None, symmetric: bool) -> Tensor:
    """Probability of each score, or σ((s + log u - log(1 - u)) / τ) for uniform u; ``score`` is used up.

    The latter is 1 / (1 + (e⁻ˢ (1 / u - 1))^(1/τ)), which takes one exponential and no logarithm.
    """
    if temperature is None:
        return score.sigmoid_()
    uniform = uniform_like(score)
    if symmetric:
        uniform = uniform.triu() + uniform.triu(1).mT
    against = score.neg_().exp_().mul_(uniform.reciprocal_().sub_(1))
    if temperature != 1:
        against.pow_(1 / temperature)
    return against.add_(1).reciprocal_()
