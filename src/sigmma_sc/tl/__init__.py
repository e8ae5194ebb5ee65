"""After training: niches, their genes, comparisons of donors, and labels for other slides and for images."""

from sigmma_sc.tl.assign_niches import assign_niches
from sigmma_sc.tl.compare_niches import compare_niches
from sigmma_sc.tl.map_to_image import map_to_image
from sigmma_sc.tl.name_niches import name_niches
from sigmma_sc.tl.niches import niches
from sigmma_sc.tl.rank_niche_genes import rank_niche_genes
from sigmma_sc.tl.search import search
from sigmma_sc.tl.transfer_labels import transfer_labels

__all__ = [
    "assign_niches",
    "compare_niches",
    "map_to_image",
    "name_niches",
    "niches",
    "rank_niche_genes",
    "search",
    "transfer_labels",
]
