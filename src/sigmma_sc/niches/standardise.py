"""Embeddings of cells of several slides, each slide standardised by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

FEWEST = 50
"""Fewest cells of a sample from which a mean and a standard deviation are taken."""

ROUNDING = 8
"""Steps of the number type, up to which values are equal."""


def standardise(x: ArrayLike, samples: ArrayLike) -> NDArray[np.float64]:
    """Subtract the mean of each sample, and divide by its standard deviation, dimension by dimension.

    Parameters
    ----------
    x
        Embedding of the cells, ``(n, d)``. Rows with NaN stay NaN and do not count.
    samples
        Sample of each cell, ``(n,)``. Cells without one get NaN.

    Returns
    -------
    Standardised embedding, ``(n, d)``. A dimension that is constant in a sample becomes zero there.

    Raises
    ------
    SetupError
        The inputs have different lengths, or a sample has fewer than 50 cells with an embedding.

    Notes
    -----
    Mean and standard deviation depend on what a slide is made of. Where slides hold niches in different proportions, this
    moves equal cells apart (page *Cohorts* has a measurement).
    """
    given = np.asarray(x)
    # What is constant but for rounding in its type is not blown up.
    rounding = ROUNDING * np.finfo(given.dtype).eps if given.dtype.kind == "f" else 0.0
    z = np.array(given, np.float64)
    code, names = pd.factorize(pd.Series(np.asarray(samples, dtype=object)))
    if z.ndim != 2 or len(code) != len(z):
        raise SetupError(f"The embedding {z.shape} and {len(code)} samples must name the same cells.")
    finite = np.isfinite(z).all(axis=1)
    sizes = np.bincount(code[finite & (code >= 0)], minlength=len(names))
    if len(names) and sizes.min() < FEWEST:
        raise SetupError(
            f"Sample {names[sizes.argmin()]!r} has {sizes.min()} cells with an embedding, too few for a mean and standard deviation; "
            f"{FEWEST} are needed. Leave it out, or cluster without sample_key."
        )
    out = np.full(z.shape, np.nan)
    for k in range(len(names)):
        here = finite & (code == k)
        deviation = z[here] - z[here].mean(axis=0)
        spread = deviation.std(axis=0)
        constant = spread <= max(rounding, 1e-12) * np.abs(z[here]).max(axis=0)
        out[here] = deviation / np.where(constant, np.inf, spread)
    return out
