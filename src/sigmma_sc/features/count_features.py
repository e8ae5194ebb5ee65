"""What node features from counts share: the genes of the training slides, and slides that lack some of them."""

from __future__ import annotations

import logging
import warnings
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sigmma_sc.errors import PanelWarning, SetupError
from sigmma_sc.features.components import GeneComponents, fit_components
from sigmma_sc.features.node_features import NodeFeatures
from sigmma_sc.tissue.counts import counts_of, log_normalise
from sigmma_sc.tissue.panel import find_genes, genes_of, is_control

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from sigmma_sc.features.components import Group
    from sigmma_sc.features.node_features import Training
    from sigmma_sc.tissue.frame import Slide

LEAST_SHARED = 0.25
"""Share of the features' variance that the genes of a slide must explain."""

ENOUGH_SHARED = 0.8
"""Share below which a warning tells that genes are missing."""

ROUNDS = 1000

logger = logging.getLogger("sigmma_sc")


class CountFeatures(NodeFeatures):
    """Features of raw counts, for slides that have the genes trained on, or some of them.

    Attributes
    ----------
    basis
        Components of the log-normalised counts, by which missing genes are expected from those that are there.
    target_sum
        Total counts over all genes to which cells or tiles are scaled: the median of those trained on.
    shares
        Share of each gene in all counts of the training tiles. The total of a slide that lacks genes is divided by the
        share of those it has, so that depths of different panels can be compared.
    """

    most_components: ClassVar[int]  # most components that are fitted
    genes: list[str]
    target_sum: float
    shares: NDArray[np.float64]  # (n_genes,)
    basis: GeneComponents

    def check(self, slide: Slide) -> None:
        """Read all counts."""
        for _ in counts_of(slide.table, slide.rows, slide.setup.layer):
            pass

    def differences(self, slide: Slide) -> Iterator[str]:
        """Too few of the genes."""
        if self.genes is None:
            return
        observed = find_genes(slide.table, self.genes) >= 0
        shared = self.basis.shared_variance(observed)
        if shared < LEAST_SHARED:
            yield f"{self._lack(observed, shared)}, at least {100 * LEAST_SHARED:.0f} % is needed"

    def described(self, slide: Slide) -> dict[str, Any]:
        """Numbers of genes used and of control probes left out, and the share of variance that the genes explain."""
        observed = find_genes(slide.table, self.genes) >= 0
        return {
            "n_genes": int(observed.sum()),
            "n_control_probes": int(is_control(slide.table).sum()),
            "shared_variance": self.basis.shared_variance(observed),
        }

    def _lack(self, observed: NDArray[np.bool_], shared: float) -> str:
        absent = [gene for gene, here in zip(self.genes, observed, strict=True) if not here]
        return (
            f"{len(absent)} of {len(self.genes)} genes are missing, e.g. {', '.join(absent[:5])}; the others explain "
            f"{100 * shared:.0f} % of the variance of the node features"
        )

    def _columns(self, slide: Slide) -> NDArray[np.int64]:
        """Column of each gene in the table of a slide, -1 where it is missing, with a warning if many are."""
        where = find_genes(slide.table, self.genes)
        observed = where >= 0
        shared = self.basis.shared_variance(observed)
        if shared < LEAST_SHARED:
            raise SetupError(f"Slide {slide.name!r} does not fit the model: {next(self.differences(slide))}.")
        if shared < ENOUGH_SHARED:
            warnings.warn(f"Slide {slide.name!r}: {self._lack(observed, shared)}.", PanelWarning, stacklevel=2)
        return where

    def _share(self, observed: NDArray[np.bool_]) -> float:
        """Share of the observed genes in the counts; exactly 1 if no gene is missing."""
        return 1.0 if observed.all() else float(self.shares[observed].sum())

    def _choose_genes(self, training: Training) -> None:
        """Set the genes, without control probes; these are counted in the log."""
        tables = [slide.table for slide, _ in training]
        self.genes = genes_of(tables, self.panel)
        for slide, _ in training:
            controls = int(is_control(slide.table).sum())
            missing = int((find_genes(slide.table, self.genes) < 0).sum())
            logger.info(
                "Slide %r: %d of %d genes, %d control probes left out.",
                slide.name, len(self.genes) - missing, len(self.genes), controls,
            )  # fmt: skip

    def _fit_groups(self, groups: Sequence[Group], what: str) -> None:
        """Set depth and components from the genes of each group ``(n_genes,)``, and its counts ``(n, n_observed)``."""
        self._fit_depth(groups, what)
        logs = []
        for observed, counts in groups:
            logs.append((observed, log_normalise(counts, self.target_sum * self._share(observed))))
        self.basis = fit_components(logs, self.most_components, self.seed)

    def _fit_depth(self, groups: Sequence[Group], what: str) -> None:
        sums = []
        totals = []
        for _, counts in groups:
            sums.append(np.asarray(counts.sum(axis=0), dtype=np.float64).ravel())
            totals.append(np.asarray(counts.sum(axis=1)).ravel())
        if not any((total > 0).any() for total in totals):
            raise SetupError(f"No training {what} has any count. Check the layer of raw counts.")
        self.shares = gene_shares([observed for observed, _ in groups], sums)
        scaled = []
        for (observed, _), total in zip(groups, totals, strict=True):
            scaled.append(total / self._share(observed))
        depth = np.concatenate(scaled)
        self.target_sum = float(np.median(depth[depth > 0]))

    def state(self) -> dict[str, Any]:
        """Genes, their shares, target sum and components."""
        return {"genes": self.genes, "target_sum": self.target_sum, "shares": self.shares, **asdict(self.basis)}

    def restore(self, state: dict[str, Any]) -> None:
        """Set what :meth:`state` gave."""
        self.genes = state["genes"]
        self.target_sum = state["target_sum"]
        self.shares = np.asarray(state["shares"])
        arrays = {field.name: np.ascontiguousarray(state[field.name]) for field in fields(GeneComponents)}
        self.basis = GeneComponents(**arrays)


def gene_shares(panels: Sequence[NDArray[np.bool_]], sums: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Share of each gene in the counts of all, ``(n_genes,)``, from the sums of the genes that each panel has.

    The maximum-likelihood shares of a multinomial of which each panel shows some categories, by fixed-point iteration.
    """
    counts = np.zeros((len(panels), len(panels[0])))
    for row, panel, values in zip(counts, panels, sums, strict=True):
        row[panel] = values
    shown = np.array(panels, dtype=float)
    shares = np.full(shown.shape[1], 1 / shown.shape[1])
    for _ in range(ROUNDS):
        depth = counts.sum(axis=1) / np.maximum(shown @ shares, 1e-300)
        new = counts.sum(axis=0) / np.maximum(depth @ shown, 1e-300)
        new /= new.sum()
        if np.abs(new - shares).max() < 1e-12:
            return new
        shares = new
    return shares
