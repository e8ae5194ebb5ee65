"""Task 2: cross-modal retrieval among the tiles of a slide, in both directions (paper, section 6)."""

import math
import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sigmma_sc._checks import is_number, require_whole
from sigmma_sc.errors import SetupError, SplitWarning

TIE = 1e-9
"""Cosine similarities closer than this are a tie.

BLAS rounds a dot product differently in blocks of different shape, so equal candidates rarely compare equal. The error is
about ``d`` · 2.2e-16 on unit vectors, 1e-12 at d = 4096. The resolution of float32 embeddings is about 1e-7.
"""

PERCENTS = (5, 10, 15)
"""Percentages p of Recall@p% in the paper."""


def partner_ranks(query: ArrayLike, candidates: ArrayLike, chunk: int = 2048) -> NDArray[np.int64]:
    """Rank of the true partner of every query, the candidate of the same row, by cosine similarity.

    Parameters
    ----------
    query
        Embeddings of the queries, ``(n, d)``.
    candidates
        Embeddings to rank, ``(n, d)``; row ``i`` is the partner of query ``i``.
    chunk
        Number of rows compared at a time: memory holds ``chunk × chunk`` similarities, never ``n × n``. The ranks do not
        depend on it.

    Returns
    -------
    Ranks ``(n,)`` from 1, the best, to ``n``: one more than the number of *other* candidates at least as similar as the
    partner. Similarities within 1e-9 tie, and a tie counts against the query, so a collapsed model ranks last.

    Raises
    ------
    SetupError
        The shapes differ, or a row has no direction (all zero, or not finite).

    See Also
    --------
    sigmma_sc.metrics.recall_at_percent : Recall from these ranks.
    sigmma_sc.metrics.retrieval_table : Recall at every scale and in both directions.

    Examples
    --------
    >>> image = [[1, 0], [0, 1], [-1, 0]]
    >>> cells = [[2, 0], [1, -1], [-1, 1]]
    >>> sg.metrics.partner_ranks(image, cells).tolist()  # the second tile's partner is the worst of three
    [1, 3, 1]
    """
    return _ranks(_unit_rows(query, "query"), _unit_rows(candidates, "candidates"), chunk)


def recall_at_percent(ranks: ArrayLike, n: int, percents: Sequence[float] = PERCENTS) -> dict[float, float]:
    """Share of queries whose partner ranks within the best p % of the candidates (paper, section 6, Task 2).

    Parameters
    ----------
    ranks
        Ranks ``(q,)`` from 1 to ``n``, see :func:`partner_ranks`.
    n
        Number of candidates.
    percents
        Percentages p, each above 0 and at most 100.

    Returns
    -------
    Share of ranks ≤ ceil(p·n/100) for each p. The paper does not give the rounding; ceil is our choice.

    Raises
    ------
    SetupError
        There are no ranks, or a rank or percentage is out of range.

    See Also
    --------
    sigmma_sc.metrics.partner_ranks : Ranks of partners.

    Examples
    --------
    >>> sg.metrics.recall_at_percent([1, 3, 6, 30], n=40)  # the best 5, 10 and 15 % of 40 are 2, 4 and 6
    {5: 0.25, 10: 0.5, 15: 0.75}
    """
    given = np.asarray(ranks)
    require_whole(n, "n")
    if given.dtype.kind not in "iuf" or np.any(given != np.round(given)):
        raise SetupError(f"ranks {given.ravel()[:3].tolist()} … must be whole numbers; a missing rank is no rank.")
    if given.size == 0 or given.min() < 1 or given.max() > n:
        span = f"{given.min()} … {given.max()}" if given.size else "none"
        raise SetupError(f"ranks ({span}) must be between 1 and n={n}; n is the number of candidates ranked.")
    return {p: float(np.mean(within_percent(given, n, p))) for p in percents}


def within_percent(ranks: NDArray[np.int64], n: int, percent: float) -> NDArray[np.bool_]:
    """Which of some ranks from 1 to ``n`` are within the best ``percent`` of ``n`` candidates."""
    return ranks <= _cutoff(percent, n)


def chance_level(percent: float, n: int) -> float:
    """Recall at ``percent`` that a random order of ``n`` candidates has on average, ceil(p·n/100)/n."""
    return _cutoff(percent, n) / n


