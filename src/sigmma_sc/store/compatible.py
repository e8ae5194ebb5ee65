"""Whether an object fits a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.setup import get_table, objects_of, register, stored_setup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sigmma_sc.tissue.setup import Setup


def adopt(tissue: Any, setup: Setup) -> None:
    """Give a model's setup to those objects that were never set up.

    Raises
    ------
    SetupError
        Such an object holds no table, so that nothing says how large its pixels are.
    """
    for name, one in objects_of(tissue).items():
        if stored_setup(one) is not None:
            continue
        if setup.table_key is not None and not one.tables:
            raise SetupError(
                f"Object {name!r} holds no table and was never set up. Call SIGMMA.setup_spatialdata(sdata, image_key=…, "
                f"table_key=None, microns_per_pixel=…, tile_size={setup.tile_size}, grids={setup.grids}) first."
            )
        register(one, setup)


def require_match(trained: Setup, genes: list[str] | None, n_features: int, tissue: Any, cells: bool = True) -> None:
    """Compare an object's setup, and its genes or cell features where cells are embedded, with the model's.

    Parameters
    ----------
    trained
        Setup of the object that the model was trained on.
    genes
        Genes of its node features; ``None`` where they are an embedding of the user's.
    n_features
        Width of the user's embedding, where it is one.
    tissue
        Object or objects by name, set up.
    cells
        Whether cells are embedded, not images alone.

    Raises
    ------
    SetupError
        Something differs; the message names all that does.
    """
    for name, one in objects_of(tissue).items():
        setup = stored_setup(one) or trained
        wrong = [
            f"{field} is {getattr(setup, field)!r} here and {getattr(trained, field)!r} in the model"
            for field in ("tile_size", "grids")
            if getattr(setup, field) != getattr(trained, field)
        ]
        if cells and setup.table_key is not None:
            wrong += _cell_differences(setup, trained, genes, n_features, get_table(one, setup))
        if wrong:
            raise SetupError(
                f"Object {name!r} does not fit the model: {'; '.join(wrong)}. Call SIGMMA.setup_spatialdata on it with the "
                "model's values, or train a model on it."
            )


def _cell_differences(
    setup: Setup, trained: Setup, genes: list[str] | None, n_features: int, table: Any
) -> Iterator[str]:
    if setup.features_key != trained.features_key:
        yield f"features_key is {setup.features_key!r} here and {trained.features_key!r} in the model"
    elif genes is None:
        width = table.obsm[setup.features_key].shape[1]
        if width != n_features:
            yield f"obsm[{setup.features_key!r}] has {width} columns here and {n_features} in the model"
    else:
        missing = sorted(set(genes) - set(table.var_names))
        if missing:
            yield f"{len(missing)} of {len(genes)} genes are missing, e.g. {', '.join(missing[:5])}"
