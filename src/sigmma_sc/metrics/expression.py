"""Task 1: how well a linear probe on tile embeddings predicts expression (paper, section 6; HEST-1k's protocol).

Genes, library size, scaler, PCA, penalty and gene means are fitted or chosen on the training tiles only. Features are
standardised, then reduced by PCA. The two protocols differ in the target and the head:

``default``
    log1p of counts scaled to the median total of the training tiles; ridge with an intercept. The penalty of each gene is
    chosen among :data:`ALPHAS` by leave-one-out error on the training tiles (closed form). This is our choice.
``hest``
    log1p of raw pooled counts; ``Ridge(solver="lsqr", fit_intercept=False, max_iter=1000)`` with
    alpha = 100 / (components × genes predicted), as in HEST-1k. PCA features have mean 0, so without an intercept
    predictions average 0. The MSE then contains the squared mean of the gene, so do not compare it with ``mse_gene_mean``.

HEST is mahmoodlab/HEST (Jaume et al., NeurIPS 2024): the head in ``src/hest/bench/trainer.py``, scaler and PCA in
``src/hest/bench/benchmark.py``, the log in ``src/hest/bench/st_dataset.py``, genes by ``get_k_genes`` of
``src/hest/utils.py``. HEST also chooses genes by scanpy on log1p of raw counts, but on training and test spots together.
It first drops controls and genes found in under 10 % of the spots of a sample.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sigmma_sc._checks import require_choice, require_positive
from sigmma_sc.errors import SetupError

ALPHAS = np.logspace(-2, 6, 17)
"""Ridge penalties of the default protocol."""

CONSTANT = 1e-12
"""Values with a range below this share of the largest value are constant, and have no correlation."""

Counts: TypeAlias = ArrayLike | sparse.sparray | sparse.spmatrix


def expression_probe(
    train_x: ArrayLike,
    train_counts: Counts,
    test_x: ArrayLike,
    test_counts: Counts,
    genes: Sequence[str],
    *,
    protocol: Literal["default", "hest"] = "default",
    n_genes: int = 50,
    n_components: int = 256,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict the pooled expression of test tiles from their embeddings, gene by gene.

    Parameters
    ----------
    train_x, test_x
        Tile embeddings, ``(n, d)`` and ``(m, d)``.
    train_counts, test_counts
        Raw counts summed over the cells of each tile, ``(n, g)`` and ``(m, g)``, dense or sparse.
    genes
        Names of the ``g`` genes, all different.
    protocol
        ``"default"``: log1p of counts scaled to the median total, ridge with a penalty for each gene. ``"hest"``: log1p of
        raw counts, ridge with the fixed penalty of HEST-1k.
    n_genes
        Number of highly variable genes to predict, chosen on the log expression of the training tiles by
        :func:`scanpy.pp.highly_variable_genes` (flavor ``seurat``); fewer if fewer vary over the training tiles.
    n_components
        Largest number of PCA components; there are never more than ``min(d, n - 1)``.
    groups
        Slide of each test tile, ``(m,)``; slides are scored separately. ``None`` for one slide, named ``"all"``.
    seed
        Seed of the randomised solver of the PCA, which is used on large inputs.

    Returns
    -------
    One row per slide and gene, indexed by gene in the order given. ``pcc`` is the Pearson correlation across the test tiles
    of ``slide``, NaN if the gene or its prediction is constant there. ``mse`` is the error of the prediction,
    ``mse_gene_mean`` that of the training mean of the gene. ``n_train`` and ``n_test`` count the tiles.

    Raises
    ------
    SetupError
        Shapes do not match, counts are not raw, an embedding is not finite, or no gene varies.

    See Also
    --------
    sigmma_sc.metrics.summarise_expression : Means of this table over genes.
    sigmma_sc.metrics.expression_targets : Genes and log expression that are predicted.

    Examples
    --------
    >>> x = np.arange(12.0)[:, None]  # one feature of 12 tiles
    >>> counts = np.hstack([10 * x, 200 - 10 * x])  # one gene rises with it, one falls
    >>> table = sg.metrics.expression_probe(x[::2], counts[::2], x[1::2], counts[1::2], genes=["UP", "DOWN"])
    >>> table[["pcc", "mse", "mse_gene_mean"]].round(2)
           pcc   mse  mse_gene_mean
    gene
    UP    0.95  0.28           0.92
    DOWN  0.99  0.00           0.07
    """
    require_positive(n_components, "n_components")
    x = _features(train_x, "train_x")
    x_test = _features(test_x, "test_x")
    chosen, y, y_test = expression_targets(train_counts, test_counts, genes, protocol=protocol, n_genes=n_genes)
    if (len(x), len(x_test)) != (len(y), len(y_test)):
        raise SetupError(
            f"train_x has {len(x)} rows and train_counts {len(y)}, test_x {len(x_test)} and test_counts {len(y_test)}; give one "
            "row a tile in each."
        )
    if x.shape[1] != x_test.shape[1]:
        raise SetupError(f"train_x has {x.shape[1]} features and test_x {x_test.shape[1]}; use one encoder.")
    probe = fit_probe(x, y, protocol, n_components=int(n_components), seed=seed)
    predicted = probe.predict(x_test).reshape(y_test.shape)  # a single gene may come flat
    return _score_slides(y_test, predicted, y, chosen, groups)