def retrieval_table(
    image: Mapping[str, ArrayLike],
    transcriptome: Mapping[str, ArrayLike],
    slide: ArrayLike,
    *,
    percents: Sequence[float] = PERCENTS,
    chunk: int = 2048,
) -> pd.DataFrame:
    """Score retrieval in both directions, at every scale, among the tiles of one slide at a time.

    Parameters
    ----------
    image, transcriptome
        Tile embeddings ``(n, d)`` by scale; row ``i`` is the same tile in all of them. ``d`` may differ between scales.
    slide
        Slide of each tile, ``(n,)``. Candidates are from the same slide, because tiles of other slides are too easy.
    percents
        Percentages p of Recall@p%, see :func:`recall_at_percent`.
    chunk
        Number of rows compared at a time, see :func:`partner_ranks`.

    Returns
    -------
    One row per slide × direction × scale, in the given order. If there are several scales, ``all`` is the concatenation
    of the L2-normalised scales, so that each has equal weight. Columns: ``slide``, ``direction``, ``scale``,
    ``recall@p%``, ``median_rank``, ``pool`` (number of candidates) and ``chance@p%``. The last is the mean recall of a
    random order, ceil(p·n/100)/n, above p % in small pools.

    Raises
    ------
    SetupError
        The scales or shapes do not match, a row has no direction, or no slide has two tiles.

    Warns
    -----
    SplitWarning
        Slides of one tile are left out.

    See Also
    --------
    sigmma_sc.metrics.tile_ranks : The ranks that this table summarises.
    sigmma_sc.metrics.partner_ranks : Ranks for one pair of embeddings.

    Examples
    --------
    >>> image = {"macro": [[1, 0], [0, 1], [-1, 0]]}
    >>> cells = {"macro": [[2, 0], [1, -1], [-1, 1]]}
    >>> table = sg.metrics.retrieval_table(image, cells, slide=["a", "a", "a"], percents=[50])
    >>> table[["direction", "recall@50%", "median_rank", "pool", "chance@50%"]].round(2)
                 direction  recall@50%  median_rank  pool  chance@50%
    0  image→transcriptome        0.67          1.0     3        0.67
    1  transcriptome→image        0.67          2.0     3        0.67
    """
    ranks, slides = tile_ranks(image, transcriptome, slide, chunk=chunk)
    rows = []
    for name, tiles in slides:
        pool = len(tiles)
        chance = {f"chance@{p:g}%": chance_level(p, pool) for p in percents}
        for (direction, scale), all_ranks in ranks.items():
            pooled = all_ranks[tiles]
            recall = {f"recall@{p:g}%": r for p, r in recall_at_percent(pooled, pool, percents).items()}
            row = {"slide": name, "direction": direction, "scale": scale}
            rows.append(row | recall | {"median_rank": float(np.median(pooled)), "pool": pool} | chance)
    return pd.DataFrame(rows)


def tile_ranks(
    image: Mapping[str, ArrayLike], transcriptome: Mapping[str, ArrayLike], slide: ArrayLike, *, chunk: int = 2048
) -> tuple[dict[tuple[str, str], NDArray[np.int64]], list[tuple[object, NDArray[np.intp]]]]:
    """Rank of the partner of every tile among the tiles of its slide, at every scale and in both directions.

    Parameters
    ----------
    image, transcriptome, slide, chunk
        See :func:`retrieval_table`.

    Returns
    -------
    ranks
        Ranks ``(n,)`` by direction and scale; 0 for the only tile of a slide.
    slides
        Name and tiles of each slide with two tiles or more.

    See Also
    --------
    sigmma_sc.metrics.retrieval_table : Summary of these ranks.

    Examples
    --------
    >>> image = {"macro": [[1, 0], [0, 1], [-1, 0]]}
    >>> cells = {"macro": [[2, 0], [1, -1], [-1, 1]]}
    >>> ranks, slides = sg.metrics.tile_ranks(image, cells, slide=["a", "a", "a"])
    >>> ranks["image→transcriptome", "macro"].tolist()
    [1, 3, 1]
    """
    if set(image) != set(transcriptome):
        raise SetupError(f"image has scales {list(image)}, transcriptome {list(transcriptome)}: give both the same.")
    images = _all_scales(image, "image")
    # In the order of image, because "all" concatenates the scales.
    transcriptomes = _all_scales({scale: transcriptome[scale] for scale in image}, "transcriptome")
    slides = _slides(slide, {len(x) for x in (*images.values(), *transcriptomes.values())})
    ranks = {}
    for direction, query, candidates in (
        ("image→transcriptome", images, transcriptomes),
        ("transcriptome→image", transcriptomes, images),
    ):
        for scale in images:
            ranks[direction, scale] = np.zeros(len(images[scale]), np.int64)
            for _, tiles in slides:
                ranks[direction, scale][tiles] = _ranks(query[scale][tiles], candidates[scale][tiles], chunk)
    return ranks, slides


