"""Cell-graph tower: weighted SAGE, stochastic edge addition, attention pooling (paper, sections 4 and 5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch_geometric.utils import softmax

from sigmma_sc.nn.pairs import CellLayout, EdgeWeights, at_least_single

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sigmma_sc.nn.pairs import Bucket


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
    symmetric
        One score, the mean of both directions', and one draw for both directions of a pair.
    """

    def __init__(self, n_input: int, n_hidden: int = 8, symmetric: bool = False):
        super().__init__()
        self.target = nn.Linear(n_input, n_hidden)
        self.source = nn.Linear(n_input, n_hidden, bias=False)
        self.weight = nn.Parameter(torch.empty(n_hidden).uniform_(-1, 1) / n_hidden**0.5)
        self.bias = nn.Parameter(torch.zeros(()))
        self.symmetric = symmetric

    def parts(self, h: Tensor) -> Tensor:
        """Hidden layer's parts of each cell, as listener and as speaker, ``(n_cells, 2 n_hidden)``."""
        return torch.cat([self.target(h), self.source(h)], 1)

    def forward(self, parts: Tensor, weights: Tensor | None, candidates: Tensor, temperature: float | None) -> Tensor:
        """Edge weights ``(n, p, p)`` of blocks after the addition; see :class:`~sigmma_sc.nn.pairs.EdgeWeights`."""
        a, b = parts.to(candidates.dtype).chunk(2, -1)
        return EdgeWeights.apply(a, b, self.weight, self.bias, weights, candidates, temperature, self.symmetric)


class WeightedSAGE(nn.Module):
    """GraphSAGE with edge weights: act(W_self h_v + W_nbr · Σ w_uv h_u / max(Σ w_uv, 1)) (paper, section 4).

    The paper has a mean, which leaves open what a cell with no neighbour hears. A cell that hears half an edge hears half of what
    it says, which is the mean over draws of that edge. A small number beside the sum would make it all of it, and the gradient of
    an edge to a cell without any as large as that number is small.
    """

    def __init__(self, n_input: int, n_output: int):
        super().__init__()
        self.own = nn.Linear(n_input, n_output)
        self.neighbours = nn.Linear(n_input, n_output, bias=False)

    def forward(self, h: Tensor, heard: Tensor) -> Tensor:
        """Update ``h`` ``(n_cells, d)`` by Σ w_uv [h_u, 1], ``(n_cells, d + 1)``."""
        mean = heard[:, :-1] / heard[:, -1:].clamp_min(1)
        return nn.functional.gelu(self.own(h) + self.neighbours(mean))


class AttentionPool(nn.Module):
    """Global attention pooling: a softmax gate over the cells of a tile (paper, section 5.2; Li et al. 2015)."""

    def __init__(self, n_input: int):
        super().__init__()
        self.gate = nn.Linear(n_input, 1)

    def forward(self, h: Tensor, tile: Tensor, n_tiles: int) -> Tensor:
        """Pool ``(n_cells, d)`` to ``(n_tiles, d)``; a tile without cells pools to zero."""
        gate = self.gate(h)
        share = softmax(gate.to(at_least_single(gate.dtype)), tile, num_nodes=n_tiles)
        return h.new_zeros(n_tiles, h.shape[1]).index_add(0, tile, (share * h).to(h.dtype))


class CellGraphTower(nn.Module):
    """The hierarchical cell-graph encoder g (paper, section 5.2).

    Cells are rows of flat matrices; only pairs are dense, block by block (see :mod:`sigmma_sc.nn.pairs`).

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
    edge_temperature
        τ of the edge sampler; may be set between steps.
    dropout
        Dropout of node features in training.
    symmetric
        Draw both directions of a pair at once.
    """

    def __init__(
        self,
        n_input: int,
        n_hidden: int = 128,
        n_scales: int = 3,
        edges: str = "sampled",
        edge_temperature: float = 1.0,
        dropout: float = 0.1,
        symmetric: bool = False,
    ):
        super().__init__()
        self.edges, self.edge_temperature = edges, edge_temperature
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList([WeightedSAGE(n_input if k == 0 else n_hidden, n_hidden) for k in range(n_scales)])
        n_samplers = n_scales - 1 if edges == "sampled" else 0
        self.samplers = nn.ModuleList([EdgeSampler(n_hidden, symmetric=symmetric) for _ in range(n_samplers)])
        self.pools = nn.ModuleList([AttentionPool(n_hidden) for _ in range(n_scales)])

    def forward(self, x: Tensor, layout: CellLayout, sample: bool | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Embed the cells and tiles of a batch.

        Parameters
        ----------
        x
            Node features, ``(n_cells, n_input)``.
        layout
            The batch's tiles.
        sample
            Draw edges, or weigh pairs by their probability; ``None`` draws in training only.

        Returns
        -------
        cells
            h of each scale, ``(n_cells, n_hidden)``.
        tiles
            Pooled h of each scale, ``(n_tiles, n_hidden)``.
        """
        cells = [h for h, _ in self._scales(x, layout, sample)]
        return cells, [pool(h, layout.tile, layout.n_tiles) for pool, h in zip(self.pools, cells, strict=True)]

    def weights(self, x: Tensor, layout: CellLayout, sample: bool | None = None) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Edges of each scale: speaking cell, listening cell and weight, ``(n_edges,)`` each, those of weight 0 left out."""
        out = []
        for _, graph in self._scales(x, layout, sample):
            parts = []
            for bucket, w in graph.items():
                cell = layout.blocks(layout.cell, bucket)
                block, target, source = w.nonzero(as_tuple=True)
                parts.append((cell[block, source], cell[block, target], w[block, target, source]))
            # What a padded slot says or hears is no edge.
            parts = [torch.cat(part) for part in zip(*parts, strict=True)] or [
                layout.cell[:0],
                layout.cell[:0],
                x[:0, 0],
            ]
            real = torch.maximum(parts[0], parts[1]) < len(x)
            out.append(tuple(part[real] for part in parts))
        return out

    def _scales(
        self, x: Tensor, layout: CellLayout, sample: bool | None
    ) -> Iterator[tuple[Tensor, dict[Bucket, Tensor]]]:
        """Cell embeddings of each scale, and the edge weights of each bucket of blocks."""
        h = self.dropout(x)
        kind = at_least_single(x.dtype)
        graph: dict[Bucket, Tensor] = {b: layout.spatial(b, kind) for b in layout.buckets if b.shell == 0}
        adds = self.edges != "none"
        candidates = {b: layout.candidates(b).to(kind) for b in layout.buckets} if adds else {}
        for k, layer in enumerate(self.layers):
            reached = layout.reached(k if adds else 0)
            said = layout.spread(torch.cat([h, h.new_ones(len(h), 1)], 1), reached)
            if k > 0 and self.samplers:
                sampler = self.samplers[k - 1]
                draws = self.training if sample is None else sample
                temperature = self.edge_temperature if draws else None
                for bucket, parts in layout.spread(sampler.parts(h), reached).items():
                    graph[bucket] = sampler(parts, graph.get(bucket), candidates[bucket], temperature)
            elif k > 0 and adds:
                graph |= {bucket: candidates[bucket] for bucket in said}
            heard = {bucket: w.to(said[bucket].dtype) @ said[bucket] for bucket, w in graph.items()}
            h = layer(h, layout.gathered(heard, h.new_zeros(1, h.shape[1] + 1)))
            yield h, graph
