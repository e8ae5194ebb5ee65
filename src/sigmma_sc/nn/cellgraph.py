"""Cell-graph tower: weighted SAGE, stochastic edge addition, attention pooling (paper, sections 4 and 5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch_geometric.utils import softmax

from sigmma_sc.nn.dropout import Dropout
from sigmma_sc.nn.image import Standardise
from sigmma_sc.nn.pairs import Bucket, CellLayout, EdgeWeights, at_least_single

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sigmma_sc.config import Config
    from sigmma_sc.nn.part import Part

    Edges = tuple[Tensor, Tensor, Tensor]


class EdgeSampler(nn.Module):
    """Stochastic edge addition ψ: which candidate pairs become edges (paper, section 4).

    The MLP of ``[h_u ‖ h_v]`` has one hidden layer; its first linear map is A h_v + B h_u, computed per cell. Sampling
    is a binary Gumbel softmax in logits (logistic noise) with a straight-through hard sample (Jang et al. 2016). In
    evaluation a pair weighs its probability, the mean of the draws (our choice: the sign of a logit near zero is a
    matter of the seed). ``symmetric``: one score, the mean of both directions', and one draw for both directions of a
    pair.
    """

    def __init__(self, n_input: int, n_hidden: int = 8, symmetric: bool = False):
        super().__init__()
        self.target = nn.Linear(n_input, n_hidden)
        self.source = nn.Linear(n_input, n_hidden, bias=False)
        self.weight = nn.Parameter(torch.empty(n_hidden).uniform_(-1, 1) / n_hidden**0.5)
        self.bias = nn.Parameter(torch.zeros(()))
        self.symmetric = symmetric

    def hidden(self, h: Tensor) -> Tensor:
        """Contributions of each cell to the hidden layer, as target and as source, ``(n_cells, 2 n_hidden)``."""
        return torch.cat([self.target(h), self.source(h)], 1)

    def forward(self, hidden: Tensor, weights: Tensor | None, candidates: Tensor, temperature: float | None) -> Tensor:
        """Edge weights ``(n, p, p)`` of blocks after the addition; see :class:`~sigmma_sc.nn.pairs.EdgeWeights`."""
        target, source = hidden.to(candidates.dtype).chunk(2, -1)
        return EdgeWeights.apply(
            target, source, self.weight, self.bias, weights, candidates, temperature, self.symmetric
        )


class WeightedSAGE(nn.Module):
    """GraphSAGE with edge weights: act(W_self h_v + W_nbr · Σ w_uv h_u / max(Σ w_uv, 1)) (paper, section 4).

    The paper has a mean, which leaves cells without neighbours open. An edge of weight one half passes half of its message, which
    is the mean over draws of that edge. A small number beside the sum would pass all of it. The gradient of an edge to a cell
    without neighbours would then be the inverse of that number.

    ``relational``: added edges have a mean and a W_nbr of their own, as each relation has in R-GCN (Schlichtkrull et al. 2018).
    """

    def __init__(self, n_input: int, n_output: int, relational: bool = False):
        super().__init__()
        self.root = nn.Linear(n_input, n_output)
        self.neighbours = nn.Linear(n_input, n_output, bias=False)
        self.added = nn.Linear(n_input, n_output, bias=False) if relational else None

    def forward(self, h: Tensor, messages: Tensor, added: Tensor | None = None) -> Tensor:
        """Update ``h`` ``(n_cells, d)`` by Σ w_uv [h_u, 1], ``(n_cells, d + 1)``, of edges and of added ones apart."""
        update = self.root(h) + self.neighbours(_mean(messages))
        if self.added is not None and added is not None:
            update = update + self.added(_mean(added))
        return nn.functional.gelu(update)


def _mean(messages: Tensor) -> Tensor:
    """Mean ``(n_cells, d)`` of messages from their sum and the sum of their weights ``(n_cells, d + 1)``."""
    return messages[:, :-1] / messages[:, -1:].clamp_min(1)


class AttentionPool(nn.Module):
    """Global attention pooling: a softmax gate over the cells of a tile (paper, section 5.2; Li et al. 2015)."""

    def __init__(self, n_input: int):
        super().__init__()
        self.gate = nn.Linear(n_input, 1)

    def forward(self, h: Tensor, tile: Tensor, n_tiles: int) -> Tensor:
        """Pool ``(n_cells, d)`` to ``(n_tiles, d)``; a tile without cells pools to zero.

        Sums are in single precision at least: rounded cell by cell, in bfloat16 a tile of 1,600 cells would lose a quarter.
        """
        gate = self.gate(h)
        share = softmax(gate.to(at_least_single(gate.dtype)), tile, num_nodes=n_tiles)
        parts = share * h
        return parts.new_zeros(n_tiles, h.shape[1]).index_add(0, tile, parts)


class CellGraphTower(nn.Module):
    """The hierarchical cell-graph encoder g (paper, section 5.2).

    Cells are rows of flat matrices; only pairs are dense, block by block (see :mod:`sigmma_sc.nn.pairs`). ``"sampled"``
    edges are added stochastically, ``"full"`` links every pair of a block (Table 4's fully connected local graph),
    ``"none"`` adds nothing to the micro graph. ``edge_temperature``, τ of the edge sampler, may be set between steps.
    ``relational``: added edges have weights of their own, see :class:`WeightedSAGE`.
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
        relational: bool = False,
    ):
        super().__init__()
        self.edges, self.edge_temperature = edges, edge_temperature
        self.relational = relational and edges != "none"
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList()
        for k in range(n_scales):
            # The first layer has spatial edges alone.
            self.layers.append(WeightedSAGE(n_hidden if k else n_input, n_hidden, self.relational and k > 0))
        n_samplers = n_scales - 1 if edges == "sampled" else 0
        self.samplers = nn.ModuleList([EdgeSampler(n_hidden, symmetric=symmetric) for _ in range(n_samplers)])
        self.pools = nn.ModuleList([AttentionPool(n_hidden) for _ in range(n_scales)])

    def forward(self, x: Tensor, layout: CellLayout, sample: bool | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Cells ``(n_cells, n_input)`` to h of each scale ``(n_cells, n_hidden)`` and pooled ``(n_tiles, n_hidden)``.

        ``sample`` draws edges, or weighs pairs by their probability; ``None`` draws in training only.
        """
        cells = self.cells(x, layout, sample)
        return cells, [pool(h, layout.tile, layout.n_tiles) for pool, h in zip(self.pools, cells, strict=True)]

    def cells(self, x: Tensor, layout: CellLayout, sample: bool | None = None) -> list[Tensor]:
        """Embed the cells alone; see :meth:`forward`."""
        return [h for h, _ in self._scales(x, layout, sample)]

    def weights(self, x: Tensor, layout: CellLayout, sample: bool | None = None) -> list[Edges]:
        """Edges of each scale: source cell, target cell and weight, ``(n_edges,)`` each, those of weight 0 left out."""
        edges = []
        for _, graph in self._scales(x, layout, sample):
            sources = [layout.cell[:0]]
            targets = [layout.cell[:0]]
            weights = [x[:0, 0]]
            for bucket, w in graph.items():
                cell = layout.blocks(layout.cell, bucket)
                block, target, source = w.nonzero(as_tuple=True)
                sources.append(cell[block, source])
                targets.append(cell[block, target])
                weights.append(w[block, target, source])
            source = torch.cat(sources)
            target = torch.cat(targets)
            real = torch.maximum(source, target) < len(x)  # padded slots have no edges
            edges.append((source[real], target[real], torch.cat(weights)[real]))
        return edges

    def _scales(
        self, x: Tensor, layout: CellLayout, sample: bool | None
    ) -> Iterator[tuple[Tensor, dict[Bucket, Tensor]]]:
        """Cell embeddings of each scale, and the edge weights of each bucket of blocks."""
        h = self.dropout(x)
        kind = at_least_single(x.dtype)
        graph: dict[Bucket, Tensor] = {b: layout.spatial(b, kind) for b in layout.buckets if b.shell == 0}
        spatial = graph.copy()
        adds = self.edges != "none"
        candidates = {b: layout.candidates(b).to(kind) for b in layout.buckets} if adds else {}
        samplers = [sampler for sampler in self.samplers if isinstance(sampler, EdgeSampler)]
        for k, layer in enumerate(self.layers):
            active = layout.active_buckets(k if adds else 0)
            # The ones beside the embeddings sum up to the weight of a cell's edges.
            source = layout.to_slots(torch.cat([h, h.new_ones(len(h), 1)], 1), active)
            nothing = h.new_zeros(1, h.shape[1] + 1)
            if k > 0 and samplers:
                sampler = samplers[k - 1]
                draws = self.training if sample is None else sample
                temperature = self.edge_temperature if draws else None
                for bucket, hidden in layout.to_slots(sampler.hidden(h), active).items():
                    graph[bucket] = sampler(hidden, graph.get(bucket), candidates[bucket], temperature)
            elif k > 0 and adds:
                graph |= {bucket: candidates[bucket] for bucket in source}
            if self.relational and k > 0:
                added = {bucket: w - spatial[bucket] if bucket in spatial else w for bucket, w in graph.items()}
                sums = [layout.from_slots(_messages(edges, source), nothing) for edges in (spatial, added)]
            else:
                sums = [layout.from_slots(_messages(graph, source), nothing)]
            h = layer(h, *sums)
            yield h, graph


def _messages(graph: dict[Bucket, Tensor], source: dict[Bucket, Tensor]) -> dict[Bucket, Tensor]:
    """Sum over the edges of each slot of what their sources send, ``(n, size, d)`` of each bucket."""
    return {bucket: w.to(source[bucket].dtype) @ source[bucket] for bucket, w in graph.items()}


class GraphTower(nn.Module):
    """The cell-graph encoder on standardised node features."""

    embeds_cells = True

    def __init__(self, n_features: int, n_scales: int, config: Config):
        super().__init__()
        self.n_output = config.n_latent
        self.fits = config.standardise == "training"  # otherwise features come standardised, slide by slide
        self.standardise = Standardise(n_features)
        self.graph = CellGraphTower(
            n_features,
            config.n_latent,
            n_scales,
            config.edges,
            config.edge_temperatures[0],
            config.dropout,
            config.symmetric_edges,
            config.relational_edges,
        )

    def fit(self, features: Tensor, n_components: int = 0) -> None:
        """Standardise by node features of training cells ``(n, d)``, if slides are not standardised one by one."""
        if self.fits:
            self.standardise.fit(features, n_components)

    def forward(self, part: Part, sample: bool | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Embeddings of cells ``(n_cells, n_output)`` and tiles ``(n_tiles, n_output)`` of each scale."""
        return self.graph(self.standardise(part["x"]), part["layout"], sample)

    def cells(self, part: Part, sample: bool | None = None) -> list[Tensor]:
        """Embeddings of cells alone, ``(n_cells, n_output)`` of each scale."""
        return self.graph.cells(self.standardise(part["x"]), part["layout"], sample)

    def weights(self, part: Part) -> list[Edges]:
        """Edges of each scale; see :meth:`CellGraphTower.weights`."""
        return self.graph.weights(self.standardise(part["x"]), part["layout"])
