"""Cell-graph tower: weighted SAGE, stochastic edge addition, attention pooling (paper, sections 4 and 5.2).

Tiles hold from none to hundreds of cells. A batch is cut into *buckets* of tiles of nearly equal size, each a small dense
problem, so that neither a dense tile sets the cost of the batch nor candidate pairs are ever listed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Bucket:
    """Tiles of nearly equal size, padded to the largest of them.

    Attributes
    ----------
    tiles
        Tiles of the batch, ``(t,)``.
    index
        Cell of each slot, ``(t, p)``; padding is -1.
    mask
        Which slots hold a cell, ``(t, p)``.
    blocks
        Block of each slot at every grid, ``(n_scales, t, p)``.
    micro
        Spatial edges inside micro blocks as a 0/1 adjacency, ``(t, p, p)``; row v holds what v listens to.
    """

    tiles: Tensor
    index: Tensor
    mask: Tensor
    blocks: Tensor
    micro: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Bucket:
        """Move to a device; Lightning's batch transfer calls this."""
        return Bucket(
            *(getattr(self, name).to(device, non_blocking=non_blocking) for name in self.__dataclass_fields__)
        )


class PairScore(torch.autograd.Function):
    """Scores of all ordered pairs: ``out[t, v, u] = Σ_k w_k relu(a[t, v, k] + b[t, u, k])``.

    The hidden layer of the edge MLP is recomputed one unit at a time, forwards and backwards, so that memory is one
    matrix of pairs whatever the width.
    """

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, w: Tensor) -> Tensor:
        """Compute scores ``(t, p, p)`` from ``a``, ``b`` of ``(t, p, k)`` and ``w`` of ``(k,)``."""
        ctx.save_for_backward(a, b, w)
        out = a.new_zeros(a.shape[0], a.shape[1], b.shape[1])
        for k in range(a.shape[2]):
            out.addcmul_((a[:, :, None, k] + b[:, None, :, k]).relu_(), w[k])
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of ``a``, ``b`` and ``w``."""
        a, b, w = ctx.saved_tensors
        da, db, dw = torch.empty_like(a), torch.empty_like(b), torch.empty_like(w)
        for k in range(a.shape[2]):
            active = (a[:, :, None, k] + b[:, None, :, k]).relu_()
            dw[k] = (grad * active).sum()
            through = grad * (active > 0)
            da[:, :, k] = w[k] * through.sum(2)
            db[:, :, k] = w[k] * through.sum(1)
        return da, db, dw


class EdgeSampler(nn.Module):
    """Stochastic edge addition ψ: which candidate pairs become edges (paper, section 4).

    The MLP of ``[h_u ‖ h_v]`` has one hidden layer; its first linear map is A h_v + B h_u, computed per cell. Sampling is
    a binary Gumbel softmax in logits (logistic noise) with a straight-through hard sample (Jang et al. 2016). In
    evaluation a pair weighs its probability, the mean of the draws (our choice: the sign of a logit near zero is a matter
    of the seed).

    Parameters
    ----------
    n_input
        Width of the cell embeddings.
    n_hidden
        Hidden units of the MLP (our choice; the paper is silent).
    temperature
        τ of the relaxed Bernoulli (our choice).
    """

    def __init__(self, n_input: int, n_hidden: int = 8, temperature: float = 1.0):
        super().__init__()
        self.target = nn.Linear(n_input, n_hidden)
        self.source = nn.Linear(n_input, n_hidden, bias=False)
        self.weight = nn.Parameter(torch.empty(n_hidden).uniform_(-1, 1) / n_hidden**0.5)
        self.bias = nn.Parameter(torch.zeros(()))
        self.temperature = temperature

    def forward(self, h: Tensor, candidates: Tensor, sample: bool) -> Tensor:
        """Edge weights ``(t, p, p)``, zero outside the candidates.

        Parameters
        ----------
        h
            Cell embeddings in their slots, ``(t, p, d)``.
        candidates
            Pairs that may be linked, ``(t, p, p)`` bool.
        sample
            Draw 0 or 1 with straight-through gradient, or return the probability.
        """
        logits = PairScore.apply(self.target(h), self.source(h), self.weight) + self.bias
        if not sample:
            return torch.where(candidates, torch.sigmoid(logits), 0.0)
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        noisy = logits + uniform.log() - (-uniform).log1p()
        soft = torch.sigmoid(noisy / self.temperature)
        hard = (noisy > 0).to(soft.dtype)
        return torch.where(candidates, hard + soft - soft.detach(), 0.0)


class WeightedSAGE(nn.Module):
    """GraphSAGE with edge weights: act(W_self h_v + W_nbr · Σ w_uv h_u / (Σ w_uv + ε)) (paper, section 4)."""

    def __init__(self, n_input: int, n_output: int):
        super().__init__()
        self.own = nn.Linear(n_input, n_output)
        self.neighbours = nn.Linear(n_input, n_output, bias=False)

    def forward(self, h: Tensor, weights: Tensor) -> Tensor:
        """Update ``h`` ``(t, p, d)`` by dense edge weights ``(t, p, p)``; row v weighs what v listens to."""
        mean = (weights @ h) / (weights.sum(-1, keepdim=True) + 1e-8)
        return torch.nn.functional.gelu(self.own(h) + self.neighbours(mean))


class AttentionPool(nn.Module):
    """Global attention pooling: a softmax gate over the cells of a tile (paper, section 5.2; Li et al. 2015)."""

    def __init__(self, n_input: int):
        super().__init__()
        self.gate = nn.Linear(n_input, 1)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """Pool ``(t, p, d)`` to ``(t, d)``; a tile without cells pools to zero."""
        gate = self.gate(h).squeeze(-1).masked_fill(~mask, -torch.inf)
        gate = gate - gate.amax(-1, keepdim=True).clamp_min(torch.finfo(gate.dtype).min)
        weight = gate.exp()
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(torch.finfo(gate.dtype).tiny)
        return torch.einsum("tp,tpd->td", weight, h)


class CellGraphTower(nn.Module):
    """The hierarchical cell-graph encoder g (paper, section 5.2).

    Parameters
    ----------
    n_input
        Width of the node features.
    n_hidden
        Width of the cell embeddings at every scale.
    n_scales
        Number of grids, fine to coarse.
    edges
        ``"sampled"`` adds edges stochastically, ``"full"`` links every pair of a block (Table 4's fully connected local
        graph), ``"none"`` adds nothing to the micro graph.
    temperature
        τ of the edge sampler.
    dropout
        Dropout of node features in training.
    """

    def __init__(
        self,
        n_input: int,
        n_hidden: int = 128,
        n_scales: int = 3,
        edges: str = "sampled",
        temperature: float = 1.0,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.edges = edges
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList([WeightedSAGE(n_input if k == 0 else n_hidden, n_hidden) for k in range(n_scales)])
        n_samplers = n_scales - 1 if edges == "sampled" else 0
        self.samplers = nn.ModuleList([EdgeSampler(n_hidden, temperature=temperature) for _ in range(n_samplers)])
        self.pools = nn.ModuleList([AttentionPool(n_hidden) for _ in range(n_scales)])

    def forward(
        self, x: Tensor, buckets: list[Bucket], n_tiles: int, sample: bool | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Embed the cells and tiles of a batch.

        Parameters
        ----------
        x
            Node features, ``(n_cells, n_input)``.
        buckets
            The batch's tiles; each cell and each tile stands in exactly one.
        n_tiles
            Number of tiles.

        Returns
        -------
        cells
            h of each scale, ``(n_cells, n_hidden)``.
        tiles
            Pooled h of each scale, ``(n_tiles, n_hidden)``.
        """
        x = self.dropout(x)
        n_hidden = self.layers[0].own.out_features
        cells = [x.new_zeros(len(x), n_hidden) for _ in self.layers]
        tiles = [x.new_zeros(n_tiles, n_hidden) for _ in self.layers]
        for bucket in buckets:
            hs, _ = self.embed(x, bucket)
            for k, h in enumerate(hs):
                cells[k] = cells[k].index_put((bucket.index[bucket.mask],), h[bucket.mask].to(x.dtype))
                tiles[k] = tiles[k].index_put((bucket.tiles,), self.pools[k](h, bucket.mask).to(x.dtype))
        return cells, tiles

    def embed(self, x: Tensor, bucket: Bucket) -> tuple[list[Tensor], list[Tensor]]:
        """Cell embeddings ``(t, p, d)`` and edge weights ``(t, p, p)`` of each scale for one bucket."""
        # Padding, -1, finds the row of zeros: a batch of tiles that are all empty has no other.
        h = torch.cat([x, x.new_zeros(1, x.shape[1])])[bucket.index]
        weights = bucket.micro.to(h.dtype)
        pairs = bucket.mask[:, :, None] & bucket.mask[:, None, :]
        pairs = pairs & ~torch.eye(bucket.mask.shape[1], dtype=torch.bool, device=x.device)
        hs, graphs = [], []
        for k, layer in enumerate(self.layers):
            if k > 0 and self.edges != "none":
                block = bucket.blocks[k]
                candidates = pairs & (block[:, :, None] == block[:, None, :])
                added = self.samplers[k - 1](h, candidates, self.training) if self.samplers else candidates.to(h.dtype)
                # The union of what was linked and what is added, also in probability: edge sets are nested.
                weights = weights + (1 - weights) * added
            h = layer(h, weights)
            hs.append(h)
            graphs.append(weights)
        return hs, graphs