def expression_targets(
    train_counts: Counts,
    test_counts: Counts,
    genes: Sequence[str],
    *,
    protocol: Literal["default", "hest"] = "default",
    n_genes: int = 50,
) -> tuple[pd.Index, NDArray[np.float64], NDArray[np.float64]]:
    """Genes to predict, and their log expression in the training and in the test tiles.

    Parameters
    ----------
    train_counts, test_counts, genes, protocol, n_genes
        See :func:`expression_probe`.

    Returns
    -------
    genes
        Names of the chosen genes, in the order given.
    train, test
        Log expression, ``(n, n_genes)`` and ``(m, n_genes)``.

    See Also
    --------
    sigmma_sc.metrics.expression_probe : Prediction of these targets.

    Examples
    --------
    >>> train, test = [[0, 5], [1, 5], [3, 5]], [[7, 5]]
    >>> genes, _, y = sg.metrics.expression_targets(train, test, ["A", "B"], protocol="hest")
    >>> genes.tolist(), y.round(2).tolist()  # B does not vary; 2.08 is log1p(7)
    (['A'], [[2.08]])
    """
    require_choice(protocol, ("default", "hest"), "protocol")
    require_positive(n_genes, "n_genes")
    counts = _counts(train_counts, "train_counts")
    counts_test = _counts(test_counts, "test_counts")
    names = pd.Index(genes, name="gene")
    _check_counts(counts, counts_test, names)
    library = median_total(counts) if protocol == "default" else None
    log = log_expression(counts, library)
    log_test = log_expression(counts_test, library)
    chosen = _variable_genes(log, int(n_genes))
    return names[chosen], log[:, chosen].toarray(), log_test[:, chosen].toarray()


def fit_probe(x: NDArray, y: NDArray, protocol: str = "default", *, n_components: int = 256, seed: int = 0) -> Pipeline:
    """Fit scaler, PCA and ridge of one protocol to features ``(n, d)`` and log expression ``(n, g)``.

    A gene's prediction does not depend on the other genes, except for ``"hest"``, where the penalty depends on their
    number.
    """
    components = min(n_components, x.shape[1], len(x) - 1)
    probe = make_pipeline(StandardScaler(), PCA(components, random_state=seed), _head(protocol, components, y.shape[1]))
    with np.errstate(invalid="ignore"):  # a collapsed encoder has no variance for the PCA to divide into shares
        return probe.fit(x, y)


def summarise_expression(table: pd.DataFrame) -> dict[str, float]:
    """Mean and SD over genes of a table of :func:`expression_probe`.

    Parameters
    ----------
    table
        One row per slide and gene. The slides of a gene are averaged first, so that the SD is between genes. For one
        summary a slide, use ``{slide: summarise_expression(rows) for slide, rows in table.groupby("slide")}``.

    Returns
    -------
    Means ``pcc``, ``mse`` and ``mse_gene_mean``, each with its SD ``_sd`` (``ddof=0``, as HEST reports it). ``n_genes`` and
    ``n_slides`` count genes and slides. ``n_undefined`` counts the rows without a correlation, which are left out of
    ``pcc``; report it with the mean if it is above 0.

    See Also
    --------
    sigmma_sc.metrics.expression_probe : The table of scores.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"slide": "a", "pcc": [0.2, 0.6], "mse": 1.0, "mse_gene_mean": 1.5}, index=["A", "B"])
    >>> summary = sg.metrics.summarise_expression(table)
    >>> round(summary["pcc"], 2), round(summary["pcc_sd"], 2), summary["n_genes"]
    (0.4, 0.2, 2)
    """
    scores = ["pcc", "mse", "mse_gene_mean"]
    per_gene = table.groupby(level=0, sort=False)[scores].mean()
    mean = per_gene.mean()
    sd = per_gene.std(ddof=0)
    summary = {}
    for name in scores:
        summary[name] = float(mean[name])
        summary[f"{name}_sd"] = float(sd[name])
    counts = {"n_genes": len(per_gene), "n_slides": table["slide"].nunique(), "n_undefined": table["pcc"].isna().sum()}
    return summary | {key: int(n) for key, n in counts.items()}


def _head(protocol: str, components: int, n_genes: int) -> Ridge | RidgeCV:
    """Build the regression of one protocol, see :func:`expression_probe`."""
    if protocol == "hest":
        alpha = 100 / (components * n_genes)
        # HEST passes random_state too; lsqr draws nothing.
        return Ridge(alpha=alpha, solver="lsqr", fit_intercept=False, max_iter=1000, random_state=0)
    # A penalty for each gene: a common one would depend mostly on the genes of largest variance.
    return RidgeCV(ALPHAS, alpha_per_target=n_genes > 1)


