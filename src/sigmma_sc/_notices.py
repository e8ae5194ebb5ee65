"""Notices of other packages that tell a user of this one nothing."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from sigmma_sc._settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator


class Notice(NamedTuple):
    """A warning known by its text, or by the module that gives it; both are regular expressions of their beginning.

    A module alone is named only where it calls no code of ours or of the user.
    """

    origin: str  # package and what calls it
    category: type[Warning]
    message: str = ""
    module: str = ""


NOTICES = (
    Notice("anndata, at each write of a table", UserWarning, "zarr v3 autosharding will be the default"),
    Notice("docrep, at the import of squidpy", SyntaxWarning, module=r"docrep\."),
    Notice("torch, at the import of timm", FutureWarning, r"`torch\.jit\.script` is deprecated"),
    Notice("Lightning, with torch 2.9 or newer", Warning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    Notice(
        "Lightning, for few batches", UserWarning, r"The number of training batches \(\d+\) is smaller than the log"
    ),
    Notice("Lightning, for batches made in this process", UserWarning, r"The '\w+' does not have many workers"),
    Notice("Lightning, without validation tiles", UserWarning, r"You defined a `validation_step` but have no"),
    Notice("numba, beside an older TBB", Warning, "The TBB threading layer requires TBB"),
    Notice("zarr, for a store with consolidated metadata", UserWarning, "Consolidated metadata is currently not part"),
    Notice("zarr, for names of fixed length", Warning, "The data type .* does not have a Zarr V3 specification"),
    Notice("dask, at the import of spatialdata", FutureWarning, "The legacy Dask DataFrame implementation"),
)
"""What is not shown. A new notice of a dependency is added here, by its text."""

LOGGERS = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric")
"""Loggers that tell what hardware was not found, and give tips."""


@contextmanager
def silenced() -> Iterator[None]:
    """Show no :data:`NOTICES`, and of :data:`LOGGERS` warnings alone; everything at verbosity ``"debug"``.

    Warnings of this package and of the user's code are as without.
    """
    if settings.shows("debug"):
        yield
        return
    loggers = [logging.getLogger(name) for name in LOGGERS]
    quiet = _Quiet()
    with warnings.catch_warnings():
        for notice in NOTICES:
            warnings.filterwarnings("ignore", notice.message, notice.category, notice.module)
        for logger in loggers:
            logger.addFilter(quiet)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(quiet)


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING
