"""What the transcriptome tower reads of a slide."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sigmma_sc.errors import SetupError
from sigmma_sc.features.covariates import log_distance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles

    Training = Sequence[tuple[Slide, NDArray[np.int64]]]


class NodeFeatures(ABC):
    """Features of the cells of a slide, or of its tiles.

    Subclass it, override :meth:`transform`, and :func:`sigmma_sc.register_node_features` with a name. What is learned on
    the training tiles needs :meth:`fit`, :meth:`state` and :meth:`restore`.

    Parameters
    ----------
    covariates
        Whether the distance of each cell to the nearest ones is added.
    seed
        Seed of what is drawn to fit the features.

    Attributes
    ----------
    per_tile
        Whether there is a row for each tile, for models with ``cells="genes"``, rather than for each cell.
    genes
        Genes that every slide must have; ``None`` for no such genes.
    panel
        Genes that the configuration asks for: ``"union"``, ``"shared"`` or a tuple of names.
    even_lattices
        Whether bins and spots on a lattice all have one distance to the nearest. Only a model that an earlier version saved
        has a larger one at edges and holes.
    n_components
        Number of leading features that are components of one PCA. They are scaled together.

    Examples
    --------
    >>> class Area(sg.NodeFeatures):
    ...     def transform(self, slide, tiles):
    ...         return np.log(slide.table.obs["cell_area"].to_numpy()[slide.rows, None])
    >>> (slide,) = model.resolve()
    >>> Area(covariates=False)(slide, slide.tiles).shape
    (5000, 1)
    """

    per_tile: ClassVar[bool] = False
    even_lattices: bool = True
    genes: Sequence[str] | None = None
    panel: str | tuple[str, ...] = "union"
    n_components: int = 0

    def __init__(self, covariates: bool = True, seed: int = 0):
        self.covariates = covariates
        self.seed = seed

    def fit(self, training: Training) -> None:
        """Learn from training tiles alone.

        Parameters
        ----------
        training
            Pairs of a slide and the positions of its training tiles, for ``slide.tiles.take(positions)``.
        """
        return

    @abstractmethod
    def transform(self, slide: Slide, tiles: Tiles) -> NDArray[np.float32] | csr_matrix:
        """Features of the slide's cells ``(n_cells, d)``, or of the tiles ``(n_tiles, d)`` if :attr:`per_tile`; float32."""

    def __call__(self, slide: Slide, tiles: Tiles) -> NDArray[np.float32] | csr_matrix:
        """Features with their covariates; those of cells end with the logarithm of the distance to the nearest cells."""
        values = self._checked(self.transform(slide, tiles), len(tiles) if self.per_tile else len(slide.rows))
        if self.per_tile or not self.covariates:
            return values
        return np.column_stack([values, log_distance(slide.xy * slide.microns_per_pixel, self.even_lattices)])

    def _checked(self, values: NDArray | csr_matrix, n_rows: int) -> NDArray[np.float32] | csr_matrix:
        from scipy.sparse import csr_matrix, issparse

        name = type(self).__name__
        if not isinstance(values, np.ndarray) and not issparse(values):
            raise SetupError(f"{name}.transform gives {type(values).__name__}. Return a NumPy array or a SciPy matrix.")
        if values.ndim != 2 or values.shape[0] != n_rows:
            kind = "tile" if self.per_tile else "cell"
            raise SetupError(
                f"{name}.transform gives features of shape {values.shape} for {n_rows} {kind}s. Return one row for each {kind}."
            )
        if not np.isfinite(values.data if issparse(values) else values).all():
            raise SetupError(f"{name}.transform gives NaN or infinite features. Fill these values.")
        # Profiles of tiles are kept sparse, features of cells dense, whatever a subclass returns.
        if self.per_tile:
            return csr_matrix(values).astype(np.float32, copy=False)
        return (values if isinstance(values, np.ndarray) else values.toarray()).astype(np.float32, copy=False)

    def check(self, slide: Slide) -> None:
        """Raise :class:`SetupError` for values of a slide that cannot be used; nothing is kept of them."""
        return

    def differences(self, slide: Slide) -> Iterator[str]:
        """In what a slide does not fit these features, in words."""
        genes = self.genes or []
        missing = sorted(set(genes) - set(slide.table.var_names))
        if missing:
            yield f"{len(missing)} of {len(genes)} genes are missing, e.g. {', '.join(missing[:5])}"

    def described(self, slide: Slide) -> dict[str, Any]:
        """What ``uns["sigmma"]`` tells of these features of a slide."""
        return {}

    def fit_checked(self, training: Training) -> None:
        """Fit, and raise :class:`SetupError` unless slides have what is needed and the state can be saved."""
        self._require_fitting(training)
        self.fit(training)
        self._require_fitting(training)
        for name, value in self.state().items():
            if not _is_storable(value):
                raise SetupError(
                    f"{type(self).__name__}.state()[{name!r}] is {type(value).__name__}, which cannot be saved. Give JSON values "
                    "or NumPy arrays of numbers."
                )

    def _require_fitting(self, training: Training) -> None:
        for slide, _ in training:
            for difference in self.differences(slide):
                raise SetupError(f"Slide {slide.name!r} does not fit {type(self).__name__}: {difference}.")

    def state(self) -> dict[str, Any]:
        """What :meth:`fit` found: JSON values and NumPy arrays by name."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Set what :meth:`state` gave."""
        return


def _is_storable(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