def _variable_genes(logs: sparse.csr_array, n_genes: int) -> NDArray[np.intp]:
    """Columns of the most variable genes, ascending; genes that do not vary are out."""
    low = logs.min(axis=0).toarray().ravel()
    high = logs.max(axis=0).toarray().ravel()
    varying = np.flatnonzero(high - low > CONSTANT * high)
    if len(varying) == 0:
        raise SetupError(f"None of the {len(high)} genes varies over the training tiles: check train_counts.")
    if len(varying) <= n_genes:
        return varying
    found = sc.pp.highly_variable_genes(
        ad.AnnData(sparse.csr_matrix(logs[:, varying])), n_top_genes=n_genes, flavor="seurat", inplace=False
    )
    # By rank, because scanpy's column highly_variable holds more than n_genes when dispersions tie.
    dispersion = found["dispersions_norm"].fillna(-np.inf).to_numpy()
    return np.sort(varying[np.argsort(-dispersion, kind="stable")[:n_genes]])


def log_expression(counts: sparse.csr_array, library: float | None) -> sparse.csr_array:
    """log1p of the counts, each row first scaled to the sum ``library`` unless None; empty rows stay 0."""
    if library is not None:
        total = np.asarray(counts.sum(axis=1)).ravel()
        counts = sparse.diags_array(library / np.where(total > 0, total, 1.0)) @ counts
    return sparse.csr_array(counts).log1p()


def median_total(counts: sparse.csr_array) -> float:
    """Median total of the tiles that hold any count."""
    total = np.asarray(counts.sum(axis=1)).ravel()
    if not total.any():
        raise SetupError(f"All {len(total)} training tiles have no counts; pool raw counts over each tile's cells.")
    return float(np.median(total[total > 0]))


def _score_slides(
    target: NDArray, predicted: NDArray, train: NDArray, genes: pd.Index, groups: ArrayLike | None
) -> pd.DataFrame:
    """Score every gene (column) in every slide (rows of one label), beside the gene's mean in ``train``."""
    codes, names = pd.factorize(pd.Series(["all"] * len(target) if groups is None else groups))
    if len(codes) != len(target) or (codes < 0).any():
        raise SetupError(
            f"groups has {len(codes)} labels, {(codes < 0).sum()} of them missing, for {len(target)} test tiles; "
            "name each test tile's slide."
        )
    tables = []
    for i, slide in enumerate(names):
        y = target[codes == i]
        p = predicted[codes == i]
        scores = {
            "slide": slide,
            "pcc": pearson(y, p),
            "mse": ((p - y) ** 2).mean(axis=0),
            "mse_gene_mean": ((train.mean(axis=0) - y) ** 2).mean(axis=0),
            "n_train": len(train),
            "n_test": len(y),
        }
        tables.append(pd.DataFrame(scores, index=genes))
    return pd.concat(tables)


def pearson(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Pearson correlation of each column of ``a`` with that of ``b``; NaN where either is constant."""
    defined = np.ones(a.shape[1], dtype=bool)
    for x in (a, b):
        defined &= np.ptp(x, axis=0) > CONSTANT * np.abs(x).max(axis=0)
    u = a[:, defined] - a[:, defined].mean(axis=0)
    v = b[:, defined] - b[:, defined].mean(axis=0)
    result = np.full(len(defined), np.nan)
    result[defined] = (u * v).sum(axis=0) / (np.linalg.norm(u, axis=0) * np.linalg.norm(v, axis=0))
    return np.clip(result, -1, 1)


def _features(x: ArrayLike, what: str) -> NDArray[np.float64]:
    features = np.asarray(x, dtype=np.float64)
    if features.ndim != 2:
        raise SetupError(f"{what} has shape {features.shape}; it must be (tiles, features).")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise SetupError(
            f"{len(bad)} of {len(features)} rows of {what} are not finite, first row {bad[0]}; drop these."
        )
    return features


def _counts(counts: Counts, what: str) -> sparse.csr_array:
    dense_or_sparse = counts if sparse.issparse(counts) else np.asarray(counts)
    matrix = sparse.csr_array(dense_or_sparse, dtype=np.float64, copy=True)
    matrix.sum_duplicates()  # log1p works on stored entries, and two may belong to one gene
    wrong = matrix.data[~np.isfinite(matrix.data) | (matrix.data < 0)]
    if len(wrong):
        raise SetupError(f"{what} contains {wrong[0]}; pass raw counts: finite, not negative, not scaled.")
    return matrix


def _check_counts(train: sparse.csr_array, test: sparse.csr_array, genes: pd.Index) -> None:
    for name, counts in (("train", train), ("test", test)):
        if counts.shape[1] != len(genes):
            raise SetupError(f"{name}_counts has shape {counts.shape} for {len(genes)} genes; give a column a gene.")
    if train.shape[0] < 3 or test.shape[0] < 1:
        raise SetupError(f"{train.shape[0]} training and {test.shape[0]} test tiles; at least 3 and 1 are needed.")
    if genes.has_duplicates:
        raise SetupError(f"genes names {genes[genes.duplicated()][0]!r} twice; call var_names_make_unique() first.")