def _ranks(query: NDArray[np.float64], candidates: NDArray[np.float64], chunk: int) -> NDArray[np.int64]:
    """Ranks of the partners among unit rows, see :func:`partner_ranks`."""
    if query.shape != candidates.shape:
        raise SetupError(f"query {query.shape} and candidates {candidates.shape} must have the same shape.")
    if chunk < 1:
        raise SetupError(f"chunk={chunk!r} must be at least 1 row.")
    partner = np.einsum("ij,ij->i", query, candidates)
    ranks = np.zeros(len(query), dtype=np.int64)
    for i in range(0, len(query), chunk):
        rows = slice(i, i + chunk)
        for j in range(0, len(query), chunk):
            similarity = query[rows] @ candidates[j : j + chunk].T
            # The partner is within TIE of itself, however it was rounded, and so supplies the 1 of the rank.
            ranks[rows] += np.count_nonzero(similarity >= partner[rows, None] - TIE, axis=1)
    return ranks


def _unit_rows(x: ArrayLike, what: str) -> NDArray[np.float64]:
    """Rows of ``x`` at length 1, in float64; an error if some have no direction."""
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0:
        raise SetupError(f"{what} has shape {rows.shape}; it must be (n, d), with at least one row.")
    largest = np.abs(rows).max(axis=1, initial=0.0, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(largest) & (largest > 0)))
    if len(bad):
        raise SetupError(
            f"{len(bad)} of {len(rows)} rows of {what} are all zero or not finite (first: row {bad[0]}), so they have "
            "no cosine similarity. Drop these tiles from both modalities, or correct the model."
        )
    rows = rows / largest  # first, so that the squares neither overflow nor vanish
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _all_scales(embeddings: Mapping[str, ArrayLike], what: str) -> dict[str, NDArray[np.float64]]:
    """Unit rows of every scale and, if there are several, of ``all``, their concatenation."""
    scales = {scale: _unit_rows(x, f"{what}[{scale!r}]") for scale, x in embeddings.items()}
    sizes = {scale: len(x) for scale, x in scales.items()}
    if len(set(sizes.values())) != 1:
        raise SetupError(f"{what} has tiles per scale {sizes}: every scale needs the same tiles, one scale at least.")
    if len(scales) > 1:
        if "all" in scales:
            raise SetupError(f"{what} names a scale 'all', which means the others together. Leave it out or rename it.")
        scales["all"] = np.hstack(list(scales.values())) / math.sqrt(len(scales))
    return scales


def _slides(slide: ArrayLike, sizes: set[int]) -> list[tuple[object, NDArray[np.intp]]]:
    """Slides with their tiles' rows, in order of appearance; those of a single tile are left out with a warning."""
    codes, names = pd.factorize(pd.Series(slide))
    if sizes != {len(codes)}:
        raise SetupError(f"slide has {len(codes)} labels for {sorted(sizes)} tiles; give one a tile.")
    if (codes < 0).any():
        raise SetupError(f"{(codes < 0).sum()} of {len(codes)} tiles have no slide label. Name each tile's slide.")
    slides = [(name, np.flatnonzero(codes == i)) for i, name in enumerate(names)]
    single = [name for name, tiles in slides if len(tiles) < 2]
    if len(single) == len(slides):
        raise SetupError(f"No slide has two tiles ({len(slides)} slides of one tile): there is nothing to rank.")
    if single:
        shown = ", ".join(map(repr, single[:12])) + (" …" if len(single) > 12 else "")
        warnings.warn(f"Slides of one tile have nothing to rank and are left out: {shown}.", SplitWarning, stacklevel=4)
    return [(name, tiles) for name, tiles in slides if len(tiles) > 1]


def _cutoff(percent: float, n: int) -> int:
    """ceil(percent·n/100), exact: in floats 16.1 % of 1000 would be 161.00000000000003, and so 162."""
    if not is_number(percent) or not 0 < percent <= 100:
        raise SetupError(f"percents contains {percent!r}; each must be above 0 and at most 100.")
    return math.ceil(Fraction(str(percent)) * n / 100)
